//! How one mode reaches the blocks of other nodes: by a tunnel, or by next hop on a link that both nodes share.
//!
//! ```text
//!   block ─▶ direct, or cross-subnet and on-link?  ── yes ─▶ 10.244.1.0/26 via <the node> dev <uplink>
//!                       │ no
//!                       ├─ encapsulated ─▶ route into the tunnel (`tunnel`)
//!                       ├─ underlay ─▶ no route of the agent: BIRD learns the block from its node (`bird`)
//!                       └─ host-gw ─▶ no route, and a problem with node and reason
//! ```
//!
//! This is decided per peer and family. An unreachable block is not programmed: a next hop that is not on the link would send its
//! packets to a router without routes to pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_crds::{EncapsulateWhen, IpFamily, NodeMode, Transport};
use netweft_netstate::model::{LinkName, Route, RouteKey};

use crate::desired::mtu::{is_sufficient, pod_mtu, pod_mtu_to, too_small};
use crate::desired::probe_plan::ProbePlan;
use crate::desired::tunnel::Tunnel;
use crate::desired::unreachable::Unreachable;
use crate::desired::{Desired, METRIC_STANDBY, carries, unicast};
use crate::inputs::host_facts::HostFacts;
use crate::inputs::{Inputs, RemoteBlock};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, ProblemKind};

/// Adds the tunnel, the routes and the probes of `mode`.
pub fn add_to(inputs: &Inputs, facts: &HostFacts, mode: &NodeMode, desired: &mut Desired) {
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
    let mut unreachable = BTreeMap::new();
    let mut probe_plan = ProbePlan::new(mode, transport);
    let blocks = inputs.remote.iter();
    for block in blocks.filter(|block| carries(inputs, mode, &block.pool, mtu)) {
        let direct = allows_direct(mode).then(|| next_hop(inputs, facts, mode, block));
        let route = match (contained_gateway(facts, block), direct, &tunnel) {
            // The node would lose its way to the API server, and never receive the correction.
            (Some(gateway), ..) => Err(Unreachable::ContainsGateway {
                block: block.cidr,
                peer: block.node.clone(),
                gateway,
            }),
            // No preferred source: replies to the node's address take the same link without a route of the agent.
            (None, Some(Ok((via, dev))), _) => Ok(Some(unicast(block.cidr, Some(via), dev, None))),
            (None, _, Some(tunnel)) => tunnel.route_to(block, desired),
            (None, Some(Err(cause)), None) => Err(cause),
            (None, None, None) => Ok(None),
        };
        if !mode.pools.contains(&block.pool) {
            let link = add_standby_route(inputs, facts, (mode, block), route, desired);
            probe_plan.add(inputs, block, link);
            continue;
        }
        match route {
            Ok(Some((key, route))) => {
                let mtu = route_mtu(inputs, facts, block, mtu);
                let route = Route { mtu, ..route };
                desired.kernel.routes.insert(key, route);
            }
            Ok(None) => {}
            Err(cause) => {
                let subject = format!("node {}", block.node);
                let problem = Problem::new(ProblemKind::Invalid, subject, &cause);
                unreachable.insert(cause.to_string(), problem);
            }
        }
    }
    desired.problems.extend(unreachable.into_values());
    desired.probes.extend(probe_plan.sampled(&inputs.node));
}

/// A default gateway of the node in the block.
fn contained_gateway(facts: &HostFacts, block: &RemoteBlock) -> Option<IpAddr> {
    let mut gateways = facts.default_gateways.iter();
    gateways
        .find(|gateway| block.cidr.contains(*gateway))
        .copied()
}

/// Adds a standby route, with a higher metric than the route in use and the routes of BIRD. Standby routes of several modes to one
/// block have different metrics. Returns the link of the route; `None`: several links.
///
/// # Errors
/// Why the block is unreachable by the mode.
fn add_standby_route(
    inputs: &Inputs,
    facts: &HostFacts,
    (mode, block): (&NodeMode, &RemoteBlock),
    route: Result<Option<(RouteKey, Route)>, Unreachable>,
    desired: &mut Desired,
) -> Result<Option<LinkName>, Unreachable> {
    if let Some((key, route)) = route? {
        let index = inputs.modes.iter().position(|it| it == mode);
        let index = index.and_then(|index| u32::try_from(index).ok());
        let metric = METRIC_STANDBY + index.unwrap_or_default();
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

/// The MTU of the route, if it is smaller than that of the link: because a standby datapath or the link of the other node has a
/// smaller MTU. Senders of larger packets then get an ICMP error (packet too big), where the link would drop them silently.
fn route_mtu(inputs: &Inputs, facts: &HostFacts, block: &RemoteBlock, mtu: u32) -> Option<u32> {
    let modes = inputs.modes_to(&block.pool);
    let smallest = modes
        .filter_map(|mode| pod_mtu_to(inputs, facts, mode, block))
        .min();
    smallest.filter(|smallest| *smallest < mtu && is_sufficient(block.cidr, *smallest))
}

/// Whether packets of this mode can travel without encapsulation.
fn allows_direct(mode: &NodeMode) -> bool {
    match mode.transport.get() {
        Some(Transport::Direct) => true,
        Some(Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_)) => {
            mode.encapsulate_when == EncapsulateWhen::CrossSubnet
        }
        Some(Transport::Bgp) | None => false,
    }
}

/// The next hop to a block, and its link.
///
/// # Errors
/// Why the block is unreachable without encapsulation.
fn next_hop(
    inputs: &Inputs,
    facts: &HostFacts,
    mode: &NodeMode,
    block: &RemoteBlock,
) -> Result<(IpAddr, LinkName), Unreachable> {
    let family = IpFamily::of(block.cidr.addr());
    let (peer, mode) = (&block.node, &mode.name);
    let no_address = |node: &str| Unreachable::NoNodeAddress {
        family,
        peer: peer.clone(),
        without_address: node.to_owned(),
        mode: mode.clone(),
    };
    let own = inputs.addresses.of(family);
    let own = own.ok_or_else(|| no_address(&inputs.node))?;
    let address = block.addresses.of(family);
    let address = address.ok_or_else(|| no_address(peer))?;
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
