//! NodeNetworks: what each node is to do, resolved into one object, and the condition `Assigned`.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::{Resource, ResourceExt};
use netweft_crds::condition::{ASSIGNED, Reason, Status};
use netweft_crds::{
    IpFamily, NodeAddresses, NodeBgp, NodeMode, NodeNetwork, NodeNetworkSpec, NodeSubnet, Way,
};

use crate::assign::Assignment;
use crate::bgp::Fabric;
use crate::change::Ways;
use crate::mode::{AddressSource, Mode};
use crate::subnets::is_withdrawn;
use crate::view::View;
use crate::words::{counted, list};
use crate::world::{Changes, News, StatusChange};

/// NodeNetworks to create, to update and to delete. Those of nodes that are gone go with their owner, the Node.
#[must_use]
pub fn plan_networks(
    view: &View<'_>,
    ways: &Ways<'_>,
    fabric: Option<&Fabric>,
    created: &[NodeSubnet],
) -> Changes<NodeNetwork> {
    let mut new: BTreeMap<&str, Vec<&NodeSubnet>> = BTreeMap::new();
    for subnet in created {
        new.entry(&subnet.spec.node).or_default().push(subnet);
    }
    let mut changes = Changes::default();
    for (name, node) in &view.nodes {
        let new = new.get(name).map_or(&[][..], Vec::as_slice);
        let spec = spec(view, modes(view, ways, name), fabric, node, new);
        let owners = vec![owner(node)];
        match view.networks.get(name) {
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
    let networks = view.networks.iter();
    let foreign = networks.filter(|(name, _)| view.without_agent.contains(**name));
    changes.delete = foreign.map(|(_, network)| (*network).clone()).collect();
    changes
}

/// The condition `Assigned` of NodeNetworks whose spec is as it should be. One that has yet to be written is judged
/// when it is: the condition names the generation it is about.
#[must_use]
pub fn plan_assigned(
    view: &View<'_>,
    assignment: &Assignment,
    pending: &Changes<NodeNetwork>,
) -> Vec<StatusChange<Condition>> {
    let pending: BTreeSet<_> = pending.update.iter().map(ResourceExt::name_any).collect();
    let settled = view
        .networks
        .iter()
        .filter(|(name, _)| !pending.contains(**name));
    settled
        .filter_map(|(name, network)| {
            let node = view.nodes.get(name)?;
            assigned(view, assignment, network, node)
        })
        .collect()
}

fn spec(
    view: &View<'_>,
    modes: Vec<NodeMode>,
    fabric: Option<&Fabric>,
    node: &Node,
    new: &[&NodeSubnet],
) -> NodeNetworkSpec {
    let name = node.name_any();
    let old = view
        .networks
        .get(name.as_str())
        .map(|network| &network.spec);
    let held = view
        .subnets
        .get(name.as_str())
        .map_or(&[][..], Vec::as_slice);
    let kept = held.iter().filter(|subnet| !is_withdrawn(view, subnet));
    let subnets: Vec<IpNet> = kept.chain(new).map(|subnet| subnet.spec.cidr).collect();
    NodeNetworkSpec {
        addresses: view.own_addresses(node),
        subnets,
        pools: pools(view, node, held, old),
        bgp: bgp(fabric, &name, &modes, old),
        modes,
    }
}

/// The pools that the node's pods get addresses from. One that is in trouble stays what it was: its pods must not get an
/// address of another meanwhile. One that is gone stays while the node has a block of it.
fn pools(
    view: &View<'_>,
    node: &Node,
    held: &[&NodeSubnet],
    old: Option<&NodeNetworkSpec>,
) -> Vec<String> {
    let usable = view.pools_of(node).map(|pool| pool.name.clone());
    let holds = |pool: &str| held.iter().any(|subnet| subnet.spec.pool == pool);
    let stays = |name: &&String| {
        view.pools.usable(name).is_none() && (!view.pool_is_going(name) || holds(name))
    };
    let before = old.into_iter().flat_map(|spec| &spec.pools);
    let pools: BTreeSet<String> = usable.chain(before.filter(stays).cloned()).collect();
    pools.into_iter().collect()
}

/// The node's BGP speaker. Like the modes: while one that is in trouble is kept for the blocks there are, so is the speaker.
fn bgp(
    fabric: Option<&Fabric>,
    name: &str,
    modes: &[NodeMode],
    old: Option<&NodeNetworkSpec>,
) -> Option<NodeBgp> {
    let speaker = fabric.and_then(|fabric| fabric.speakers.get(name));
    let kept = || {
        let in_use = modes.iter().any(|mode| mode.send.way() == Some(Way::Bgp));
        old.filter(|_| in_use)?.bgp.clone()
    };
    speaker.cloned().or_else(kept)
}

/// One of the modes in use: all agree on how node addresses are chosen (`validate`).
fn any_mode<'a>(view: &'a View<'_>) -> Option<&'a Mode> {
    view.used_modes().into_values().next()
}

/// The ways that the node has, and for which pools.
///
/// While a pool that has blocks is in trouble, its mode may be one that cannot be resolved any more; so as not to touch
/// running traffic, the node goes on doing for it what it did.
fn modes(view: &View<'_>, ways: &Ways<'_>, node: &str) -> Vec<NodeMode> {
    let old = view.networks.get(node);
    let old = || old.into_iter().flat_map(|network| &network.spec.modes);
    let mut modes: Vec<NodeMode> = Vec::new();
    let mut add = |way: &NodeMode, pool: &str, standby: bool| {
        let known = |mode: &NodeMode| mode.name == way.name && mode.same_way(way);
        let at = modes.iter().position(known).unwrap_or_else(|| {
            modes.push(NodeMode {
                pools: Vec::new(),
                standby: Vec::new(),
                ..way.clone()
            });
            modes.len() - 1
        });
        if let Some(mode) = modes.get_mut(at) {
            let list = if standby {
                &mut mode.standby
            } else {
                &mut mode.pools
            };
            list.push(pool.to_owned());
        }
    };
    for pool in view.pools_in_use.iter().copied() {
        match ways.get(pool) {
            Some(change) => {
                change
                    .send(node)
                    .into_iter()
                    .for_each(|way| add(way, pool, false));
                change.standby(node).for_each(|way| add(way, pool, true));
            }
            None => {
                let has = |list: &[String]| list.iter().any(|name| name == pool);
                old()
                    .filter(|mode| has(&mode.pools))
                    .for_each(|mode| add(mode, pool, false));
                old()
                    .filter(|mode| has(&mode.standby))
                    .for_each(|mode| add(mode, pool, true));
            }
        }
    }
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

fn assigned(
    view: &View<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    node: &Node,
) -> Option<StatusChange<Condition>> {
    let blocks_in_sight = view.subnets.contains_key(network.name_any().as_str());
    if !blocks_in_sight && !network.spec.subnets.is_empty() {
        // Its NodeSubnets have been written, and the watch has yet to say so.
        return None;
    }
    let (status, reason, message) = judge(view, assignment, network, node);
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
    let condition = status.condition(network.metadata.generation, before, view.world.now);
    if old == Some(&condition) {
        return None;
    }
    Some(StatusChange {
        name: network.name_any(),
        uid: network.uid(),
        news: News::of(before, &condition, condition.status != "True"),
        status: condition,
    })
}

fn judge(
    view: &View<'_>,
    assignment: &Assignment,
    network: &NodeNetwork,
    node: &Node,
) -> (bool, Reason, String) {
    let name = node.name_any();
    if let Some(mode) = any_mode(view)
        && view.any_addresses(node, mode).is_none()
    {
        let message = no_address(mode, view.outer_family(mode), network.spec.addresses);
        return (false, Reason::NoNodeAddress, message);
    }
    let exhausted = assignment
        .exhausted
        .iter()
        .chain(&assignment.scarce)
        .filter(|(_, nodes)| nodes.contains(&name));
    let exhausted: Vec<_> = exhausted.map(|(pool, _)| pool.as_str()).collect();
    let lacking = match exhausted.as_slice() {
        [] => String::new(),
        pools => format!("no block is left in {}", list(pools, 5)),
    };
    let held = view
        .subnets
        .get(name.as_str())
        .map_or(&[][..], Vec::as_slice);
    if held.is_empty() {
        let why = if any_mode(view).is_some_and(|mode| view.lacks_agent(&name, mode)) {
            "no agent has ever spoken on this node, and it gets no block before one has; if none is to run here, let agent.nodeSelector \
             of the chart's values leave the node out"
        } else if lacking.is_empty() {
            "no IPPool serves this node"
        } else {
            &lacking
        };
        let tunnels = view.used_modes().into_values().any(Mode::has_tunnels);
        let plain = if tunnels {
            "; without an address for tunnels it is answered by pods only where the network between nodes lets their addresses through"
        } else {
            ""
        };
        return (false, Reason::NoSubnet, format!("{why}{plain}"));
    }
    let mut pools: Vec<_> = held
        .iter()
        .map(|subnet| subnet.spec.pool.as_str())
        .collect();
    pools.sort_unstable();
    pools.dedup();
    let mut message = format!("{} of {}", counted(held.len(), "subnet"), list(&pools, 5));
    if !lacking.is_empty() {
        message = format!("{message}; {lacking}");
    }
    (true, Reason::SubnetsAssigned, message)
}

fn no_address(mode: &Mode, family: IpFamily, last: NodeAddresses) -> String {
    let wanted = match mode.address {
        AddressSource::InternalIp => "of type InternalIP".to_owned(),
        AddressSource::Cidr(range) => format!("inside {range}"),
    };
    let kept = match last.of(family) {
        Some(address) => format!("; the last one, {address}, stays in use"),
        None => String::new(),
    };
    format!("the Node states no {family} address {wanted} in status.addresses{kept}")
}
