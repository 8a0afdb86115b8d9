//! `NodeNetwork`: what one node is to do, and what it has done.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::{NodeBgp, SessionStatus};
use crate::network_mode::{EncapsulateWhen, ProbeProtocol, UdpParameters, VxlanParameters};
use crate::node_address::{AddressSelectors, FoundAddress};
use crate::node_subnet::NodeAddresses;
use crate::schema;

/// One node's part of the network. The spec is the operator's, the status the agent's.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netweft.io",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nn",
    category = "netweft",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    doc = "What one node is to do (spec, written by the operator) and what it has done (status, written by its agent).",
    printcolumn(name = "IPv4", type_ = "string", json_path = ".spec.addresses.ipv4"),
    printcolumn(name = "IPv6", type_ = "string", json_path = ".spec.addresses.ipv6"),
    printcolumn(name = "Subnets", type_ = "string", json_path = ".spec.subnets"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.mtu"),
    printcolumn(name = "Pods", type_ = "string", json_path = ".status.subnets[*].used"),
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
pub struct NodeNetworkSpec {
    /// The node's own addresses, to which the others send.
    #[serde(default)]
    pub addresses: NodeAddresses,
    /// How the operator chooses `addresses`, as far as that takes what only the node knows; the agent answers in `status.addresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_selectors: Option<AddressSelectors>,
    /// The node's blocks, oldest first: the first of each pool holds the tunnel address.
    #[serde(default)]
    #[schemars(schema_with = "schema::cidrs")]
    pub subnets: Vec<IpNet>,
    /// The pools that pods of this node get addresses from, those without a block here included: where the node has none,
    /// a pod must wait for one and not get an address of another pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub pools: Vec<String>,
    /// What the node receives and how it sends, by NetworkMode. Parameters are resolved here and not looked up in the
    /// NetworkMode, so that one generation of this object describes one complete behaviour and its
    /// `observedGeneration` acknowledges it.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub modes: Vec<NodeMode>,
    /// The node's BGP speaker; absent: no NetworkMode of mode underlay is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgp>,
}

/// One way between nodes. A NetworkMode is one, and while it changes more than one: the way that is sent by, and those that stand by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMode {
    /// Name of the NetworkMode.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The IPPools to whose blocks packets are sent this way. They stand here and are not looked up in the pools, so that an
    /// edit of a pool's `networkMode` takes effect when the operator says so, node by node.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub pools: Vec<String>,
    /// The IPPools whose packets are received this way as well, while the way to them changes. Everything that sending takes is
    /// there, behind what is in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub standby: Vec<String>,
    /// Ways in which packets are received: `send`, for agents of versions that ask for it.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub accept: Vec<Transport>,
    /// The way.
    pub send: Transport,
    /// Family of the node addresses that tunnels run between: one for the whole mode, whatever the tunnels carry.
    #[serde(default)]
    pub outer_family: IpFamily,
    /// Whether peers on the same link are sent to without encapsulation.
    #[serde(default)]
    pub encapsulate_when: EncapsulateWhen,
    /// Bytes of the largest packet of a pod; 0: measured.
    #[serde(default)]
    pub mtu: u32,
    /// How the node tests this way to the pools in `standby`.
    #[serde(default, skip_serializing_if = "ProbeProtocol::is_default")]
    pub probe: ProbeProtocol,
}

/// A version of the Internet Protocol.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 (RFC 791).
    #[default]
    Ipv4,
    /// IPv6 (RFC 8200).
    Ipv6,
}

impl IpFamily {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }
}

impl std::fmt::Display for IpFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// A way from node to node with its parameters; exactly one member is set.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.vxlan), has(self.ipip), has(self.udp), has(self.direct), has(self.bgp)].filter(given, given).size() == 1").message("a transport is exactly one of vxlan, ipip, udp, direct and bgp"))]
pub struct Transport {
    /// VXLAN in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanParameters>,
    /// IP in IP in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipip: Option<Unparameterised>,
    /// UDP by the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpParameters>,
    /// Plain, by next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<Unparameterised>,
    /// Plain, by BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<Unparameterised>,
}

/// A transport that has no parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unparameterised {}

/// What a [`Transport`] says, one case at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// VXLAN in the kernel.
    Vxlan(VxlanParameters),
    /// IP in IP in the kernel.
    Ipip,
    /// UDP by the relay.
    Udp(UdpParameters),
    /// Plain, by next hop.
    Direct,
    /// Plain, by BGP.
    Bgp,
}

impl Transport {
    /// The member that is set; `None` if it is none that this version knows, or more than one.
    #[must_use]
    pub fn way(&self) -> Option<Way> {
        let mut given = [
            self.vxlan.map(Way::Vxlan),
            self.ipip.map(|Unparameterised {}| Way::Ipip),
            self.udp.map(Way::Udp),
            self.direct.map(|Unparameterised {}| Way::Direct),
            self.bgp.map(|Unparameterised {}| Way::Bgp),
        ]
        .into_iter()
        .flatten();
        given.next().filter(|_| given.next().is_none())
    }
}

