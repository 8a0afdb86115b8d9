//! NodeNetworks: the complete configuration of each node in one object, and their condition `Assigned`.

mod assigned;
mod no_address;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use netweft_crds::{
    AddressSelectors, MAX_PEERS_WITHOUT_BLOCKS, NodeAddresses, NodeBgp, NodeMode, NodeNetwork,
    NodeNetworkSpec, NodeSubnet, ProbeProtocol, Transport,
};

use crate::plan::bgp::BgpTopology;
use crate::plan::ipam::node_subnets::is_withdrawn;
use crate::plan::model::cluster_state::Changes;
use crate::plan::model::index::ClusterIndex;
pub use crate::plan::node_networks::assigned::plan_assigned;
use crate::plan::rollout::Rollouts;

/// NodeNetworks to create, to update and to delete. Those of deleted Nodes are garbage-collected with their owner.
#[must_use]
pub fn plan_networks(
    index: &ClusterIndex<'_>,
    rollouts: &Rollouts<'_>,
    topology: Option<&BgpTopology>,
    created: &[NodeSubnet],
) -> Changes<NodeNetwork> {
    let mut new: BTreeMap<&str, Vec<&NodeSubnet>> = BTreeMap::new();
    for subnet in created {
        new.entry(&subnet.spec.node).or_default().push(subnet);
    }
    let without_block = without_block(index, &new);
    let mut changes = Changes::default();
    for (name, node) in &index.nodes {
        let new = new.get(name).map_or(&[][..], Vec::as_slice);
        let mut spec = spec(index, modes(index, rollouts, name), topology, node, new);
        let others = without_block.iter().filter(|(other, _)| other != name);
        let others = others.flat_map(|(_, addresses)| addresses.iter());
        spec.peers_without_blocks = others.take(MAX_PEERS_WITHOUT_BLOCKS).collect();
        let owners = vec![owner(node)];
        match index.networks.get(name) {
            None => {
                let mut network = NodeNetwork::new(name, spec);
                network.metadata.owner_references = Some(owners);
                changes.create.push(network);
            }
            Some(old) if old.spec != spec || old.owner_references() != owners => {
                let mut network = (*old).clone();
                network.spec = spec;
                network.metadata.owner_references = Some(owners);
                changes.update.push(network);
            }
            Some(_) => {}
        }
    }
    // The Node exists, and the agent does not run there any more.
    let networks = index.networks.iter();
    let without_agent = networks.filter(|(name, _)| index.without_agent.contains(**name));
    changes.delete = without_agent
        .map(|(_, network)| (*network).clone())
        .collect();
    changes
}

/// Nodes without blocks whose addresses are not in `peersWithoutBlocks` of every other node, because the list is full.
fn left_out<'a>(index: &ClusterIndex<'a>) -> BTreeSet<&'a str> {
    let without_block = without_block(index, &BTreeMap::new());
    let mut addresses = 0;
    let beyond = without_block.into_iter().filter(|(_, of_node)| {
        addresses += of_node.iter().count();
        addresses > MAX_PEERS_WITHOUT_BLOCKS
    });
    beyond.map(|(name, _)| name).collect()
}

/// The addresses of nodes that no NodeSubnet names.
fn without_block<'a>(
    index: &ClusterIndex<'a>,
    new: &BTreeMap<&str, Vec<&NodeSubnet>>,
) -> Vec<(&'a str, NodeAddresses)> {
    let nodes = index.nodes.iter();
    let without =
        nodes.filter(|(name, _)| !index.subnets.contains_key(**name) && !new.contains_key(**name));
    without
        .map(|(name, node)| (*name, index.own_addresses(node)))
        .collect()
}

fn spec(
    index: &ClusterIndex<'_>,
    modes: Vec<NodeMode>,
    topology: Option<&BgpTopology>,
    node: &Node,
    new: &[&NodeSubnet],
) -> NodeNetworkSpec {
    let name = node.name_any();
    let old = index
        .networks
        .get(name.as_str())
        .map(|network| &network.spec);
    let held = index
        .subnets
        .get(name.as_str())
        .map_or(&[][..], Vec::as_slice);
    let kept = held.iter().filter(|subnet| !is_withdrawn(index, subnet));
    let subnets: Vec<IpNet> = kept.chain(new).map(|subnet| subnet.spec.cidr).collect();
    NodeNetworkSpec {
        addresses: index.own_addresses(node),
        address_selectors: selectors(index, old),
        subnets,
        peers_without_blocks: Vec::new(),
        pools: pools(index, node, held, old),
        bgp: bgp(topology, &name, &modes, old),
        modes,
    }
}

