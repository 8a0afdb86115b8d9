//! NodeNetworks: what each node is to do, resolved into one object, and the condition `Assigned`.

mod assigned;
mod no_address;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use netweft_crds::{
    AddressSelectors, NodeBgp, NodeMode, NodeNetwork, NodeNetworkSpec, NodeSubnet, ProbeProtocol,
    Transport,
};

use crate::plan::bgp::BgpTopology;
use crate::plan::ipam::node_subnets::is_withdrawn;
use crate::plan::model::cluster_state::Changes;
use crate::plan::model::index::ClusterIndex;
pub use crate::plan::node_networks::assigned::plan_assigned;
use crate::plan::rollout::Rollouts;

/// NodeNetworks to create, to update and to delete. Those of nodes that are gone go with their owner, the Node.
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
    let mut changes = Changes::default();
    for (name, node) in &index.nodes {
        let new = new.get(name).map_or(&[][..], Vec::as_slice);
        let spec = spec(index, modes(index, rollouts, name), topology, node, new);
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
    // A Node that is there and is not netweft's any more.
    let networks = index.networks.iter();
    let foreign = networks.filter(|(name, _)| index.without_agent.contains(**name));
    changes.delete = foreign.map(|(_, network)| (*network).clone()).collect();
    changes
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
        pools: pools(index, node, held, old),
        bgp: bgp(topology, &name, &modes, old),
        modes,
    }
}

/// What the agent has to look for. While no mode can be used, what it was.
fn selectors(index: &ClusterIndex<'_>, old: Option<&NodeNetworkSpec>) -> Option<AddressSelectors> {
    let Some(selectors) = &index.selectors else {
        return old?.address_selectors.clone();
    };
    Some(selectors.clone()).filter(|it| *it != AddressSelectors::default())
}

/// The pools that the node's pods get addresses from. One that is in trouble stays what it was: its pods must not get an
/// address of another meanwhile. One that is gone stays while the node has a block of it.
fn pools(
    index: &ClusterIndex<'_>,
    node: &Node,
    held: &[&NodeSubnet],
    old: Option<&NodeNetworkSpec>,
) -> Vec<String> {
    let usable = index.pools_of(node).map(|pool| pool.name.clone());
    let holds = |pool: &str| held.iter().any(|subnet| subnet.spec.pool == pool);
    let stays = |name: &&String| {
        index.pools.usable(name).is_none() && (!index.pool_is_going(name) || holds(name))
    };
    let before = old.into_iter().flat_map(|spec| &spec.pools);
    let pools: BTreeSet<String> = usable.chain(before.filter(stays).cloned()).collect();
    pools.into_iter().collect()
}

/// The node's BGP speaker. Like the modes: while one that is in trouble is kept for the blocks there are, so is the speaker.
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

/// The datapaths of the node, with the pools of each.
///
/// While a pool that has blocks is in trouble, its mode may be one that cannot be resolved any more; so as not to touch
/// running traffic, the node goes on doing for it what it did.
fn modes(index: &ClusterIndex<'_>, rollouts: &Rollouts<'_>, node: &str) -> Vec<NodeMode> {
    let old = index.networks.get(node);
    let old = || old.into_iter().flat_map(|network| &network.spec.modes);
    let mut modes: Vec<NodeMode> = Vec::new();
    let mut add = |datapath: &NodeMode, pool: &str, standby: bool| {
        let known = |mode: &NodeMode| mode.name == datapath.name && mode.same_transport(datapath);
        let at = modes.iter().position(known).unwrap_or_else(|| {
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
            Some(change) => {
                change
                    .send(node)
                    .into_iter()
                    .for_each(|datapath| add(datapath, pool, false));
                change
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
    // Where nothing stands by, an edit of `probe` changes no node's spec.
    let quiet = modes
        .iter_mut()
        .filter(|mode| mode.standby_pools.is_empty());
    quiet.for_each(|mode| mode.probe = ProbeProtocol::default());
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
