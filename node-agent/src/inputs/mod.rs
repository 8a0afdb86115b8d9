//! What the agent goes by: the API's objects, checked and joined, and what the node's pods hold it to, as plain data.
//!
//! ```text
//!   Objects {IPPool*, NodeSubnet*, own NodeNetwork} ──Inputs::new──▶ Inputs {own blocks, peers' blocks, pools, modes}
//!   attachments, node.json ──PodState::of──▶ Inputs.pods
//! ```
//!
//! What cannot be used becomes a problem; the rest goes on.

pub mod bgp_routes;
pub mod block_requests;
pub mod draining_pods;
pub mod file_events;
pub mod host_facts;
pub mod ipv6_support;
pub mod lost_blocks;
pub mod node_addresses;
pub mod other_networks;
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

/// The objects an agent watches, as last heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// All pools.
    pub pools: Vec<IPPool>,
    /// All assigned blocks.
    pub subnets: Vec<NodeSubnet>,
    /// Labels of all namespaces by name; empty unless a pool asks for them.
    pub namespaces: Namespaces,
    /// This node's own part.
    pub network: Option<NodeNetwork>,
    /// Objects that could not be read.
    pub unreadable: Problems,
}

/// Everything that decides what the node should look like, but the kernel's own facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// Name of the Node.
    pub node: String,
    /// The node's own addresses, as the operator has chosen them.
    pub addresses: NodeAddresses,
    /// What the node receives and how it sends.
    pub modes: Vec<NodeMode>,
    /// The pools from which pods of this node get addresses, by the operator; the node may have no block of some.
    pub serving: Vec<String>,
    /// The namespaces there are, with their labels, while a pool is for some of them only.
    pub namespaces: Namespaces,
    /// The node's own blocks, oldest first.
    pub blocks: Vec<OwnBlock>,
    /// Blocks that still name this node although the operator has taken them from its NodeNetwork.
    pub withdrawn: Vec<IpNet>,
    /// Addresses of other nodes that have no block.
    pub peers_without_blocks: Vec<IpAddr>,
    /// The other nodes' blocks that are routed.
    pub remote: Vec<RemoteBlock>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// The node's BGP speaker; `None` while BGP is off.
    pub bgp: Option<NodeBgp>,
    /// What the node's pods have, and hold the node to.
    pub pods: PodState,
    /// What could not be used.
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
    /// Where to send packets for it.
    pub addresses: NodeAddresses,
    /// Bytes of the largest packet that its node takes, where that is less than others do.
    pub link_mtu: Option<u32>,
}

/// What the agent needs of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The whole range.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_prefix: u8,
    /// Whether its blocks are kept from BGP.
    pub unannounced: bool,
    /// Whether pods that leave the pools are masqueraded.
    pub nat_outgoing: bool,
    /// Destinations that are not.
    pub nat_exclude: Vec<IpNet>,
    /// Addresses that are never handed out.
    pub reserved: Vec<IpNet>,
    /// How pods are attached.
    pub pod_interface: PodInterface,
    /// No new addresses.
    pub disabled: bool,
    /// It shall be without pods: it is disabled or being deleted.
    pub draining: bool,
    /// Whether it is for some nodes only.
    pub some_nodes: bool,
    /// The namespaces whose pods get addresses, if not all.
    pub namespaces: Option<Selector>,
}

