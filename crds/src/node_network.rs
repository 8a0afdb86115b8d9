//! `NodeNetwork`: the desired and the actual state of one node.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::{NodeBgp, SessionStatus};
use crate::condition;
use crate::ip_family::IpFamily;
use crate::network_mode::{EncapsulateWhen, ProbeProtocol, UdpParameters, VxlanParameters};
use crate::node_address::{AddressSelectors, FoundAddress};
use crate::node_subnet::NodeAddresses;
use crate::schema;

/// Most addresses in `spec.peersWithoutBlocks`.
pub const MAX_PEERS_WITHOUT_BLOCKS: usize = 256;

/// The network of one node. The operator writes the spec, the node's agent writes the status.
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
    doc = "The pod network of one node: what its agent programs (spec, written by the operator) and the result (status, written by the agent).",
    printcolumn(name = "IPv4", type_ = "string", json_path = ".spec.addresses.ipv4"),
    printcolumn(name = "IPv6", type_ = "string", json_path = ".spec.addresses.ipv6"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.mtu")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// Node addresses, at most one of each family. Other nodes send packets for this node's pods to them.
    #[serde(default)]
    pub addresses: NodeAddresses,
    /// Selectors from the NetworkModes that only the node itself can resolve. The agent reports the matches in status.addresses, and
    /// the operator chooses spec.addresses from these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_selectors: Option<AddressSelectors>,
    /// Blocks of pod addresses that this node owns, oldest first. The oldest block of each pool also holds the tunnel address.
    #[serde(default)]
    #[schemars(schema_with = "schema::cidrs")]
    pub subnets: Vec<IpNet>,
    /// Addresses of other nodes without a block, which no NodeSubnet names. The node accepts encapsulated packets from these addresses
    /// too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::peers_without_blocks")]
    pub peers_without_blocks: Vec<IpAddr>,
    /// Names of the IPPools that give addresses to pods of this node, including pools without a block here: a pod of such a pool
    /// waits for a block and gets no address of another pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::object_names")]
    pub pools: Vec<String>,
    /// Datapaths of this node. All parameters are resolved here, so that status.observedGeneration acknowledges one complete
    /// behaviour.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub modes: Vec<NodeMode>,
    /// BGP speaker of this node. Absent: no NetworkMode in use has mode underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgp>,
}

/// One datapath between nodes. While a NetworkMode changes, a node has several: one that is in use and others in standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMode {
    /// Name of the NetworkMode.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Names of the IPPools whose pods are reached over this datapath. The list is part of this object, so that an edit of
    /// IPPool.spec.networkMode takes effect node by node.
    #[serde(default)]
    #[schemars(schema_with = "schema::object_names")]
    pub pools: Vec<String>,
    /// Names of the IPPools for which this datapath is ready but not in use: packets are received over it, routes to it have a lower
    /// priority, and probes test it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::object_names")]
    pub standby_pools: Vec<String>,
    /// How packets travel to other nodes.
    pub transport: TransportSource,
    /// IP family of the node addresses between which tunnels run, whatever family the tunnels carry.
    #[serde(default)]
    pub outer_family: IpFamily,
    /// Whether packets to nodes on the same link are encapsulated as well.
    #[serde(default)]
    pub encapsulate_when: EncapsulateWhen,
    /// Largest packet of a pod in bytes. 0: measured by the agent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: u32,
    /// Protocol of the probes that test this datapath for the pools in standbyPools.
    #[serde(default, skip_serializing_if = "ProbeProtocol::is_default")]
    pub probe: ProbeProtocol,
}

/// How packets travel to other nodes; exactly one member is set.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.vxlan), has(self.ipip), has(self.udp), has(self.direct), has(self.bgp)].filter(given, given).size() == 1").message("a transport is exactly one of vxlan, ipip, udp, direct and bgp"))]
pub struct TransportSource {
    /// VXLAN tunnel of the kernel (RFC 7348).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanParameters>,
    /// IP-in-IP tunnel of the kernel (RFC 2003).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipip: Option<NoParameters>,
    /// UDP tunnel of the userspace relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpParameters>,
    /// Routes with the other node's address as next hop (mode host-gw).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<NoParameters>,
    /// Routes that BGP distributes (mode underlay).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NoParameters>,
}

/// A transport without parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoParameters {}

/// A [`TransportSource`] as an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// VXLAN tunnel of the kernel.
    Vxlan(VxlanParameters),
    /// IP-in-IP tunnel of the kernel.
    Ipip,
    /// UDP tunnel of the userspace relay.
    Udp(UdpParameters),
    /// Routes with the other node's address as next hop.
    Direct,
    /// Routes that BGP distributes.
    Bgp,
}

