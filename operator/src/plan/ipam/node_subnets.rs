//! The life of NodeSubnets: created for a node, orphaned when it goes, taken up again when it comes back, deleted
//! when its grace has run out, its pool is given up or its node can do without it; and, where no other block is left for a node, before its
//! grace has run out.
//!
//! A node that is there gives blocks back in two steps, so that no pod can slip in between:
//! 1. when the agent says that no pod has an address of the block, the block leaves `NodeNetwork.spec.subnets`
//!    (`networks`): from the generation that says so on, the agent hands out none of its addresses;
//! 2. when the agent has acknowledged that generation and still says that no pod has an address, the NodeSubnet goes.
//!
//! A block that comes back from between the two is given as a new one is: its NodeSubnet is written, which then says after which
//! generation of the NodeNetwork that was, and only then the NodeNetwork. So a delete that a leader decided on before it was
//! deposed is refused: it is about another version. And until the NodeNetwork has gone on from that generation the block does
//! not go again: a write that names it may be on its way.

use crate::plan::ipam::utilization::usage_of;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use netweft_crds::{IpFamily, NodeNetwork, NodeSubnet, NodeSubnetSpec, SubnetState};

use crate::plan::ipam::assign::{Assignment, Block, Current, assign};
use crate::plan::ipam::demand;
use crate::plan::ipam::utilization::Utilization;
use crate::plan::model::cluster_state::Changes;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::cluster_ranges;
use crate::plan::validate::other_networks;

/// Annotation of a NodeSubnet: the last generation of its NodeNetwork that did not name the block. There is none if it was given
/// before the NodeNetwork was there.
const GIVEN_AFTER: &str = "netweft.io/given-after";

/// What is to be done with NodeSubnets, and what the assignment found out.
#[must_use]
pub fn plan_subnets(index: &ClusterIndex<'_>) -> (Changes<NodeSubnet>, Assignment) {
    let utilization =
        Utilization::observe(&index.cluster_state.subnets, &index.cluster_state.networks);
    let demands = demand::demands(index, &utilization);
    let assignment = assign(index.pools.by_preference(), &demands, &current(index));
    let mut changes = review(index);
    let reclaimed = index.cluster_state.subnets.iter().filter(|subnet| {
        let known = || {
            changes
                .delete
                .iter()
                .any(|gone| gone.meta() == subnet.meta())
        };
        assignment.reclaim.contains(&subnet.spec.cidr) && !known()
    });
    let reclaimed: Vec<_> = reclaimed.map(|subnet| (*subnet).clone()).collect();
    changes.delete.extend(reclaimed);
    let created = assignment.create.iter();
    changes.create = created
        .filter_map(|(node, block)| new_subnet(index, node, block))
        .collect();
    (changes, assignment)
}

/// Pods in the block of `subnet`; `None`: not known.
#[must_use]
pub fn pods_in(subnet: &NodeSubnet, network: &NodeNetwork) -> Option<i64> {
    usage_of(subnet, network).map(|usage| usage.used)
}

/// Whether a block that is to go is no longer the node's to hand out from: step 1 above. Once withdrawn it stays so as long as it
/// is to go, whatever the next status says: else the two steps would chase each other.
#[must_use]
pub fn is_withdrawn(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    let Some(network) = index.networks.get(subnet.spec.node.as_str()) else {
        return index.pool_is_going(&subnet.spec.pool);
    };
    is_to_go(index, subnet)
        && !is_pending(subnet, network)
        && (!is_named(subnet, network) || pods_in(subnet, network) == Some(0))
}

/// Whether a node that is there shall be without this block.
fn is_to_go(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    index.pool_is_going(&subnet.spec.pool)
        || index.cluster_state.surplus.contains(&subnet.name_any())
}

fn is_named(subnet: &NodeSubnet, network: &NodeNetwork) -> bool {
    network.spec.subnets.contains(&subnet.spec.cidr)
}

/// Whether a write that makes the NodeNetwork name the block may be under way.
fn is_pending(subnet: &NodeSubnet, network: &NodeNetwork) -> bool {
    let given = subnet.annotations().get(GIVEN_AFTER);
    !is_named(subnet, network) && given.is_some() && given == given_after(network).as_ref()
}

/// The value of [`GIVEN_AFTER`] for a block that is assigned now.
fn given_after(network: &NodeNetwork) -> Option<String> {
    network
        .metadata
        .generation
        .map(|generation| generation.to_string())
}

/// Says in the NodeSubnet of a block that its NodeNetwork does not name yet when it was given.
fn give(subnet: &mut NodeSubnet, network: Option<&NodeNetwork>) {
    match network.and_then(given_after) {
        Some(generation) => {
            let annotations = subnet.annotations_mut();
            annotations.insert(GIVEN_AFTER.to_owned(), generation);
        }
        None => {
            if let Some(annotations) = &mut subnet.metadata.annotations {
                annotations.remove(GIVEN_AFTER);
            }
        }
    }
}

