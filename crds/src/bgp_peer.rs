//! `BGPPeer`: which routers hear about the pods.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::{Bfd, Filters, GracefulRestart, NextHopMode, SessionFault};
use crate::{bgp, rule, schema};

/// A BGP session of some nodes with a router or with other nodes.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netweft.io",
    version = "v1alpha1",
    kind = "BGPPeer",
    plural = "bgppeers",
    shortname = "bgpp",
    category = "netweft",
    status = "BGPPeerStatus",
    derive = "PartialEq",
    doc = "A BGP session of some nodes with a router or with other nodes.",
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peerIP"),
    printcolumn(name = "AS", type_ = "integer", json_path = ".spec.asNumber"),
    printcolumn(
        name = "Established",
        type_ = "integer",
        json_path = ".status.nodes.established"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Received",
        type_ = "integer",
        json_path = ".status.prefixes.received",
        priority = 1
    ),
    printcolumn(
        name = "Advertised",
        type_ = "integer",
        json_path = ".status.prefixes.advertised",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.peerIP) != has(self.peerSelector)").message("spec takes exactly one of peerIP (a router, for example 10.1.0.1) and peerSelector (other nodes)"))]
#[x_kube(validation = Rule::new("has(self.peerIP) == has(self.asNumber)").message("spec.asNumber belongs to spec.peerIP: give both, for example {peerIP: 10.1.0.1, asNumber: 65001}; nodes chosen by peerSelector have the number of their NetworkMode"))]
#[x_kube(validation = rule::keepalive_before_hold("spec"))]
#[x_kube(validation = Rule::new("!has(self.ebgpMultihop) || !has(self.ttlSecurity)").message("spec takes at most one of ebgpMultihop (for example 2) and ttlSecurity (for example 1)"))]
#[x_kube(validation = Rule::new("!has(self.peerIP) || !has(self.sourceAddress) || !isIP(self.peerIP) || !isIP(self.sourceAddress) || ip(self.peerIP).family() == ip(self.sourceAddress).family()").message("spec.sourceAddress must be of the family of spec.peerIP, for example 10.1.0.14 for 10.1.0.1"))]
#[x_kube(validation = Rule::new("!has(self.sourceAddress) || has(self.peerIP)").message("spec.sourceAddress belongs to spec.peerIP: nodes chosen by peerSelector know each other by their node addresses; remove it"))]
pub struct BGPPeerSpec {
    /// Nodes that have this session; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = rule::selector("spec.nodeSelector"))]
    pub node_selector: Option<LabelSelector>,
    /// Address of the router.
    #[serde(default, rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = rule::host("spec.peerIP"))]
    #[x_kube(validation = rule::global("spec.peerIP"))]
    pub peer_ip: Option<IpAddr>,
    /// TCP port of the router. Nodes listen on their NetworkMode's `listenPort`.
    #[serde(default = "bgp::port")]
    #[x_kube(validation = rule::port("spec.peerPort", 179))]
    pub peer_port: u16,
    /// Other nodes as peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = rule::selector("spec.peerSelector"))]
    pub peer_selector: Option<LabelSelector>,
    /// AS number of the router. A plain number, also beyond 65535: one in dotted notation (RFC 5396) is
    /// the first part times 65536 plus the second, 4200000000 for 64086.59904.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rule::as_number("spec.asNumber"))]
    pub as_number: Option<u32>,
    /// AS number to speak with in this session instead of the node's, a plain number as `asNumber`.
    #[serde(
        default,
        rename = "localASNumber",
        skip_serializing_if = "Option::is_none"
    )]
    #[x_kube(validation = rule::as_number("spec.localASNumber"))]
    pub local_as_number: Option<u32>,
    /// TCP MD5 password (RFC 2385).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
    /// Address to speak to the router from instead of the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = rule::host("spec.sourceAddress"))]
    #[x_kube(validation = rule::global("spec.sourceAddress"))]
    pub source_address: Option<IpAddr>,
    /// Hops to an eBGP router that is not on the same link; absent: directly connected, and any number between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rule::within("spec.ebgpMultihop", 1, 255, 2))]
    pub ebgp_multihop: Option<u8>,
    /// Accept only packets that have come this many hops (GTSM, RFC 5082); absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rule::within("spec.ttlSecurity", 1, 254, 1))]
    pub ttl_security: Option<u8>,
    /// Time without a message after which the session is dead.
    #[serde(default = "bgp::ninety_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.holdTime", "3s", "65535s", "90s"))]
    pub hold_time: kube::core::Duration,
    /// Time between keepalives.
    #[serde(default = "bgp::thirty_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.keepaliveTime", "1s", "65535s", "30s"))]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to connect.
    #[serde(default = "bgp::five_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.connectRetryTime", "1s", "65535s", "5s"))]
    pub connect_retry_time: kube::core::Duration,
    /// Bidirectional forwarding detection (RFC 5880); absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Graceful restart (RFC 4724); absent: on, 120s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// Largest number of prefixes taken from the peer; those beyond are left out and named in the status. Absent: 20000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rule::within("spec.maxPrefixes", 1, u32::MAX, 20_000))]
    pub max_prefixes: Option<u32>,
    /// Next hop in what is announced to the peer.
    #[serde(default)]
    pub next_hop_mode: NextHopMode,
    /// Communities added to what is announced to the peer: standard ones (RFC 1997) as `64512:100`, large ones (RFC 8092) as
    /// `64512:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    #[x_kube(validation = rule::communities("spec.communities"))]
    pub communities: Vec<String>,
    /// What is taken from the peer and announced to it, where that is not our pools and the node's own blocks.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Password {
    /// A key of a Secret in the release's namespace.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rule::name("spec.password.secretKeyRef.name", "bgp-passwords"))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("spec.password.secretKeyRef.key must be a key of a Secret, for example tor-r1"))]
    pub key: String,
}

/// What the operator says about a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerStatus {
    /// The generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes by state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<PeerNodes>,
    /// The last error of some nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<PeerError>,
    /// Prefixes over all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Prefixes>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Nodes of a peer by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerNodes {
    /// Nodes that should have the session.
    pub total: i64,
    /// Nodes that have it.
    pub established: i64,
}

/// Why a node has no session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerError {
    /// The node.
    pub node: String,
    /// Since when.
    pub since: Time,
    /// Why, in one word.
    pub reason: SessionFault,
    /// One sentence.
    pub message: String,
}

/// Prefixes exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Prefixes {
    /// Taken from the peer.
    pub received: i64,
    /// Announced to the peer.
    pub advertised: i64,
}
