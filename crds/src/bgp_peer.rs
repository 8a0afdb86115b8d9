//! `BGPPeer`: BGP sessions of nodes with routers or with other nodes.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::{Bfd, Filters, GracefulRestart, NextHopMode, SessionFault};
use crate::{bgp, cel, schema};

/// BGP sessions of nodes with a router or with other nodes.
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
    doc = "BGP sessions of nodes with a router or with other nodes. Only nodes of NetworkModes with mode underlay have sessions.",
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peerIP"),
    printcolumn(name = "AS", type_ = "integer", json_path = ".spec.asNumber"),
    printcolumn(
        name = "Established",
        type_ = "integer",
        json_path = ".status.nodes.established"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
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
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.peerIP) != has(self.peerSelector)").message("spec takes exactly one of peerIP (a router, for example 10.1.0.1) and peerSelector (other nodes)"))]
#[x_kube(validation = Rule::new("has(self.peerIP) == has(self.asNumber)").message("spec.asNumber belongs to spec.peerIP: give both, for example {peerIP: 10.1.0.1, asNumber: 65001}; nodes chosen by peerSelector have the number of their NetworkMode"))]
#[x_kube(validation = cel::keepalive_before_hold("spec"))]
#[x_kube(validation = Rule::new("!has(self.ebgpMultihop) || !has(self.ttlSecurity)").message("spec takes at most one of ebgpMultihop (for example 2) and ttlSecurity (for example 1)"))]
#[x_kube(validation = Rule::new("!has(self.peerIP) || !has(self.sourceAddress) || !isIP(self.peerIP) || !isIP(self.sourceAddress) || ip(self.peerIP).family() == ip(self.sourceAddress).family()").message("spec.sourceAddress must be of the family of spec.peerIP, for example 10.1.0.14 for 10.1.0.1"))]
#[x_kube(validation = Rule::new("!has(self.sourceAddress) || has(self.peerIP)").message("spec.sourceAddress belongs to spec.peerIP: sessions with nodes of peerSelector use the node addresses; remove spec.sourceAddress"))]
#[x_kube(validation = Rule::new("!has(self.peerSelector) || self.nextHopMode != 'self'").message("spec.nextHopMode self is for routers: a node accepts a block from other nodes only with the owner of the block as next hop; set auto or keep"))]
pub struct BGPPeerSpec {
    /// Label selector of the Nodes that have this session. Absent: all Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = cel::selector("spec.nodeSelector"))]
    pub node_selector: Option<LabelSelector>,
    /// Address of the router. Exactly one of peerIP and peerSelector is required.
    #[serde(default, rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = cel::host("spec.peerIP"))]
    #[x_kube(validation = cel::global("spec.peerIP"))]
    pub peer_ip: Option<IpAddr>,
    /// TCP port of the router. Nodes listen on spec.underlay.listenPort of their NetworkMode.
    #[serde(default = "bgp::port")]
    #[x_kube(validation = cel::port("spec.peerPort", 179))]
    pub peer_port: u16,
    /// Label selector of Nodes as peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = cel::selector("spec.peerSelector"))]
    pub peer_selector: Option<LabelSelector>,
    /// AS number of the router; required with peerIP. A plain number, also beyond 65535: a number in dotted notation (RFC 5396) is the first
    /// part times 65536 plus the second, for example 4200000000 for 64086.59904.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = cel::as_number("spec.asNumber"))]
    pub as_number: Option<u32>,
    /// AS number of the nodes in this session, if it differs from that of the node. A plain number.
    #[serde(
        default,
        rename = "localASNumber",
        skip_serializing_if = "Option::is_none"
    )]
    #[x_kube(validation = cel::as_number("spec.localASNumber"))]
    pub local_as_number: Option<u32>,
    /// TCP MD5 password of the session (RFC 2385). Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
    /// Address of the node in this session. Absent: the node address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = cel::host("spec.sourceAddress"))]
    #[x_kube(validation = cel::global("spec.sourceAddress"))]
    pub source_address: Option<IpAddr>,
    /// Maximum number of hops to an eBGP router. Absent: the router is on the same link. Between nodes any number is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = cel::within("spec.ebgpMultihop", 1, 255, 2))]
    pub ebgp_multihop: Option<u8>,
    /// Number of hops that packets of the peer may travel (GTSM, RFC 5082). Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = cel::within("spec.ttlSecurity", 1, 254, 1))]
    pub ttl_security: Option<u8>,
    /// Hold time (RFC 4271): the session ends without messages for this time.
    #[serde(default = "bgp::ninety_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.holdTime", "3s", "65535s", "90s"))]
    pub hold_time: kube::core::Duration,
    /// Time between KEEPALIVE messages.
    #[serde(default = "bgp::thirty_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.keepaliveTime", "1s", "65535s", "30s"))]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to establish the session.
    #[serde(default = "bgp::five_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.connectRetryTime", "1s", "65535s", "5s"))]
    pub connect_retry_time: kube::core::Duration,
    /// Bidirectional forwarding detection (RFC 5880). Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Graceful restart (RFC 4724). Absent: enabled with a restart time of 120s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// Maximum number of prefixes accepted from the peer. Further prefixes are ignored, and the status reports them. Absent: 20000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = cel::within("spec.maxPrefixes", 1, u32::MAX, 20_000))]
    pub max_prefixes: Option<u32>,
    /// Next hop of advertised prefixes. auto: the node for its own blocks; reflected prefixes keep their next hop. self: the node for all
    /// prefixes, only with peerIP. keep: next hops are never changed.
    #[serde(default)]
    pub next_hop_mode: NextHopMode,
    /// Communities of prefixes that are advertised to the peer: standard ones (RFC 1997) as `64512:100`, large ones (RFC 8092) as
    /// `64512:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    #[x_kube(validation = cel::communities("spec.communities"))]
    pub communities: Vec<String>,
    /// Import and export rules. Without rules, nodes accept blocks of IPPools from the peer and advertise their own blocks.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
}

/// Source of a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Password {
    /// Key of a Secret in the namespace of the Helm release.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = cel::name("spec.password.secretKeyRef.name", "bgp-passwords"))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("spec.password.secretKeyRef.key must be a key of a Secret, for example tor-r1"))]
    pub key: String,
}

/// The state of a BGPPeer, written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Number of nodes by state of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<PeerNodes>,
    /// Faults of sessions, oldest first; the first 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub errors: Vec<PeerError>,
    /// Number of prefixes over all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Prefixes>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Number of nodes by state of the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerNodes {
    /// Number of nodes that are to have the session.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Number of nodes with an established session.
    #[schemars(range(min = 0))]
    pub established: i64,
}

/// Fault of the session of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerError {
    /// Name of the Node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Time of the last change of the session's state.
    pub last_transition_time: Time,
    /// The fault as one word.
    pub reason: SessionFault,
    /// The fault for people, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Number of prefixes over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Prefixes {
    /// Number of prefixes accepted from the peer.
    #[schemars(range(min = 0))]
    pub received: i64,
    /// Number of prefixes advertised to the peer.
    #[schemars(range(min = 0))]
    pub advertised: i64,
}