impl From<Way> for Transport {
    fn from(way: Way) -> Self {
        let mut transport = Self::default();
        match way {
            Way::Vxlan(parameters) => transport.vxlan = Some(parameters),
            Way::Ipip => transport.ipip = Some(Unparameterised {}),
            Way::Udp(parameters) => transport.udp = Some(parameters),
            Way::Direct => transport.direct = Some(Unparameterised {}),
            Way::Bgp => transport.bgp = Some(Unparameterised {}),
        }
        transport
    }
}

impl NodeMode {
    /// Whether packets travel the same way by both, whatever the NetworkModes are called and whomever they are for.
    #[must_use]
    pub fn same_way(&self, other: &Self) -> bool {
        let key = |mode: &Self| {
            (
                mode.send,
                mode.outer_family,
                mode.encapsulate_when,
                mode.mtu,
            )
        };
        key(self) == key(other)
    }

    /// The pools to which there is this way, in use or standing by.
    pub fn all_pools(&self) -> impl Iterator<Item = &String> {
        self.pools.iter().chain(&self.standby)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vxlan(_) => "vxlan",
            Self::Ipip => "ipip",
            Self::Udp(_) => "udp",
            Self::Direct => "host-gw",
            Self::Bgp => "underlay",
        })
    }
}

/// What the agent says about its node, and the operator's condition `Assigned`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// The generation of the spec that the node carries out: the acknowledgement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Addresses of the node that `spec.addressSelectors` ask for, the preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<FoundAddress>,
    /// Addresses by block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<BlockUsage>,
    /// Our links but the pods'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkStatus>,
    /// Our routes by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<RouteCounts>,
    /// Bytes of the largest packet of a new pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Bytes of the largest packet that the links with the node's addresses take.
    #[serde(default, rename = "linkMTU", skip_serializing_if = "Option::is_none")]
    pub link_mtu: Option<u32>,
    /// What pods have asked for that found no block of their pools here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub requests: Vec<BlockRequest>,
    /// Pods that still have an address of a pool that is disabled or being deleted; the first of them, if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub draining: Vec<DrainingPod>,
    /// What came of trying the ways that stand by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub standby: Vec<StandbyStatus>,
    /// BGP sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<SessionStatus>,
    /// What the agent has put right for pods since it started; brought up to date about once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<RepairCounts>,
    /// What somebody else had changed on the node and the agent has put right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// What another pod network has inside the ranges of IPPools, on a node that netweft has never served: while it is there netweft
    /// changes nothing on the node. The first of them, if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub other_networks: Vec<OtherNetwork>,
    /// `Assigned` (the operator's), `Ready`, `Reconciling`, `Stalled` (the agent's).
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A route or an address of another pod network inside the range of an IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OtherNetwork {
    /// The route's destination, or the address's network.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: IpNet,
    /// Name of the IPPool.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// Name of the link, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub interface: Option<String>,
}

/// Addresses of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockUsage {
    /// The block.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: IpNet,
    /// Addresses that pods have.
    pub used: i64,
    /// Addresses that can be given to pods.
    pub free: i64,
}

/// A way that stands by, tried by requests to other nodes' addresses in their blocks. Where there are many nodes a part of them
/// is asked, each node another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StandbyStatus {
    /// Name of the NetworkMode.
    pub mode: String,
    /// The way: vxlan, ipip, udp, host-gw or underlay.
    #[schemars(length(max = 16))]
    pub way: String,
    /// Nodes that are asked.
    pub asked: i64,
    /// Those of them that have not answered yet, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub silent: Vec<String>,
    /// How they are asked, for example `ICMP echo` and `UDP port 9471`; an answer by one of them is enough. Absent: by ICMP echo.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub protocols: Vec<String>,
    /// Why one of them was not even asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Pods wait for a first block of any of these pools.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct BlockRequest {
    /// Names of the IPPools, the preferred first.
    #[schemars(length(min = 1, max = 64))]
    pub pools: Vec<String>,
}

/// A pod that keeps an address of a pool which shall be without pods.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct DrainingPod {
    /// Name of the IPPool.
    pub pool: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

/// One of our links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// The tunnel's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// Routes to other nodes' blocks by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteCounts {
    /// Through a tunnel.
    pub tunnel: i64,
    /// By next hop.
    pub direct: i64,
    /// Learnt by BGP.
    pub bgp: i64,
}

/// What of ours somebody else had changed: links, addresses, routes, neighbours, forwarding entries, the nft table, kernel
/// parameters, files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriftStatus {
    /// How often something was put right since the agent started.
    pub repairs: i64,
    /// When that was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
    /// What was found then and what was wanted, and who had changed it, where the kernel says so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What was put right for pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepairCounts {
    /// Links, routes and neighbours of pods that somebody else had damaged.
    pub restored: i64,
    /// Addresses, links, routes and neighbours that no pod had any more.
    pub reclaimed: i64,
}
