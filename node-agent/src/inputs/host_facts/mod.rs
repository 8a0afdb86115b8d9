//! Facts that only the kernel of the node has: the links that carry the node's addresses with their MTU, the prefixes on these
//! links, the links that accept router advertisements, and the TUN links of the relay.

mod accept_ra;
mod egress;
mod route_lookup;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeMode, Transport};
use netweft_netstate::model::{LinkKind, LinkName, NetworkState, TABLE_MAIN};

use crate::inputs::Inputs;
use crate::inputs::bgp_routes::bgp_routes;
pub use crate::inputs::host_facts::egress::Egress;
use crate::inputs::host_facts::route_lookup::PeerRoutes;
pub use crate::inputs::host_facts::route_lookup::{LookedUp, lookup_targets};

/// The loopback link. It has the addresses of nodes that are reached by several links. Its MTU of 65536 bytes is no limit of
/// the network.
const LOOPBACK: &str = "lo";

/// The facts of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Egress links by node address.
    pub egress: BTreeMap<IpAddr, Egress>,
    /// Links that lead to BGP peers.
    pub bgp_peer_links: BTreeSet<LinkName>,
    /// Blocks of other nodes to which BIRD has a route, with the link of the route; `None`: the route has several links.
    pub bgp_routes: BTreeMap<IpNet, Option<LinkName>>,
    /// Links on which routers may advertise themselves (see `accept_ra`).
    pub accept_ra_links: BTreeSet<LinkName>,
    /// Next hops of the default routes.
    pub default_gateways: BTreeSet<IpAddr>,
    /// TUN links, and whether a process has them open.
    pub tun_links: BTreeMap<LinkName, bool>,
}

/// An address that the operator has selected and that is on no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no link of this node has the node address {0}; compare `ip address` with the Node's status.addresses, or choose another address in the NetworkMode's spec.nodeAddress (an address behind 1:1 NAT, which is on no link of the node, is not supported)"
)]
pub struct NodeAddressMissing(pub IpAddr);

impl HostFacts {
    /// Derives the facts from the state of the kernel. `looked_up` are the kernel's results for [`lookup_targets`].
    ///
    /// # Errors
    /// A node address that a mode requires is on no link. The caller must then change nothing: an address can disappear for a
    /// moment.
    pub fn derive(
        actual: &NetworkState,
        inputs: &Inputs,
        looked_up: &LookedUp,
    ) -> Result<Self, NodeAddressMissing> {
        let peer_routes = PeerRoutes::new(actual, inputs, looked_up);
        let egress_of = |address: IpAddr| {
            let links = peer_routes.links_in_use(address.is_ipv4());
            Some((address, Egress::of(address, actual, &links)?))
        };
        let tun_links = actual
            .links
            .iter()
            .filter(|(_, link)| link.kind == LinkKind::Tun);
        let sessions = inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let local_addresses = sessions.map(|session| session.local);
        let facts = Self {
            egress: inputs
                .addresses
                .iter()
                .chain(local_addresses)
                .filter_map(egress_of)
                .collect(),
            bgp_peer_links: peer_routes.bgp_peer_links(),
            bgp_routes: bgp_routes(inputs, actual)
                .map(|(key, route)| (key.dst, route.dev.clone()))
                .collect(),
            accept_ra_links: accept_ra::links(actual),
            default_gateways: default_gateways(actual),
            tun_links: tun_links
                .map(|(name, _)| (name.clone(), actual.carriers.contains(name)))
                .collect(),
        };
        let mut required = inputs
            .modes
            .iter()
            .flat_map(|mode| required_addresses(inputs, mode));
        match required.find(|address| !facts.egress.contains_key(address)) {
            Some(missing) => Err(NodeAddressMissing(missing)),
            None => Ok(facts),
        }
    }
}

/// The next hops of the default routes of the main table.
fn default_gateways(actual: &NetworkState) -> BTreeSet<IpAddr> {
    let routes = actual.routes.iter();
    let default = routes.filter(|(key, _)| key.dst.prefix_len() == 0 && key.table == TABLE_MAIN);
    default.filter_map(|(_, route)| route.via).collect()
}

/// The node addresses that a mode requires.
fn required_addresses(inputs: &Inputs, mode: &NodeMode) -> Vec<IpAddr> {
    let next_hops = IpFamily::ALL
        .into_iter()
        .filter(|family| inputs.carries(*family))
        .filter_map(|family| inputs.addresses.of(family));
    match mode.transport.get() {
        Some(Transport::Direct) => next_hops.collect(),
        Some(Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_)) => {
            inputs.tunnel_endpoint(mode).into_iter().collect()
        }
        Some(Transport::Bgp) | None => vec![],
    }
}
