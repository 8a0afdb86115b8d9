//! The condition `Assigned` of NodeNetworks: whether the node has the blocks and addresses that it needs.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use netweft_crds::condition::{ASSIGNED, Reason, Status};
use netweft_crds::{IpFamily, MAX_PEERS_WITHOUT_BLOCKS, NodeNetwork, NodeSubnet};

use crate::plan::ipam::assign::Assignment;
use crate::plan::ipam::demand::BlockLimit;
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{Changes, ConditionEvent, StatusChange};
use crate::plan::model::index::ClusterIndex;
use crate::plan::node_networks::left_out;
use crate::plan::node_networks::no_address::{MAX_LISTED, REMEDY, no_address, no_usable_address};
use crate::plan::validate::network_mode::Mode;
use crate::plan::validate::node_address::AddressChoice;

/// The condition `Assigned` of all NodeNetworks without a pending update. The others follow after their update, because
/// the condition carries the generation.
#[must_use]
pub fn plan_assigned(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    pending: &Changes<NodeNetwork>,
) -> Vec<StatusChange<Condition>> {
    let pending: BTreeSet<_> = pending.update.iter().map(ResourceExt::name_any).collect();
    let current = index
        .networks
        .iter()
        .filter(|(name, _)| !pending.contains(**name));
    let left_out = left_out(index);
    current
        .filter_map(|(name, network)| {
            let node = index.nodes.get(name)?;
            let is_left_out = left_out.contains(name);
            assigned(index, assignment, network, (node, is_left_out))
        })
        .collect()
}

/// Any mode in use: all have the same node address selectors (`validate`).
fn any_mode<'a>(index: &'a ClusterIndex<'_>) -> Option<&'a Mode> {
    index.used_modes().into_values().next()
}

fn assigned(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    node: (&Node, bool),
) -> Option<StatusChange<Condition>> {
    let has_node_subnets = index.subnets.contains_key(network.name_any().as_str());
    if !has_node_subnets && !network.spec.subnets.is_empty() {
        // The NodeSubnets exist, and the watch does not show them yet.
        return None;
    }
    let (status, reason, message) = assess(index, assignment, network, node);
    let before = network
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    let old = before.iter().find(|condition| condition.type_ == ASSIGNED);
    let status = Status {
        type_: ASSIGNED,
        status,
        reason,
        message: &message,
    };
    let condition = status.condition(network.metadata.generation, before, index.cluster_state.now);
    if old == Some(&condition) {
        return None;
    }
    Some(StatusChange {
        name: network.name_any(),
        uid: network.uid(),
        event: ConditionEvent::of(before, &condition, condition.status != "True"),
        status: condition,
    })
}

fn assess(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    (node, is_left_out): (&Node, bool),
) -> (bool, Reason, String) {
    let name = node.name_any();
    if let Some(mode) = any_mode(index)
        && index.any_addresses(node, mode).is_none()
    {
        let message = no_address(index, mode, network);
        return (false, Reason::NoNodeAddress, message);
    }
    let shortages = shortages(index, assignment, node);
    let held = index
        .subnets
        .get(name.as_str())
        .map_or(&[][..], Vec::as_slice);
    if held.is_empty() {
        return (
            false,
            Reason::NoSubnet,
            no_block_message(index, &name, &shortages, is_left_out),
        );
    }
    let mut message = vec![blocks_message(held)];
    message.extend(shortages);
    message.extend(index.choice(&name).and_then(shared_addresses));
    (true, Reason::SubnetsAssigned, message.join("; "))
}

fn blocks_message(held: &[&NodeSubnet]) -> String {
    let pools: BTreeSet<&str> = held.iter().map(|it| it.spec.pool.as_str()).collect();
    let pools: Vec<&str> = pools.into_iter().collect();
    format!(
        "{} of {}",
        counted(held.len(), "block"),
        list(&pools, MAX_LISTED)
    )
}

fn no_block_message(
    index: &ClusterIndex<'_>,
    node: &str,
    shortages: &[String],
    is_left_out: bool,
) -> String {
    let why = if any_mode(index).is_some_and(|mode| index.lacks_agent(node, mode)) {
        "no agent has ever reported from this node, so the node gets no block; if no agent should run here, exclude the node with \
         agent.nodeSelector in the values of the Helm chart"
            .to_owned()
    } else if shortages.is_empty() {
        "no IPPool serves this node".to_owned()
    } else {
        shortages.join("; ")
    };
    let tunnels = index.used_modes().into_values().any(Mode::has_tunnels);
    let consequence = if tunnels {
        "; without a tunnel address this node reaches pods on other nodes only if the network between nodes forwards pod addresses"
    } else {
        ""
    };
    let filtered = if tunnels && is_left_out {
        format!(
            "; other nodes drop encapsulated packets of this node, because they accept those of {MAX_PEERS_WITHOUT_BLOCKS} addresses of \
             nodes without a block at most; give nodes blocks, or exclude nodes with agent.nodeSelector"
        )
    } else {
        String::new()
    };
    format!("{why}{consequence}{filtered}")
}

/// What the node lacks: blocks of exhausted pools, and addresses for pools of a family.
fn shortages(index: &ClusterIndex<'_>, assignment: &Assignment, node: &Node) -> Vec<String> {
    let name = node.name_any();
    let exhausted = assignment
        .exhausted
        .iter()
        .chain(&assignment.low_capacity)
        .filter(|(_, nodes)| nodes.contains(&name));
    let exhausted: Vec<_> = exhausted.map(|(pool, _)| pool.as_str()).collect();
    let mut shortages = Vec::new();
    if !exhausted.is_empty() {
        shortages.push(format!(
            "no block is left in {}",
            list(&exhausted, MAX_LISTED)
        ));
    }
    for family in IpFamily::ALL {
        let limit = BlockLimit::of(index, &name, family);
        if !limit.allows_another() {
            shortages.push(format!(
                "no further {family} block, because the node has enough addresses for {} (status.allocatable of the Node)",
                counted(limit.pods, "pod")
            ));
        }
    }
    for family in IpFamily::ALL {
        let pools = index.pools_of(node);
        let pools = pools.filter(|pool| pool.open && pool.family() == family);
        let pools = pools.filter(|pool| {
            let mode = index.mode_of(&pool.name);
            mode.is_some_and(|mode| index.addresses(node, mode, family).is_none())
        });
        let pools: Vec<&str> = pools.map(|pool| pool.name.as_str()).collect();
        if let Some(mode) = pools.first().and_then(|pool| index.mode_of(pool)) {
            shortages.push(format!(
                "no block of {}: packets to it need {}: {}",
                list(&pools, MAX_LISTED),
                needed_address(index, mode, family),
                no_usable_address(index, mode, &name, family)
            ));
        }
    }
    shortages
}

/// The node address that packets to pods of family `inner` need.
fn needed_address(index: &ClusterIndex<'_>, mode: &Mode, inner: IpFamily) -> String {
    let family = mode.node_family(inner, index.outer_family(mode));
    format!("an {family} address of the node")
}

/// The other Nodes that report an address of this node.
fn shared_addresses(choice: &AddressChoice) -> Option<String> {
    let others: Vec<String> = choice
        .shared_with
        .iter()
        .map(|(address, node)| format!("Node {node} ({address})"))
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "the same address is reported by {}, which cannot use it; {REMEDY}",
            list(&others, MAX_LISTED)
        )
    })
}