/// The kinds of transport, with the names of the members of a [`TransportSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TransportType {
    /// VXLAN tunnel of the kernel.
    Vxlan,
    /// IP-in-IP tunnel of the kernel.
    Ipip,
    /// UDP tunnel of the userspace relay.
    Udp,
    /// Routes with the other node's address as next hop.
    Direct,
    /// Routes that BGP distributes.
    Bgp,
}

impl TransportSource {
    /// The member that is set; `None` if a newer version has set a member that this version lacks, or if several are set.
    #[must_use]
    pub fn get(&self) -> Option<Transport> {
        let mut members = [
            self.vxlan.map(Transport::Vxlan),
            self.ipip.map(|NoParameters {}| Transport::Ipip),
            self.udp.map(Transport::Udp),
            self.direct.map(|NoParameters {}| Transport::Direct),
            self.bgp.map(|NoParameters {}| Transport::Bgp),
        ]
        .into_iter()
        .flatten();
        members.next().filter(|_| members.next().is_none())
    }
}

impl From<Transport> for TransportSource {
    fn from(transport: Transport) -> Self {
        let mut source = Self::default();
        match transport {
            Transport::Vxlan(parameters) => source.vxlan = Some(parameters),
            Transport::Ipip => source.ipip = Some(NoParameters {}),
            Transport::Udp(parameters) => source.udp = Some(parameters),
            Transport::Direct => source.direct = Some(NoParameters {}),
            Transport::Bgp => source.bgp = Some(NoParameters {}),
        }
        source
    }
}

impl From<Transport> for TransportType {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Vxlan(_) => Self::Vxlan,
            Transport::Ipip => Self::Ipip,
            Transport::Udp(_) => Self::Udp,
            Transport::Direct => Self::Direct,
            Transport::Bgp => Self::Bgp,
        }
    }
}

impl NodeMode {
    /// Whether both datapaths are the same, apart from the names of the NetworkModes and the pools.
    #[must_use]
    pub fn same_transport(&self, other: &Self) -> bool {
        let key = |mode: &Self| {
            (
                mode.transport,
                mode.outer_family,
                mode.encapsulate_when,
                mode.mtu,
            )
        };
        key(self) == key(other)
    }

    /// The pools that have this datapath, in use or in standby.
    pub fn all_pools(&self) -> impl Iterator<Item = &String> {
        self.pools.iter().chain(&self.standby_pools)
    }
}

impl std::fmt::Display for TransportType {
    /// The value in a NetworkMode: the encapsulation, or the mode of a datapath without encapsulation.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Udp => "udp",
            Self::Direct => "host-gw",
            Self::Bgp => "underlay",
        })
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        TransportType::from(*self).fmt(f)
    }
}

/// The state of a node, written by its agent, except for the condition `Assigned`, which the operator writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// Generation of the spec that the agent has programmed completely.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Node addresses that match spec.addressSelectors, preferred ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<FoundAddress>,
    /// Pods of this node that have addresses of netweft. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pods: Option<i64>,
    /// Utilization of each block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub subnets: Vec<BlockUsage>,
    /// Links of netweft on this node, except for those of pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub links: Vec<LinkStatus>,
    /// Number of routes to blocks of other nodes, by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<RouteCounts>,
    /// MTU of new pods in bytes; the smallest, if pools differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: Option<u32>,
    /// MTU in bytes of the links that carry traffic to other nodes; the smallest, if they differ.
    #[serde(default, rename = "linkMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub link_mtu: Option<u32>,
    /// Requests of pods for a block of pools that have none on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub block_requests: Vec<BlockRequest>,
    /// Pods that still have an address of an IPPool that is disabled or being deleted; the first 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub draining_pods: Vec<DrainingPod>,
    /// Results of the probes over each datapath in standby.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub probes: Vec<ProbeStatus>,
    /// BGP sessions of this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2048))]
    pub sessions: Vec<SessionStatus>,
    /// Number of repairs for pods since the agent started, updated about once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<RepairCounts>,
    /// External changes of netweft's kernel objects and files that the agent has repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// Routes and addresses of another pod network inside the range of an IPPool. While there are any on a node that netweft has never
    /// served, the agent programs nothing. The first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub other_networks: Vec<OtherNetwork>,
    /// Conditions Ready, Reconciling and Stalled, written by the agent, and Assigned, written by the operator.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A route or an address of another pod network inside the range of an IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OtherNetwork {
    /// Destination of the route, or network of the address.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: IpNet,
    /// Name of the IPPool.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// Name of the link that has the route or address. Absent: the route has no link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub interface: Option<String>,
}