fn current(index: &ClusterIndex<'_>) -> Current {
    let nodes = cluster_ranges::addresses_of_nodes(index.cluster_state)
        .map(|(_, address)| IpNet::from(address));
    let foreign = index.cluster_state.unreadable_blocks.iter().copied();
    let mut current = Current {
        foreign: foreign
            .chain(nodes)
            .chain(other_networks::occupied(index.cluster_state))
            .collect(),
        freed: index.cluster_state.freed.clone(),
        ..Current::default()
    };
    for NodeSubnetSpec {
        cidr, pool, node, ..
    } in index.cluster_state.subnets.iter().map(|s| &s.spec)
    {
        let block = Block {
            pool: pool.clone(),
            cidr: *cidr,
        };
        current.held.entry(node.clone()).or_default().insert(block);
    }
    current.orphans = orphans(index);
    current
}

/// Blocks that can be reclaimed: their Nodes are gone, and the other nodes have been told.
fn orphans(index: &ClusterIndex<'_>) -> Vec<Block> {
    let reclaimable = index.cluster_state.reclaimable.iter().enumerate();
    let order: BTreeMap<&str, usize> = reclaimable.map(|(n, name)| (name.as_str(), n)).collect();
    let nodes: BTreeSet<&str> = index
        .nodes
        .keys()
        .chain(&index.without_agent)
        .copied()
        .collect();
    let subnets = index.cluster_state.subnets.iter().filter(|subnet| {
        subnet.spec.state == SubnetState::Orphaned && !nodes.contains(subnet.spec.node.as_str())
    });
    let ordered = subnets.filter_map(|subnet| {
        let place = order.get(subnet.metadata.name.as_deref()?)?;
        let block = Block {
            pool: subnet.spec.pool.clone(),
            cidr: subnet.spec.cidr,
        };
        Some((*place, block))
    });
    let ordered: BTreeMap<usize, Block> = ordered.collect();
    ordered.into_values().collect()
}

fn new_subnet(index: &ClusterIndex<'_>, node: &str, block: &Block) -> Option<NodeSubnet> {
    let mode = index.mode_of(&block.pool)?;
    let network = index.networks.get(node).copied();
    let spec = NodeSubnetSpec {
        cidr: block.cidr,
        pool: block.pool.clone(),
        node: node.to_owned(),
        node_addresses: index.addresses(
            index.nodes.get(node)?,
            mode,
            IpFamily::of(block.cidr.addr()),
        )?,
        as_number: None,
        link_mtu: None,
        state: SubnetState::Active,
    };
    let mut subnet = spec.into_object();
    give(&mut subnet, network);
    Some(subnet)
}

/// What has to be done with the NodeSubnets that exist.
fn review(index: &ClusterIndex<'_>) -> Changes<NodeSubnet> {
    let mut changes = Changes::default();
    let most = most_that_links_take(index);
    for subnet in index.subnets.values().flatten() {
        match index.nodes.get(subnet.spec.node.as_str()) {
            Some(_) if released(index, subnet) => changes.delete.push((*subnet).clone()),
            Some(node) => changes.update.extend(active(index, subnet, (node, most))),
            None if expired(index, subnet) => changes.delete.push((*subnet).clone()),
            None => changes.update.extend(orphaned(subnet)),
        }
    }
    changes
}

/// Bytes of the largest packet that any node's links take, as far as agents have said.
fn most_that_links_take(index: &ClusterIndex<'_>) -> u32 {
    let networks = index
        .nodes
        .keys()
        .filter_map(|node| index.networks.get(node));
    let mtus = networks.filter_map(|network| network.status.as_ref()?.link_mtu);
    mtus.max().unwrap_or_default()
}

fn active(
    index: &ClusterIndex<'_>,
    subnet: &NodeSubnet,
    (node, most): (&Node, u32),
) -> Option<NodeSubnet> {
    let mut wanted = subnet.clone();
    wanted.spec.state = SubnetState::Active;
    // With the pool or its mode in trouble, or the Node silent about its address, the last known one stays: it may
    // carry traffic.
    if let Some(mode) = index.mode_of(&subnet.spec.pool)
        && let Some(addresses) = index.addresses(node, mode, IpFamily::of(subnet.spec.cidr.addr()))
    {
        wanted.spec.node_addresses = addresses;
    }
    // Only where it is less: in a cluster of equals no agent hears of it.
    let network = index.networks.get(subnet.spec.node.as_str()).copied();
    if let Some(mtu) = network.and_then(|network| network.status.as_ref()?.link_mtu) {
        wanted.spec.link_mtu = (mtu < most).then_some(mtu);
    }
    let named = network.is_some_and(|network| is_named(subnet, network));
    if !named && !is_withdrawn(index, subnet) {
        give(&mut wanted, network);
    }
    (wanted != *subnet).then_some(wanted)
}

fn orphaned(subnet: &NodeSubnet) -> Option<NodeSubnet> {
    let mut wanted = subnet.clone();
    wanted.spec.state = SubnetState::Orphaned;
    (wanted.spec != subnet.spec).then_some(wanted)
}

fn expired(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    match subnet.spec.state {
        SubnetState::Orphaned => index.cluster_state.expired.contains(&subnet.name_any()),
        // The grace has not even begun.
        SubnetState::Active => false,
    }
}

/// Whether a block that is to go can be taken from its live node: step 2 above.
fn released(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    let Some(network) = index.networks.get(subnet.spec.node.as_str()) else {
        return false;
    };
    is_withdrawn(index, subnet) && !is_named(subnet, network) && pods_in(subnet, network) == Some(0)
}
