//! What BGP needs in more than one kind: parameters of sessions, and one node's part with its sessions and their states.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rule, schema};

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
    /// Least time between packets received.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.bfd.minReceive", "10ms", "60s", "50ms"))]
    pub min_receive: kube::core::Duration,
    /// Least time between packets sent.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.bfd.minTransmit", "10ms", "60s", "50ms"))]
    pub min_transmit: kube::core::Duration,
    /// Packets that may be missed.
    #[x_kube(validation = rule::within("spec.bfd.multiplier", 1, 255, 3))]
    pub multiplier: u8,
}

/// Graceful restart of a session.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// Whether to ask for it.
    pub enabled: bool,
    /// How long the peer keeps our routes while we restart.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("gracefulRestart.restartTime", "1s", "4095s", "120s"))]
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

/// Next hop in what is announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NextHopMode {
    /// This node for its own blocks; what is reflected keeps its own.
    #[default]
    Auto,
    /// This node for everything.
    #[serde(rename = "self")]
    Itself,
    /// As learnt, also towards other AS numbers.
    Keep,
}

/// Rules for what is taken and announced; the first that matches decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filters {
    /// What is taken. Where no rule matches: blocks of our pools that are not this node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub import: Vec<FilterRule>,
    /// What is announced. Where no rule matches: the node's own blocks, and what a reflector reflects.
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
#[x_kube(validation = rule::prefix_length("minLength", 16))]
#[x_kube(validation = rule::prefix_length("maxLength", 26))]
#[x_kube(validation = Rule::new("!has(self.minLength) || !has(self.maxLength) || self.minLength <= self.maxLength").message("minLength of a filter must not be more than its maxLength, for example 16 and 26"))]
pub struct FilterRule {
    /// What happens to a prefix that matches.
    pub action: FilterAction,
    /// Prefixes inside this range match.
    #[schemars(schema_with = "schema::cidr")]
    #[x_kube(validation = rule::cidr("cidr of a filter", "10.244.0.0/16"))]
    pub cidr: IpNet,
    /// Shortest prefix length that matches; absent: that of `cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u8>,
    /// Longest prefix length that matches; absent: a host's, 32 or 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u8>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FilterAction {
    /// The prefix passes.
    Accept,
    /// The prefix does not.
    Reject,
}

/// One node's BGP speaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeBgp {
    /// Its AS number.
    pub as_number: u32,
    /// Its identifier (RFC 6286): the node's IPv4 address, or a hash of its name.
    #[serde(rename = "routerID")]
    #[schemars(schema_with = "schema::ip")]
    pub router_id: Ipv4Addr,
    /// TCP port it listens on.
    pub listen_port: u16,
    /// The cluster it reflects for (RFC 4456); absent: it reflects nothing.
    #[serde(rename = "clusterID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub cluster_id: Option<Ipv4Addr>,
    /// Its sessions, by name.
    #[serde(default)]
    #[schemars(length(max = 2048))]
    pub sessions: Vec<Session>,
}

/// A BGP session of one node: it carries the prefixes of the family of its addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its name, of which a node has one: the BGPPeer's, followed by `-` and the other node's where it is with nodes, or `mesh-` and
    /// the other node's; over IPv6 with a node `-ipv6` follows.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// The BGPPeer that asks for it; absent: the NetworkMode does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub bgp_peer: Option<String>,
    /// The peer's address.
    #[schemars(schema_with = "schema::ip")]
    pub peer: IpAddr,
    /// The peer's TCP port.
    pub port: u16,
    /// Our address.
    #[schemars(schema_with = "schema::ip")]
    pub local: IpAddr,
    /// Our AS number.
    #[serde(rename = "localAS")]
    pub local_as: u32,
    /// The peer's AS number.
    #[serde(rename = "peerAS")]
    pub peer_as: u32,
    /// Whether the peer is another node of this cluster.
    #[serde(default)]
    pub node: bool,
    /// Whether we reflect to the peer as to a client (RFC 4456).
    #[serde(default, skip_serializing_if = "is_false")]
    pub reflector_client: bool,
    /// Key of the password in the agents' Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub password_key: Option<String>,
    /// Time without a message after which the session is dead.
    #[schemars(schema_with = "schema::duration")]
    pub hold_time: kube::core::Duration,
    /// Time between keepalives.
    #[schemars(schema_with = "schema::duration")]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to connect.
    #[schemars(schema_with = "schema::duration")]
    pub connect_retry_time: kube::core::Duration,
    /// Hops to an eBGP peer that is not on the same link; absent: directly connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multihop: Option<u8>,
    /// Accept only packets that have come this many hops (RFC 5082). Absent with a node: one where the two are on one link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<u8>,
    /// Bidirectional forwarding detection; absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// Largest number of prefixes taken.
    pub max_prefixes: u32,
    /// Next hop in what is announced.
    #[serde(default)]
    pub next_hop_mode: NextHopMode,
    /// Communities added to what is announced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub communities: Vec<String>,
    /// What is taken and announced, where that is not our pools and the node's own blocks.
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

/// What became of one BGP session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Its name.
    pub name: String,
    /// The peer's address.
    #[schemars(schema_with = "schema::ip")]
    pub peer: IpAddr,
    /// Its state (RFC 4271, section 8.2.2).
    pub state: SessionState,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Prefixes taken.
    pub received: i64,
    /// Prefixes announced.
    pub advertised: i64,
    /// Prefixes that the peer announces and that are not taken.
    #[serde(default)]
    pub refused: i64,
    /// Why it is not established, or what is wrong although it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<SessionFault>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// States of a session (RFC 4271, section 8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionState {
    /// Waiting before it tries (again).
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

/// What is wrong with a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum SessionFault {
    /// The node has no BIRD that answers.
    NoBird,
    /// The password's Secret, or its key, is not there.
    NoPassword,
    /// There is no route to the peer.
    NoRoute,
    /// Nobody answers: the peer is unreachable, or its password differs (packets with a wrong signature are dropped unseen).
    NoAnswer,
    /// The peer's machine answers, but no BGP speaker listens on the port.
    Refused,
    /// One of the two expects another AS number of the other.
    WrongAS,
    /// The peer ended the session, or refused it, for another reason; the message has it.
    Rejected,
    /// The session ended because nothing was heard for the hold time, or by BFD.
    Lost,
    /// The peer announces more prefixes than `maxPrefixes`.
    TooManyPrefixes,
    /// The peer announces prefixes that are not taken.
    PrefixesRefused,
}
