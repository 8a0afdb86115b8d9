//! BGP types of several kinds: parameters of sessions, the speaker of a node, sessions and their states.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{cel, schema};

/// The port of BGP (RFC 4271, section 8.2.1).
pub(crate) fn port() -> u16 {
    179
}

fn seconds(n: u64) -> kube::core::Duration {
    std::time::Duration::from_secs(n).into()
}

pub(crate) fn ninety_seconds() -> kube::core::Duration {
    seconds(90)
}

pub(crate) fn thirty_seconds() -> kube::core::Duration {
    seconds(30)
}

pub(crate) fn five_seconds() -> kube::core::Duration {
    seconds(5)
}

/// Timers of BFD.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Required minimum receive interval (RFC 5880, section 4.1).
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.bfd.minReceive", "10ms", "60s", "50ms"))]
    pub min_receive: kube::core::Duration,
    /// Desired minimum transmit interval (RFC 5880, section 4.1).
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.bfd.minTransmit", "10ms", "60s", "50ms"))]
    pub min_transmit: kube::core::Duration,
    /// Detection multiplier: number of missing packets after which the session is down.
    #[x_kube(validation = cel::within("spec.bfd.multiplier", 1, 255, 3))]
    pub multiplier: u8,
}

/// Graceful restart of a session.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// Whether graceful restart is requested of the peer.
    pub enabled: bool,
    /// How long the peer keeps the routes of this node while its BGP speaker restarts.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("gracefulRestart.restartTime", "1s", "4095s", "120s"))]
    pub restart_time: kube::core::Duration,
}

impl Default for GracefulRestart {
    fn default() -> Self {
        Self {
            enabled: true,
            restart_time: seconds(120),
        }
    }
}

/// Next hop of advertised prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NextHopMode {
    /// This node for its own blocks; reflected prefixes keep their next hop.
    #[default]
    Auto,
    /// This node for all prefixes.
    #[serde(rename = "self")]
    NextHopSelf,
    /// Next hops are never changed, also not towards other AS numbers.
    Keep,
}

/// Import and export rules; the first match decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filters {
    /// Rules for received prefixes. Without a match, blocks of IPPools that belong to other nodes are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub import: Vec<FilterRule>,
    /// Rules for advertised prefixes. Without a match, the node's own blocks are advertised, and those that a route reflector reflects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub export: Vec<FilterRule>,
}

impl Filters {
    /// Whether there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.import.is_empty() && self.export.is_empty()
    }
}

/// One rule.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = cel::prefix_length("minLength", 16))]
#[x_kube(validation = cel::prefix_length("maxLength", 26))]
#[x_kube(validation = Rule::new("!has(self.minLength) || !has(self.maxLength) || self.minLength <= self.maxLength").message("minLength of a filter must not be more than its maxLength, for example 16 and 26"))]
pub struct FilterRule {
    /// accept: a matching prefix passes. reject: it does not.
    pub action: FilterAction,
    /// Range that contains the matching prefixes.
    #[schemars(schema_with = "schema::cidr")]
    #[x_kube(validation = cel::cidr("cidr of a filter", "10.244.0.0/16"))]
    pub cidr: IpNet,
    /// Shortest matching prefix length. Absent: that of cidr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub min_length: Option<u8>,
    /// Longest matching prefix length. Absent: 32 for IPv4 and 128 for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub max_length: Option<u8>,
}

/// The action of a filter rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FilterAction {
    /// The prefix passes.
    Accept,
    /// The prefix is rejected.
    Reject,
}

/// One node's BGP speaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeBgp {
    /// AS number of the speaker.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub as_number: u32,
    /// BGP identifier (RFC 6286): the IPv4 address of the node, or a hash of its name.
    #[serde(rename = "routerID")]
    #[schemars(schema_with = "schema::ip")]
    pub router_id: Ipv4Addr,
    /// TCP port on which the speaker listens.
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: u16,
    /// Cluster ID of a route reflector (RFC 4456). Absent: the speaker reflects no routes.
    #[serde(rename = "clusterID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub cluster_id: Option<Ipv4Addr>,
    /// BGP sessions of the speaker.
    #[serde(default)]
    #[schemars(length(max = 2048))]
    pub sessions: Vec<Session>,
}

