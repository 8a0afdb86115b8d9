//! The lifecycle of NodeSubnets. They are created for a node, orphaned when the Node is deleted, and active again when
//! the Node returns. They are deleted when the grace period is over, when their pool is deleted, or when they are
//! surplus; and before the end of the grace period if no other block is free.
//!
//! An existing node releases a block in two steps, so that no pod can get an address of it in between:
//! 1. When the agent reports no pod in the block, the block is removed from `NodeNetwork.spec.subnets`
//!    (`node_networks`). From that generation on the node assigns none of its addresses.
//! 2. When the agent has acknowledged that generation and still reports no pod, the NodeSubnet is deleted.
//!
//! A block that returns between the two steps is assigned like a new one: first the NodeSubnet is written, with the
//! generation of the NodeNetwork at that time, then the NodeNetwork. So the API server refuses a delete that a former
//! leader has decided on: its resource version is outdated. While the NodeNetwork still has that generation the block
//! is not deleted, because a write that lists it may be in progress.

use crate::plan::ipam::utilization::usage_of;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use netweft_crds::{
    IpFamily, MAX_LINK_MTU, MIN_LINK_MTU, NodeNetwork, NodeSubnet, NodeSubnetSpec, SubnetState,
};

use crate::plan::ipam::assign::{Assignment, Block, CurrentBlocks, assign};
use crate::plan::ipam::demand;
use crate::plan::ipam::utilization::Utilization;
use crate::plan::model::cluster_state::Changes;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::cluster_ranges;
use crate::plan::validate::other_networks;

/// Annotation of a NodeSubnet: the last generation of the NodeNetwork that did not list the block. It is missing if the
/// block was assigned before the NodeNetwork existed.
const ASSIGNED_AFTER: &str = "netweft.io/assigned-after-generation";

/// Changes of NodeSubnets, and the result of the assignment.
#[must_use]
pub fn plan_subnets(index: &ClusterIndex<'_>) -> (Changes<NodeSubnet>, Assignment) {
    let utilization =
        Utilization::observe(&index.cluster_state.subnets, &index.cluster_state.networks);
    let demands = demand::demands(index, &utilization);
    let assignment = assign(index.pools.by_preference(), &demands, &current(index));
    let mut changes = plan_existing(index);
    let reclaimed = index.cluster_state.subnets.iter().filter(|subnet| {
        let is_planned = || {
            changes
                .delete
                .iter()
                .any(|deleted| deleted.meta() == subnet.meta())
        };
        assignment.reclaim.contains(&subnet.spec.cidr) && !is_planned()
    });
    let reclaimed: Vec<_> = reclaimed.map(|subnet| (*subnet).clone()).collect();
    changes.delete.extend(reclaimed);
    let created = assignment.create.iter();
    changes.create = created
        .filter_map(|(node, block)| new_subnet(index, node, block))
        .collect();
    (changes, assignment)
}

/// Number of pods in the block of `subnet`; `None`: unknown.
#[must_use]
pub fn pod_count(subnet: &NodeSubnet, network: &NodeNetwork) -> Option<i64> {
    usage_of(subnet, network).map(|usage| usage.used)
}

/// Whether the node must not assign addresses of a block that it releases: step 1 above. A withdrawn block stays
/// withdrawn while it is to be released, whatever the next status reports; otherwise the two steps would alternate.
#[must_use]
pub fn is_withdrawn(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    let Some(network) = index.networks.get(subnet.spec.node.as_str()) else {
        return index.is_pool_deleted(&subnet.spec.pool);
    };
    is_to_be_released(index, subnet)
        && !is_pending(subnet, network)
        && (!is_listed(subnet, network) || pod_count(subnet, network) == Some(0))
}

/// Whether an existing node must release this block.
fn is_to_be_released(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    index.is_pool_deleted(&subnet.spec.pool)
        || index.cluster_state.surplus.contains(&subnet.name_any())
}

fn is_listed(subnet: &NodeSubnet, network: &NodeNetwork) -> bool {
    network.spec.subnets.contains(&subnet.spec.cidr)
}

/// Whether a write that adds the block to the NodeNetwork may be in progress.
fn is_pending(subnet: &NodeSubnet, network: &NodeNetwork) -> bool {
    let recorded = subnet.annotations().get(ASSIGNED_AFTER);
    !is_listed(subnet, network)
        && recorded.is_some()
        && recorded == assigned_after(network).as_ref()
}

