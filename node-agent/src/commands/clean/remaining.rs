//! What of the kernel's state is netweft's. Pure.

use netweft_common::link_names::FIREWALL_PROBE;
use netweft_netstate::diff::diff;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;

use crate::inputs::bgp_routes::is_birds;

/// What makes a state without anything of ours: a node that is to have nothing.
pub fn leftovers(actual: &NetworkState) -> Vec<Op> {
    let nothing = NetworkState::default();
    let owners = [Owner::plugin(), Owner::agent()];
    let ours = owners
        .iter()
        .flat_map(|owner| diff(actual, &nothing, owner).ops);
    let birds = actual
        .routes
        .iter()
        .filter(|(key, route)| is_birds(key, route));
    let birds = birds.map(|(key, route)| Op::RouteDelete {
        key: key.clone(),
        route: route.clone(),
    });
    let links = actual.links.keys();
    let probes = links.filter(|name| FIREWALL_PROBE.contains(&name.as_str()));
    let probes = probes.map(|name| Op::LinkDelete { name: name.clone() });
    ours.chain(birds).chain(probes).collect()
}
