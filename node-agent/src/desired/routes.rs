//! How one mode reaches the blocks of other nodes: by a tunnel, or by next hop on a link that both nodes share.
//!
//! ```text
//!   block ─▶ direct, or cross-subnet and on-link?  ── yes ─▶ 10.244.1.0/26 via <the node> dev <uplink>
//!                       │ no
//!                       ├─ encapsulated ─▶ route into the tunnel (`tunnel`)
//!                       ├─ underlay ─▶ none of ours: BIRD's, who hears of the block from its node (`bird`)
//!                       └─ host-gw ─▶ no route, and a problem with node and reason
//! ```
//!
//! It is decided for each peer and family. A block that cannot be reached is not programmed: a next hop that is not on the link would
//! send its packets to a router that has never heard of pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_crds::{EncapsulateWhen, IpFamily, NodeMode, Transport};
use netweft_netstate::model::{LinkName, Route, RouteKey};

use crate::desired::probe_plan::ProbePlan;
use crate::desired::tunnel::Tunnel;
use crate::desired::unreachable::Unreachable;
use crate::desired::{Desired, METRIC_STANDBY, carries, fits, pod_mtu, pod_mtu_to, unicast};
use crate::inputs::host_facts::Facts;
use crate::inputs::{Inputs, RemoteBlock};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, ProblemKind};

/// Add all that `mode` needs on this node.
pub fn add_to(inputs: &Inputs, facts: &Facts, mode: &NodeMode, desired: &mut Desired) {
    let Some(transport) = mode.transport.get() else {
        let mode = mode.name.clone();
        let cause = Cause::TransportUnknown { mode };
        desired.problems.push(Problem::from(cause));
        return;
    };
    let Some(mtu) = pod_mtu(inputs, facts, mode) else {
        let mode = mode.name.clone();
        let cause = Cause::NoAddressForMode { mode };
        desired.problems.push(Problem::from(cause));
        return;
    };
    desired.problems.extend(too_small(inputs, mode, mtu));
    let tunnel = match transport {
        Transport::Direct | Transport::Bgp => None,
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => {
            Tunnel::new(inputs, facts, mode, transport, mtu)
        }
    };
    if let Some(tunnel) = &tunnel {
        tunnel.add_to(desired);
    }
    let mut withheld = BTreeMap::new();
    let mut probe_plan = ProbePlan::new(mode, transport);
    let blocks = inputs.remote.iter();
    for block in blocks.filter(|block| carries(inputs, mode, &block.pool, mtu)) {
        let plainly = may_be_plain(mode).then(|| next_hop(inputs, facts, mode, block));
        let route = match (plainly, &tunnel) {
            // From the node's own address: answers to it take the same link, and need no route of ours.
            (Some(Ok((via, dev))), _) => Ok(Some(unicast(block.cidr, Some(via), dev, None))),
            (_, Some(tunnel)) => tunnel.route_to(block, desired),
            (Some(Err(why)), None) => Err(why),
            (None, None) => Ok(None),
        };
        if !mode.pools.contains(&block.pool) {
            let link = stand_by(inputs, facts, (mode, block), route, desired);
            probe_plan.add(inputs, block, link);
            continue;
        }
        match route {
            Ok(Some((key, route))) => {
                let mtu = lowered(inputs, facts, block, mtu);
                let route = Route { mtu, ..route };
                desired.kernel.routes.insert(key, route);
            }
            Ok(None) => {}
            Err(why) => {
                let subject = format!("node {}", block.node);
                let problem = Problem::new(ProblemKind::Invalid, subject, &why);
                withheld.insert(why.to_string(), problem);
            }
        }
    }
    desired.problems.extend(withheld.into_values());
    desired.probes.extend(probe_plan.for_some_of(&inputs.node));
}

/// Put a way behind the route that is in use, and behind BIRD's; those that stand by for the same block one behind the other. Gives
/// the link that it leads to; `None`: more than one.
///
/// # Errors
/// Why the block cannot be reached by it.
fn stand_by(
    inputs: &Inputs,
    facts: &Facts,
    (mode, block): (&NodeMode, &RemoteBlock),
    way: Result<Option<(RouteKey, Route)>, Unreachable>,
    desired: &mut Desired,
) -> Result<Option<LinkName>, Unreachable> {
    if let Some((key, route)) = way? {
        let at = inputs.modes.iter().position(|it| it == mode);
        let at = at.and_then(|at| u32::try_from(at).ok()).unwrap_or_default();
        let metric = METRIC_STANDBY + at;
        let link = route.dev.clone();
        desired
            .kernel
            .routes
            .insert(RouteKey { metric, ..key }, route);
        return Ok(link);
    }
    let mut bgp_routes = facts.bgp_routes.iter();
    let bgp_routes = bgp_routes.find(|(net, _)| net.contains(&block.cidr));
    match bgp_routes.filter(|_| mode.transport.get() == Some(Transport::Bgp)) {
        Some((_, link)) => Ok(link.clone()),
        None => Err(Unreachable::NoRoute(block.cidr)),
    }
}

/// Before nodes send by a way with less room, and where the other node's link takes less, packets that would not fit are answered by "too
/// large" on the way in use: on the link they would be lost without a word.
fn lowered(inputs: &Inputs, facts: &Facts, block: &RemoteBlock, mtu: u32) -> Option<u32> {
    let ways = inputs.modes_to(&block.pool);
    let least = ways
        .filter_map(|mode| pod_mtu_to(inputs, facts, mode, block))
        .min();
    least.filter(|least| *least < mtu && fits(block.cidr, *least))
}

/// Whether packets may travel by this mode without encapsulation.
fn may_be_plain(mode: &NodeMode) -> bool {
    match mode.transport.get() {
        Some(Transport::Direct) => true,
        Some(Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_)) => {
            mode.encapsulate_when == EncapsulateWhen::CrossSubnet
        }
        Some(Transport::Bgp) | None => false,
    }
}

/// The next hop to a block and the link it is on.
///
/// # Errors
/// Why packets for the block cannot go there without encapsulation.
fn next_hop(
    inputs: &Inputs,
    facts: &Facts,
    mode: &NodeMode,
    block: &RemoteBlock,
) -> Result<(IpAddr, LinkName), Unreachable> {
    let family = IpFamily::of(block.cidr.addr());
    let (peer, mode) = (&block.node, &mode.name);
    let lacking = |node: &str| Unreachable::NoNodeAddress {
        family,
        peer: peer.clone(),
        lacking: node.to_owned(),
        mode: mode.clone(),
    };
    let own = inputs.addresses.of(family);
    let own = own.ok_or_else(|| lacking(&inputs.node))?;
    let address = block.addresses.of(family);
    let address = address.ok_or_else(|| lacking(peer))?;
    match facts.egress.get(&own) {
        Some(egress) if egress.is_on_link(address) => Ok((address, egress.link.clone())),
        found => Err(Unreachable::NotOnLink {
            peer: peer.clone(),
            address,
            own,
            link: found.map(|egress| egress.link.to_string()),
            mode: mode.clone(),
        }),
    }
}

fn too_small(inputs: &Inputs, mode: &NodeMode, mtu: u32) -> impl Iterator<Item = Problem> {
    let pools = mode.all_pools();
    let pools = pools.filter_map(|name| Some((name, inputs.pools.get(name)?)));
    let left_out = pools.filter(move |(_, pool)| !fits(pool.cidr, mtu));
    left_out.map(move |(name, _)| {
        Problem::from(Cause::MtuTooSmallForIpv6 {
            pool: name.clone(),
            mode: mode.name.clone(),
            mtu,
        })
    })
}