/// Utilization of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockUsage {
    /// The block.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: IpNet,
    /// Number of addresses that pods have.
    #[schemars(range(min = 0))]
    pub used: i64,
    /// Number of addresses that new pods can get.
    #[schemars(range(min = 0))]
    pub free: i64,
}

/// Result of the probes over one datapath in standby. Where a pool has many nodes, each node probes a different sample of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeStatus {
    /// Name of the NetworkMode.
    #[schemars(length(min = 1, max = 253))]
    pub mode: String,
    /// Transport of the datapath, as in spec.modes[].transport.
    pub transport: TransportType,
    /// Number of nodes that are probed.
    #[schemars(range(min = 0))]
    pub probed: i64,
    /// Names of the probed nodes that have not replied yet; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::object_names")]
    pub unreachable: Vec<String>,
    /// Protocols of the probes, for example `ICMP echo` and `UDP port 9471`. A reply by one of them is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::short_texts")]
    pub protocols: Vec<String>,
    /// Why a probe could not be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub message: Option<String>,
}

impl NodeNetworkStatus {
    /// The status with each message truncated to its bound. The API server refuses a status with one longer message.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let drift = self.drift.iter_mut().map(|drift| &mut drift.message);
        let sessions = self.sessions.iter_mut();
        let sessions = sessions.map(|session| &mut session.message);
        let probes = self.probes.iter_mut();
        let probes = probes.filter_map(|probe| probe.message.as_mut());
        for message in drift.chain(sessions).chain(probes) {
            *message = condition::bounded(std::mem::take(message));
        }
        self
    }
}

/// Pods wait for a first block of one of these pools.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct BlockRequest {
    /// Names of the IPPools, preferred ones first.
    #[schemars(schema_with = "schema::object_names")]
    pub pools: Vec<String>,
}

/// A pod that keeps an address of an IPPool that is disabled or being deleted.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct DrainingPod {
    /// Name of the IPPool.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// Namespace of the pod.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub name: String,
}

/// A link of netweft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkStatus {
    /// Name of the link.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// MTU of the link in bytes.
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub mtu: u32,
    /// Tunnel address on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub address: Option<IpAddr>,
}

/// Number of routes to blocks of other nodes, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteCounts {
    /// Routes through a tunnel.
    #[schemars(range(min = 0))]
    pub tunnel: i64,
    /// Routes with a node address as next hop.
    #[schemars(range(min = 0))]
    pub direct: i64,
    /// Routes that BIRD has installed.
    #[schemars(range(min = 0))]
    pub bgp: i64,
}

/// External changes of netweft's links, addresses, routes, neighbours, forwarding entries, nftables table, sysctls and files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftStatus {
    /// Number of repairs since the agent started.
    #[schemars(range(min = 0))]
    pub repairs: i64,
    /// Time of the last repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_repair_time: Option<Time>,
    /// The last repair: what the agent found, what it expected, and which process had changed it, if the kernel names one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// Number of repairs for pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepairCounts {
    /// Links, routes and neighbours of pods that were restored after an external change.
    #[schemars(range(min = 0))]
    pub restored: i64,
    /// Addresses, links, routes and neighbours that were removed because no pod had them any more.
    #[schemars(range(min = 0))]
    pub reclaimed: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::MAX_MESSAGE;

    #[test]
    fn overlong_messages_of_status_are_truncated() {
        let long = "x".repeat(MAX_MESSAGE + 1);
        let status: NodeNetworkStatus = serde_json::from_value(serde_json::json!({
            "drift": {"repairs": 1, "message": long},
            "sessions": [{
                "name": "a", "peerIP": "192.0.2.1", "state": "Idle", "received": 0, "advertised": 0, "message": long,
            }],
            "probes": [{"mode": "a", "transport": "vxlan", "probed": 1, "message": long}],
        }))
        .unwrap();
        let status = status.bounded();
        let drift = status.drift.map(|drift| drift.message);
        let session = status.sessions.into_iter().map(|session| session.message);
        let probe = status.probes.into_iter().filter_map(|probe| probe.message);
        let messages: Vec<String> = drift.into_iter().chain(session).chain(probe).collect();
        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|message| message.len() == MAX_MESSAGE));
    }
}
