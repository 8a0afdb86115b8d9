//! The inputs of the agent as plain data: the validated objects of the API, and the state of the node's pods.
//!
//! ```text
//!   Objects {IPPool*, NodeSubnet*, own NodeNetwork} ──Inputs::new──▶ Inputs {own blocks, peers' blocks, pools, modes}
//!   attachments, node.json ──PodState::of──▶ Inputs.pods
//! ```
//!
//! An invalid part of an object becomes a problem, and the rest is used.

pub mod bgp_routes;
pub mod block_requests;
pub mod draining_pods;
pub mod file_events;
pub mod host_facts;
pub mod ipv6_support;
pub mod lost_blocks;
pub mod node_address_candidates;
pub mod other_network_detection;
pub mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kube::core::{Expression, Selector, SelectorExt};
use netweft_crds::{
    IPPool, IpFamily, NodeAddresses, NodeBgp, NodeMode, NodeNetwork, NodeSubnet, PodInterface,
    SubnetState, Transport, names,
};

use crate::pods::PodState;
use crate::status::cause::Cause;
use crate::status::problem::{Problem, Problems};

/// Labels of namespaces by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// The last received version of the watched objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// All IPPools.
    pub pools: Vec<IPPool>,
    /// All NodeSubnets.
    pub subnets: Vec<NodeSubnet>,
    /// Labels of all namespaces by name; empty unless a pool has a namespace selector.
    pub namespaces: Namespaces,
    /// The NodeNetwork of this node.
    pub network: Option<NodeNetwork>,
    /// Objects that do not match their schema.
    pub unreadable: Problems,
}

/// The inputs of the desired state, except the host facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// Name of the Node.
    pub node: String,
    /// The node's addresses, as the operator has selected them.
    pub addresses: NodeAddresses,
    /// The modes of the node, each with its pools.
    pub modes: Vec<NodeMode>,
    /// The pools from which pods of this node get addresses. The node may have no block of some.
    pub serving_pools: Vec<String>,
    /// Addresses of other nodes, with or without blocks. Without those of this node: an IPv6 packet with such a source
    /// that comes in by a link is forged, and the kernel accepts it.
    pub nodes: BTreeSet<IpAddr>,
    /// Labels of all namespaces by name; empty unless a pool has a namespace selector.
    pub namespaces: Namespaces,
    /// The node's own blocks, oldest first.
    pub blocks: Vec<OwnBlock>,
    /// Blocks whose NodeSubnet names this node, and that are not in its NodeNetwork any more.
    pub withdrawn: Vec<IpNet>,
    /// The routed blocks of other nodes.
    pub remote: Vec<RemoteBlock>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// The node's BGP speaker; `None` while BGP is off.
    pub bgp: Option<NodeBgp>,
    /// The state of the node's pods.
    pub pods: PodState,
    /// Invalid parts of the objects.
    pub problems: Problems,
}

/// A block of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnBlock {
    /// The block.
    pub cidr: IpNet,
    /// Its pool.
    pub pool: String,
}

/// A block of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteBlock {
    /// The block.
    pub cidr: IpNet,
    /// Its pool.
    pub pool: String,
    /// The node that owns it.
    pub node: String,
    /// The addresses of the node.
    pub addresses: NodeAddresses,
    /// MTU of the node's link in bytes, if it is smaller than that of other nodes.
    pub link_mtu: Option<u32>,
}

/// The validated spec of an IPPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The whole range.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_prefix: u8,
    /// Whether its blocks are not advertised by BGP.
    pub bgp_export_disabled: bool,
    /// Whether packets of pods to destinations outside the pools are masqueraded.
    pub nat_outgoing: bool,
    /// Destinations outside the pools that are not masqueraded.
    pub nat_exclude: Vec<IpNet>,
    /// Addresses that no pod gets.
    pub reserved: Vec<IpNet>,
    /// How pods are attached.
    pub pod_interface: PodInterface,
    /// Whether pods get no new addresses.
    pub disabled: bool,
    /// Whether the pool is drained: it is disabled or being deleted.
    pub draining: bool,
    /// Whether a node selector limits the pool to some nodes.
    pub has_node_selector: bool,
    /// Selects the namespaces whose pods get addresses; `None`: all namespaces.
    pub namespace_selector: Option<Selector>,
}

impl Inputs {
    /// The inputs of `node`. `network` is the NodeNetwork in `objects`.
    #[must_use]
    pub fn new(node: &str, objects: &Objects, network: &NodeNetwork, pods: PodState) -> Self {
        let mut problems = objects.unreadable.clone();
        let pools = objects
            .pools
            .iter()
            .filter_map(|pool| validated_pool(pool, &mut problems))
            .collect();
        let mut inputs = Self {
            node: node.to_owned(),
            addresses: network.spec.addresses,
            modes: network.spec.modes.clone(),
            serving_pools: network.spec.pools.clone(),
            nodes: nodes(node, objects, network),
            namespaces: objects.namespaces.clone(),
            blocks: own_blocks(node, objects, network, &mut problems),
            withdrawn: withdrawn_blocks(node, objects, network),
            remote: remote_blocks(node, objects),
            pools,
            bgp: network.spec.bgp.clone(),
            pods,
            problems,
        };
        inputs.drop_blocks_without_pool();
        inputs.drop_nodes_with_equal_mac();
        inputs
    }