/// A BGP session of one node: it carries the prefixes of the family of its addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Unique name of the session on the node: the name of the BGPPeer, with `-` and the name of the other node if the peer is a node, or
    /// `mesh-` and the name of the other node. `-ipv6` follows if nodes peer over IPv6.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Name of the BGPPeer that requires the session. Absent: the node-to-node mesh of the NetworkMode does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub bgp_peer: Option<String>,
    /// Address of the peer.
    #[serde(rename = "peerIP")]
    #[schemars(schema_with = "schema::ip")]
    pub peer: IpAddr,
    /// TCP port of the peer.
    #[serde(rename = "peerPort")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Address of this node in the session.
    #[serde(rename = "sourceAddress")]
    #[schemars(schema_with = "schema::ip")]
    pub local: IpAddr,
    /// AS number of this node in the session.
    #[serde(rename = "localASNumber")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub local_as: u32,
    /// AS number of the peer.
    #[serde(rename = "peerASNumber")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub peer_as: u32,
    /// Whether the peer is another node of this cluster.
    #[serde(default, rename = "peerIsNode")]
    pub node: bool,
    /// Whether the peer is a client of this route reflector (RFC 4456).
    #[serde(default, skip_serializing_if = "is_false")]
    pub reflector_client: bool,
    /// Key of the TCP MD5 password in the Secret of the agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub password_key: Option<String>,
    /// Hold time (RFC 4271): the session ends without messages for this time.
    #[schemars(schema_with = "schema::duration")]
    pub hold_time: kube::core::Duration,
    /// Time between KEEPALIVE messages.
    #[schemars(schema_with = "schema::duration")]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to establish the session.
    #[schemars(schema_with = "schema::duration")]
    pub connect_retry_time: kube::core::Duration,
    /// Maximum number of hops to the eBGP peer. Absent: the peer is on the same link.
    #[serde(
        default,
        rename = "ebgpMultihop",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 255))]
    pub multihop: Option<u8>,
    /// Number of hops that packets of the peer may travel (GTSM, RFC 5082). Absent: off, and 1 between nodes on the same link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security: Option<u8>,
    /// Bidirectional forwarding detection (RFC 5880). Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: GracefulRestart,
    /// Maximum number of prefixes accepted from the peer.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_prefixes: u32,
    /// Next hop of advertised prefixes. auto: this node for its own blocks; reflected prefixes keep their next hop. self: this node for all
    /// prefixes. keep: next hops are never changed.
    #[serde(default)]
    pub next_hop_mode: NextHopMode,
    /// Communities of advertised prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub communities: Vec<String>,
    /// Import and export rules.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands it a reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The state of one BGP session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Name of the session, as in spec.bgp.sessions[].name.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Address of the peer.
    #[serde(rename = "peerIP")]
    #[schemars(schema_with = "schema::ip")]
    pub peer: IpAddr,
    /// State of the session (RFC 4271, section 8.2.2).
    pub state: SessionState,
    /// Time of the last change of state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// Number of prefixes accepted from the peer.
    #[schemars(range(min = 0))]
    pub received: i64,
    /// Number of prefixes advertised to the peer.
    #[schemars(range(min = 0))]
    pub advertised: i64,
    /// Number of prefixes of the peer that the import rules reject.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub rejected: i64,
    /// Why the session is not established, or what is wrong although it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<SessionFault>,
    /// The fault for people, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// States of a session (RFC 4271, section 8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionState {
    /// Waiting before the next attempt.
    Idle,
    /// Waiting for a TCP connection.
    Connect,
    /// Listening, the last attempt having failed.
    Active,
    /// Waiting for the peer's OPEN.
    OpenSent,
    /// Waiting for the peer's first KEEPALIVE.
    OpenConfirm,
    /// Prefixes are exchanged.
    Established,
}

/// Faults of a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum SessionFault {
    /// BIRD on the node does not reply on its control socket.
    BIRDUnavailable,
    /// The Secret of the password, or its key, does not exist.
    PasswordMissing,
    /// The node has no route to the peer.
    NoRouteToPeer,
    /// The peer does not reply: it is unreachable, or its password differs (the kernel drops packets with a wrong signature).
    ConnectTimeout,
    /// The peer refuses TCP connections: no BGP speaker listens on the port.
    ConnectionRefused,
    /// One of the two speakers expects another AS number of the other.
    ASNumberMismatch,
    /// The session ended or failed for another cause, for example a NOTIFICATION of the peer; the message names the cause.
    SessionError,
    /// The hold time expired without a message, or BFD reports the peer down.
    SessionLost,
    /// The peer advertises more prefixes than maxPrefixes.
    TooManyPrefixes,
    /// The import rules reject prefixes of the peer.
    PrefixesRejected,
}
