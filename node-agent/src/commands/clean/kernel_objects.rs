//! The operations that delete netweft's objects from the kernel. Pure.

use netweft_common::link_names::FIREWALL_PROBE;
use netweft_netstate::diff::diff;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;

use crate::inputs::bgp_routes::is_of_bird;

/// The operations that delete all objects of plugin, agent, BIRD and firewall probe.
pub fn deletions(actual: &NetworkState) -> Vec<Op> {
    let empty = NetworkState::default();
    let owners = [Owner::plugin(), Owner::agent()];
    let owned = owners
        .iter()
        .flat_map(|owner| diff(actual, &empty, owner).ops);
    let bird_routes = actual
        .routes
        .iter()
        .filter(|(key, route)| is_of_bird(key, route));
    let bird_routes = bird_routes.map(|(key, route)| Op::RouteDelete {
        key: key.clone(),
        route: route.clone(),
    });
    let links = actual.links.keys();
    let probe_links = links.filter(|name| FIREWALL_PROBE.contains(&name.as_str()));
    let probe_links = probe_links.map(|name| Op::LinkDelete { name: name.clone() });
    owned.chain(bird_routes).chain(probe_links).collect()
}
