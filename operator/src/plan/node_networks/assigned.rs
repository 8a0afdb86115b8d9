//! The condition `Assigned` of NodeNetworks: whether the node has what it needs, and what it lacks and why.

use crate::plan::node_networks::no_address::{MAX_LISTED, REMEDY};
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use netweft_crds::condition::{ASSIGNED, Reason, Status};
use netweft_crds::{IpFamily, NodeNetwork, NodeSubnet};

use crate::plan::ipam::assign::Assignment;
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{Changes, ConditionEvent, StatusChange};
use crate::plan::model::index::ClusterIndex;
use crate::plan::node_networks::no_address::{no_address, no_usable_address};
use crate::plan::validate::network_mode::Mode;
use crate::plan::validate::node_address::Choice;

/// The condition `Assigned` of NodeNetworks whose spec is as it should be. One that has yet to be written is judged
/// when it is: the condition names the generation it is about.
#[must_use]
pub fn plan_assigned(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    pending: &Changes<NodeNetwork>,
) -> Vec<StatusChange<Condition>> {
    let pending: BTreeSet<_> = pending.update.iter().map(ResourceExt::name_any).collect();
    let settled = index
        .networks
        .iter()
        .filter(|(name, _)| !pending.contains(**name));
    settled
        .filter_map(|(name, network)| {
            let node = index.nodes.get(name)?;
            assigned(index, assignment, network, node)
        })
        .collect()
}

/// One of the modes in use: all agree on how node addresses are chosen (`validate`).
fn any_mode<'a>(index: &'a ClusterIndex<'_>) -> Option<&'a Mode> {
    index.used_modes().into_values().next()
}

fn assigned(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    node: &Node,
) -> Option<StatusChange<Condition>> {
    let blocks_in_sight = index.subnets.contains_key(network.name_any().as_str());
    if !blocks_in_sight && !network.spec.subnets.is_empty() {
        // Its NodeSubnets have been written, and the watch has yet to say so.
        return None;
    }
    let (status, reason, message) = judge(index, assignment, network, node);
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

fn judge(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    node: &Node,
) -> (bool, Reason, String) {
    let name = node.name_any();
    if let Some(mode) = any_mode(index)
        && index.any_addresses(node, mode).is_none()
    {
        let message = no_address(index, mode, network);
        return (false, Reason::NoNodeAddress, message);
    }
    let lacking = lacking(index, assignment, node);
    let held = index
        .subnets
        .get(name.as_str())
        .map_or(&[][..], Vec::as_slice);
    if held.is_empty() {
        return (
            false,
            Reason::NoSubnet,
            without_block(index, &name, &lacking),
        );
    }
    let mut message = vec![held_blocks(held)];
    message.extend(lacking);
    message.extend(index.choice(&name).and_then(twins));
    (true, Reason::SubnetsAssigned, message.join("; "))
}

fn held_blocks(held: &[&NodeSubnet]) -> String {
    let pools: BTreeSet<&str> = held.iter().map(|it| it.spec.pool.as_str()).collect();
    let pools: Vec<&str> = pools.into_iter().collect();
    format!(
        "{} of {}",
        counted(held.len(), "block"),
        list(&pools, MAX_LISTED)
    )
}

fn without_block(index: &ClusterIndex<'_>, node: &str, lacking: &[String]) -> String {
    let why = if any_mode(index).is_some_and(|mode| index.lacks_agent(node, mode)) {
        "no agent has ever reported from this node, and the node gets no block before; if no agent is to run here, exclude the node with \
         agent.nodeSelector in the values of the Helm chart"
            .to_owned()
    } else if lacking.is_empty() {
        "no IPPool serves this node".to_owned()
    } else {
        lacking.join("; ")
    };
    let tunnels = index.used_modes().into_values().any(Mode::has_tunnels);
    let plain = if tunnels {
        "; without a tunnel address this node reaches pods on other nodes only if the network between nodes forwards pod addresses"
    } else {
        ""
    };
    format!("{why}{plain}")
}

/// What pools do not give the node: those that have no block left, and those that the node has no address for.
fn lacking(index: &ClusterIndex<'_>, assignment: &Assignment, node: &Node) -> Vec<String> {
    let name = node.name_any();
    let exhausted = assignment
        .exhausted
        .iter()
        .chain(&assignment.scarce)
        .filter(|(_, nodes)| nodes.contains(&name));
    let exhausted: Vec<_> = exhausted.map(|(pool, _)| pool.as_str()).collect();
    let mut lacking = Vec::new();
    if !exhausted.is_empty() {
        lacking.push(format!(
            "no block is left in {}",
            list(&exhausted, MAX_LISTED)
        ));
    }
    for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
        let pools = index.pools_of(node);
        let pools = pools.filter(|pool| pool.open && pool.family() == family);
        let pools = pools.filter(|pool| {
            let mode = index.mode_of(&pool.name);
            mode.is_some_and(|mode| index.addresses(node, mode, family).is_none())
        });
        let pools: Vec<&str> = pools.map(|pool| pool.name.as_str()).collect();
        if let Some(mode) = pools.first().and_then(|pool| index.mode_of(pool)) {
            lacking.push(format!(
                "no block of {}: packets to it need {}: {}",
                list(&pools, MAX_LISTED),
                needed(index, mode, family),
                no_usable_address(index, mode, &name, family)
            ));
        }
    }
    lacking
}

/// The address that packets to pods of a family take, in words.
fn needed(index: &ClusterIndex<'_>, mode: &Mode, inner: IpFamily) -> String {
    let family = mode.node_family(inner, index.outer_family(mode));
    format!("an {family} address of the node")
}

/// Which other Nodes state an address of this node.
fn twins(choice: &Choice) -> Option<String> {
    let twins: Vec<String> = choice
        .twins
        .iter()
        .map(|(address, node)| format!("Node {node} ({address})"))
        .collect();
    (!twins.is_empty()).then(|| {
        format!(
            "the same address is reported by {}, which cannot use it; {REMEDY}",
            list(&twins, MAX_LISTED)
        )
    })
}