impl Inputs {
    /// Join the objects into inputs for `node`. `network` is the node's own part in `objects`.
    #[must_use]
    pub fn new(node: &str, objects: &Objects, network: &NodeNetwork, pods: PodState) -> Self {
        let mut problems = objects.unreadable.clone();
        let pools = objects
            .pools
            .iter()
            .filter_map(|pool| named_pool(pool, &mut problems))
            .collect();
        let mut inputs = Self {
            node: node.to_owned(),
            addresses: network.spec.addresses,
            modes: network.spec.modes.clone(),
            serving: network.spec.pools.clone(),
            peers_without_blocks: network.spec.peers_without_blocks.clone(),
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
        inputs.drop_colliding_nodes();
        inputs
    }

    /// The mode by which packets are sent to a pool's blocks, if this node carries it out.
    #[must_use]
    pub fn mode_of(&self, pool: &str) -> Option<&NodeMode> {
        self.modes
            .iter()
            .find(|mode| mode.pools.iter().any(|name| name == pool))
    }

    /// All ways by which a pool's blocks are or can be reached.
    pub fn modes_to(&self, pool: &str) -> impl Iterator<Item = &NodeMode> {
        let to = move |mode: &&NodeMode| mode.all_pools().any(|name| name == pool);
        self.modes.iter().filter(to)
    }

    /// Whether a pool's packets are received by way of BGP's routes, or sent.
    #[must_use]
    pub fn is_underlay(&self, pool: &str) -> bool {
        let mut modes = self.modes_to(pool);
        modes.any(|mode| mode.transport.get() == Some(Transport::Bgp))
    }

    /// The namespaces that a selector chooses.
    #[must_use]
    pub fn namespaces_of(&self, selector: &Selector) -> BTreeSet<String> {
        let namespaces = self.namespaces.iter();
        let chosen = namespaces.filter(|(_, labels)| selector.matches(labels));
        chosen.map(|(name, _)| name.clone()).collect()
    }

    /// The node's own end of a mode's tunnels.
    #[must_use]
    pub fn local(&self, mode: &NodeMode) -> Option<IpAddr> {
        self.addresses.of(mode.outer_family)
    }

    /// Whether pods have addresses of this family, here or on another node.
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
        let mut known = |cidr: &IpNet, pool: &str| {
            let found = pools.contains_key(pool);
            if !found {
                let cause = Cause::BlockWithoutPool {
                    block: *cidr,
                    pool: pool.to_owned(),
                };
                problems.push(Problem::from(cause));
            }
            found
        };
        blocks.retain(|block| known(&block.cidr, &block.pool));
        remote.retain(|block| known(&block.cidr, &block.pool));
    }

    /// Two nodes whose tunnel endpoints would have the same Ethernet address cannot both be reached; the one that
    /// sorts first is.
    fn drop_colliding_nodes(&mut self) {
        let mut owners: BTreeMap<[u8; 6], String> = BTreeMap::new();
        owners.insert(names::vtep_mac(&self.node), self.node.clone());
        let mut nodes: Vec<&str> = self
            .remote
            .iter()
            .map(|block| block.node.as_str())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut refused = Vec::new();
        for node in nodes {
            let owner = owners
                .entry(names::vtep_mac(node))
                .or_insert_with(|| node.to_owned());
            if owner != node {
                refused.push(node.to_owned());
                let cause = Cause::TunnelMacConflict {
                    node: node.to_owned(),
                    owner: owner.clone(),
                };
                self.problems.push(Problem::from(cause));
            }
        }
        self.remote.retain(|block| !refused.contains(&block.node));
    }
}

fn named_pool(pool: &IPPool, problems: &mut Problems) -> Option<(String, Pool)> {
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
    let checked = Pool {
        cidr: spec.cidr,
        block_prefix: spec.block_prefix(),
        unannounced: spec.disable_bgp_export,
        nat_outgoing: spec.nat_outgoing,
        nat_exclude: spec.nat_outgoing_exclude.iter().map(IpNet::trunc).collect(),
        reserved,
        pod_interface: spec.pod_interface,
        disabled: spec.disabled,
        draining: spec.disabled || pool.metadata.deletion_timestamp.is_some(),
        some_nodes: spec.node_selector.is_some(),
        namespaces: chosen_namespaces(&name, pool, problems),
    };
    Some((name, checked))
}

/// An invalid selector matches no namespace: no address is better than an address of the wrong pool.
fn chosen_namespaces(name: &str, pool: &IPPool, problems: &mut Problems) -> Option<Selector> {
    let selector = pool.spec.namespace_selector.clone()?;
    Some(Selector::try_from(selector).unwrap_or_else(|_| {
        problems.push(Problem::from(Cause::NamespaceSelectorInvalid {
            pool: name.to_owned(),
        }));
        Selector::from(Expression::In(NOBODY.to_owned(), BTreeSet::new()))
    }))
}

/// A label that no namespace has.
const NOBODY: &str = "netweft.io/nobody";

fn parse_range(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok();
    net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|net| net.trunc())
}

/// The node's own blocks in the operator's order. The NodeNetwork and the NodeSubnet have to agree on each.
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

/// No pod gets an address of them any more, but some may still have one.
fn withdrawn_blocks(node: &str, objects: &Objects, network: &NodeNetwork) -> Vec<IpNet> {
    let held = objects
        .subnets
        .iter()
        .filter(|subnet| subnet.spec.node == node);
    held.map(|subnet| subnet.spec.cidr)
        .filter(|cidr| !network.spec.subnets.contains(cidr))
        .collect()
}

fn remote_blocks(node: &str, objects: &Objects) -> Vec<RemoteBlock> {
    let routed =
        |subnet: &&NodeSubnet| subnet.spec.node != node && subnet.spec.state == SubnetState::Active;
    let mut blocks: Vec<RemoteBlock> = objects
        .subnets
        .iter()
        .filter(routed)
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