    /// The mode in use for the blocks of a pool.
    #[must_use]
    pub fn mode_of(&self, pool: &str) -> Option<&NodeMode> {
        self.modes
            .iter()
            .find(|mode| mode.pools.iter().any(|name| name == pool))
    }

    /// All modes for the blocks of a pool, in use or in standby.
    pub fn modes_to(&self, pool: &str) -> impl Iterator<Item = &NodeMode> {
        let has_pool = move |mode: &&NodeMode| mode.all_pools().any(|name| name == pool);
        self.modes.iter().filter(has_pool)
    }

    /// Whether a mode of the pool, in use or in standby, uses BGP.
    #[must_use]
    pub fn is_underlay(&self, pool: &str) -> bool {
        let mut modes = self.modes_to(pool);
        modes.any(|mode| mode.transport.get() == Some(Transport::Bgp))
    }

    /// The namespaces that match a selector.
    #[must_use]
    pub fn namespaces_of(&self, selector: &Selector) -> BTreeSet<String> {
        let namespaces = self.namespaces.iter();
        let matching = namespaces.filter(|(_, labels)| selector.matches(labels));
        matching.map(|(name, _)| name.clone()).collect()
    }

    /// The address of this node at which the tunnels of a mode end.
    #[must_use]
    pub fn tunnel_endpoint(&self, mode: &NodeMode) -> Option<IpAddr> {
        self.addresses.of(mode.outer_family)
    }

    /// Whether any node has a block of this family.
    #[must_use]
    pub fn carries(&self, family: IpFamily) -> bool {
        let own = self.blocks.iter().map(|block| block.cidr);
        let remote = self.remote.iter().map(|block| block.cidr);
        own.chain(remote)
            .any(|cidr| IpFamily::of(cidr.addr()) == family)
    }

    fn drop_blocks_without_pool(&mut self) {
        let Self {
            blocks,
            remote,
            pools,
            problems,
            ..
        } = self;
        let mut has_pool = |cidr: &IpNet, pool: &str| {
            let exists = pools.contains_key(pool);
            if !exists {
                let cause = Cause::BlockWithoutPool {
                    block: *cidr,
                    pool: pool.to_owned(),
                };
                problems.push(Problem::from(cause));
            }
            exists
        };
        blocks.retain(|block| has_pool(&block.cidr, &block.pool));
        remote.retain(|block| has_pool(&block.cidr, &block.pool));
    }

    /// Of several nodes whose tunnel endpoints have the same MAC address, only the one that sorts first is reachable. This node
    /// precedes all others.
    fn drop_nodes_with_equal_mac(&mut self) {
        let mut owners: BTreeMap<[u8; 6], String> = BTreeMap::new();
        owners.insert(names::vtep_mac(&self.node), self.node.clone());
        let mut nodes: Vec<&str> = self
            .remote
            .iter()
            .map(|block| block.node.as_str())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut dropped = Vec::new();
        for node in nodes {
            let owner = owners
                .entry(names::vtep_mac(node))
                .or_insert_with(|| node.to_owned());
            if owner != node {
                dropped.push(node.to_owned());
                let cause = Cause::TunnelMacConflict {
                    node: node.to_owned(),
                    owner: owner.clone(),
                };
                self.problems.push(Problem::from(cause));
            }
        }
        self.remote.retain(|block| !dropped.contains(&block.node));
    }
}

/// A pool with its name. Invalid parts become problems.
fn validated_pool(pool: &IPPool, problems: &mut Problems) -> Option<(String, Pool)> {
    let name = pool.metadata.name.clone()?;
    let spec = &pool.spec;
    let mut reserved = Vec::new();
    for text in &spec.reserved {
        match parse_range(text) {
            Some(range) => reserved.push(range),
            None => problems.push(Problem::from(Cause::ReservedInvalid {
                pool: name.clone(),
                text: text.clone(),
            })),
        }
    }
    let validated = Pool {
        cidr: spec.cidr,
        block_prefix: spec.block_prefix(),
        bgp_export_disabled: spec.disable_bgp_export,
        nat_outgoing: spec.nat_outgoing,
        nat_exclude: spec.nat_outgoing_exclude.iter().map(IpNet::trunc).collect(),
        reserved,
        pod_interface: spec.pod_interface,
        disabled: spec.disabled,
        draining: spec.disabled || pool.metadata.deletion_timestamp.is_some(),
        has_node_selector: spec.node_selector.is_some(),
        namespace_selector: namespace_selector(&name, pool, problems),
    };
    Some((name, validated))
}