/// The selectors for the agent. While no mode is usable, the former selectors stay.
fn selectors(index: &ClusterIndex<'_>, old: Option<&NodeNetworkSpec>) -> Option<AddressSelectors> {
    let Some(selectors) = &index.selectors else {
        return old?.address_selectors.clone();
    };
    Some(selectors.clone()).filter(|it| *it != AddressSelectors::default())
}

/// The pools that serve the node's pods. An invalid pool stays: its pods must not get an address of another pool. A
/// deleted pool stays while the node has a block of it.
fn pools(
    index: &ClusterIndex<'_>,
    node: &Node,
    held: &[&NodeSubnet],
    old: Option<&NodeNetworkSpec>,
) -> Vec<String> {
    let usable = index.pools_of(node).map(|pool| pool.name.clone());
    let has_block = |pool: &str| held.iter().any(|subnet| subnet.spec.pool == pool);
    let is_kept = |name: &&String| {
        index.pools.usable(name).is_none() && (!index.is_pool_deleted(name) || has_block(name))
    };
    let before = old.into_iter().flat_map(|spec| &spec.pools);
    let pools: BTreeSet<String> = usable.chain(before.filter(is_kept).cloned()).collect();
    pools.into_iter().collect()
}

/// The node's BGP speaker. It stays while an invalid mode stays.
fn bgp(
    topology: Option<&BgpTopology>,
    name: &str,
    modes: &[NodeMode],
    old: Option<&NodeNetworkSpec>,
) -> Option<NodeBgp> {
    let speaker = topology.and_then(|topology| topology.speakers.get(name));
    let kept = || {
        let in_use = modes
            .iter()
            .any(|mode| mode.transport.get() == Some(Transport::Bgp));
        old.filter(|_| in_use)?.bgp.clone()
    };
    speaker.cloned().or_else(kept)
}

/// The datapaths of the node, with their pools.
///
/// While a pool with blocks is invalid, its mode may be unusable. The node then keeps its datapaths of that pool, so
/// that running traffic is not affected.
fn modes(index: &ClusterIndex<'_>, rollouts: &Rollouts<'_>, node: &str) -> Vec<NodeMode> {
    let old = index.networks.get(node);
    let old = || old.into_iter().flat_map(|network| &network.spec.modes);
    let mut modes: Vec<NodeMode> = Vec::new();
    let mut add = |datapath: &NodeMode, pool: &str, standby: bool| {
        let is_same = |mode: &NodeMode| mode.name == datapath.name && mode.same_transport(datapath);
        let at = modes.iter().position(is_same).unwrap_or_else(|| {
            modes.push(NodeMode {
                pools: Vec::new(),
                standby_pools: Vec::new(),
                ..datapath.clone()
            });
            modes.len() - 1
        });
        if let Some(mode) = modes.get_mut(at) {
            let list = if standby {
                &mut mode.standby_pools
            } else {
                &mut mode.pools
            };
            list.push(pool.to_owned());
        }
    };
    for pool in index.pools_in_use.iter().copied() {
        match rollouts.get(pool) {
            Some(rollout) => {
                rollout
                    .in_use(node)
                    .into_iter()
                    .for_each(|datapath| add(datapath, pool, false));
                rollout
                    .standby(node)
                    .for_each(|datapath| add(datapath, pool, true));
            }
            None => {
                let has = |list: &[String]| list.iter().any(|name| name == pool);
                old()
                    .filter(|mode| has(&mode.pools))
                    .for_each(|mode| add(mode, pool, false));
                old()
                    .filter(|mode| has(&mode.standby_pools))
                    .for_each(|mode| add(mode, pool, true));
            }
        }
    }
    // Without standby pools the probe is reset, so an edit of `probe` does not change the NodeNetwork.
    let without_standby = modes
        .iter_mut()
        .filter(|mode| mode.standby_pools.is_empty());
    without_standby.for_each(|mode| mode.probe = ProbeProtocol::default());
    modes.sort_by(|one, other| one.name.cmp(&other.name));
    modes
}

fn owner(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node.name_any(),
        uid: node.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }
}