/// The value of the annotation for a block that is assigned now.
fn assigned_after(network: &NodeNetwork) -> Option<String> {
    network
        .metadata
        .generation
        .map(|generation| generation.to_string())
}

/// Sets the annotation of a NodeSubnet whose NodeNetwork does not list the block yet.
fn set_assigned_after(subnet: &mut NodeSubnet, network: Option<&NodeNetwork>) {
    match network.and_then(assigned_after) {
        Some(generation) => {
            let annotations = subnet.annotations_mut();
            annotations.insert(ASSIGNED_AFTER.to_owned(), generation);
        }
        None => {
            if let Some(annotations) = &mut subnet.metadata.annotations {
                annotations.remove(ASSIGNED_AFTER);
            }
        }
    }
}

fn current(index: &ClusterIndex<'_>) -> CurrentBlocks {
    let nodes = cluster_ranges::addresses_of_nodes(index.cluster_state)
        .map(|(_, address)| IpNet::from(address));
    let foreign = index.cluster_state.unreadable_blocks.iter().copied();
    let mut current = CurrentBlocks {
        foreign: foreign
            .chain(nodes)
            .chain(other_networks::occupied(index.cluster_state))
            .collect(),
        released: index.cluster_state.released.clone(),
        ..CurrentBlocks::default()
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

/// Blocks that can be reclaimed: their Nodes are deleted, and the other nodes know the NodeSubnets as orphaned.
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
        let position = order.get(subnet.metadata.name.as_deref()?)?;
        let block = Block {
            pool: subnet.spec.pool.clone(),
            cidr: subnet.spec.cidr,
        };
        Some((*position, block))
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
    set_assigned_after(&mut subnet, network);
    Some(subnet)
}

/// Updates and deletions of existing NodeSubnets.
fn plan_existing(index: &ClusterIndex<'_>) -> Changes<NodeSubnet> {
    let mut changes = Changes::default();
    for subnet in index.subnets.values().flatten() {
        match index.nodes.get(subnet.spec.node.as_str()) {
            Some(_) if is_released(index, subnet) => changes.delete.push((*subnet).clone()),
            Some(node) => changes.update.extend(activated(index, subnet, node)),
            None if expired(index, subnet) => changes.delete.push((*subnet).clone()),
            None => changes.update.extend(orphaned(subnet)),
        }
    }
    changes
}

fn activated(index: &ClusterIndex<'_>, subnet: &NodeSubnet, node: &Node) -> Option<NodeSubnet> {
    let mut desired = subnet.clone();
    desired.spec.state = SubnetState::Active;
    // If the pool or its mode is invalid, or the Node reports no address, the last addresses stay: they may carry
    // traffic.
    if let Some(mode) = index.mode_of(&subnet.spec.pool)
        && let Some(addresses) = index.addresses(node, mode, IpFamily::of(subnet.spec.cidr.addr()))
    {
        desired.spec.node_addresses = addresses;
    }
    // Whatever other nodes report: a node changes its own NodeSubnets only.
    let network = index.networks.get(subnet.spec.node.as_str()).copied();
    if let Some(mtu) = network.and_then(|network| network.status.as_ref()?.link_mtu) {
        desired.spec.link_mtu = Some(mtu.clamp(MIN_LINK_MTU, MAX_LINK_MTU));
    }
    let listed = network.is_some_and(|network| is_listed(subnet, network));
    if !listed && !is_withdrawn(index, subnet) {
        set_assigned_after(&mut desired, network);
    }
    (desired != *subnet).then_some(desired)
}

fn orphaned(subnet: &NodeSubnet) -> Option<NodeSubnet> {
    let mut desired = subnet.clone();
    desired.spec.state = SubnetState::Orphaned;
    (desired.spec != subnet.spec).then_some(desired)
}

fn expired(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    match subnet.spec.state {
        SubnetState::Orphaned => index.cluster_state.expired.contains(&subnet.name_any()),
        // The grace period has not started.
        SubnetState::Active => false,
    }
}

/// Whether an existing node has released the block: step 2 above.
fn is_released(index: &ClusterIndex<'_>, subnet: &NodeSubnet) -> bool {
    let Some(network) = index.networks.get(subnet.spec.node.as_str()) else {
        return false;
    };
    is_withdrawn(index, subnet)
        && !is_listed(subnet, network)
        && pod_count(subnet, network) == Some(0)
}