/// An invalid selector matches no namespace, because no address is better than an address of the wrong pool.
fn namespace_selector(name: &str, pool: &IPPool, problems: &mut Problems) -> Option<Selector> {
    let selector = pool.spec.namespace_selector.clone()?;
    Some(Selector::try_from(selector).unwrap_or_else(|_| {
        problems.push(Problem::from(Cause::NamespaceSelectorInvalid {
            pool: name.to_owned(),
        }));
        Selector::from(Expression::In(UNUSED_LABEL.to_owned(), BTreeSet::new()))
    }))
}

/// A label that no namespace has.
const UNUSED_LABEL: &str = "netweft.io/none";

fn parse_range(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok();
    net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|net| net.trunc())
}

/// The node's own blocks in the operator's order. A block is used only if its NodeSubnet names this node, too.
fn own_blocks(
    node: &str,
    objects: &Objects,
    network: &NodeNetwork,
    problems: &mut Problems,
) -> Vec<OwnBlock> {
    let mut blocks = Vec::new();
    for cidr in &network.spec.subnets {
        let owned = objects
            .subnets
            .iter()
            .find(|subnet| subnet.spec.cidr == *cidr && subnet.spec.node == node);
        match owned {
            Some(subnet) => blocks.push(OwnBlock {
                cidr: *cidr,
                pool: subnet.spec.pool.clone(),
            }),
            None => problems.push(Problem::from(Cause::BlockOfOtherNode {
                block: *cidr,
                subnet: names::node_subnet_name(cidr),
            })),
        }
    }
    blocks
}

/// Blocks from which no pod gets an address any more, but in which pods may still have addresses.
fn withdrawn_blocks(node: &str, objects: &Objects, network: &NodeNetwork) -> Vec<IpNet> {
    let owned = objects
        .subnets
        .iter()
        .filter(|subnet| subnet.spec.node == node);
    owned
        .map(|subnet| subnet.spec.cidr)
        .filter(|cidr| !network.spec.subnets.contains(cidr))
        .collect()
}

/// The addresses of other nodes. The nodes of blocks that this node does not use send, too; an orphaned block has no node.
fn nodes(node: &str, objects: &Objects, network: &NodeNetwork) -> BTreeSet<IpAddr> {
    let others = objects.subnets.iter().map(|subnet| &subnet.spec);
    let others = others.filter(|spec| spec.node != node && spec.state == SubnetState::Active);
    let others = others.flat_map(|spec| spec.node_addresses.iter());
    let others = others.chain(network.spec.peers_without_blocks.iter().copied());
    let own: BTreeSet<IpAddr> = network.spec.addresses.iter().collect();
    others.filter(|address| !own.contains(address)).collect()
}

fn remote_blocks(node: &str, objects: &Objects) -> Vec<RemoteBlock> {
    let is_routed =
        |subnet: &&NodeSubnet| subnet.spec.node != node && subnet.spec.state == SubnetState::Active;
    let mut blocks: Vec<RemoteBlock> = objects
        .subnets
        .iter()
        .filter(is_routed)
        .map(|subnet| RemoteBlock {
            cidr: subnet.spec.cidr,
            pool: subnet.spec.pool.clone(),
            node: subnet.spec.node.clone(),
            addresses: subnet.spec.node_addresses,
            link_mtu: subnet.spec.link_mtu,
        })
        .collect();
    blocks.sort_by_key(|block| block.cidr);
    blocks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_include_those_with_unused_and_without_blocks() {
        let subnet = |node: &str, address: &str, state: &str| {
            let name = address.replace('.', "-");
            let spec = json!({ "cidr": "10.244.1.0/26", "pool": "missing", "node": node, "nodeAddresses": { "ipv4": address }, "state": state });
            serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
        };
        let objects = Objects {
            subnets: vec![
                subnet("worker-1", "192.0.2.1", "Active"),
                subnet("worker-2", "192.0.2.2", "Active"),
                subnet("worker-3", "192.0.2.3", "Orphaned"),
            ],
            ..Objects::default()
        };
        let peers = ["192.0.2.9", "192.0.2.1"];
        let spec = json!({ "addresses": { "ipv4": "192.0.2.1" }, "peersWithoutBlocks": peers, "subnets": [] });
        let network = json!({ "metadata": { "name": "worker-1" }, "spec": spec });
        let network = serde_json::from_value(network).unwrap();
        let inputs = Inputs::new("worker-1", &objects, &network, PodState::default());
        assert_eq!(inputs.remote, []);
        let nodes = ["192.0.2.2", "192.0.2.9"].map(|node| node.parse().unwrap());
        assert_eq!(inputs.nodes, nodes.into());
    }
}
