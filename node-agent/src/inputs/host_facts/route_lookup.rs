//! The links by which packets to other nodes and BGP peers leave: from the routes of table `main`, or, with policy routing, from
//! lookups by the kernel.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_netstate::model::{LinkName, NetworkState, RouteKey, RouteKind, TABLE_MAIN};

use crate::inputs::Inputs;

/// The egress links that the kernel has looked up, by destination.
pub type LookedUp = BTreeMap<IpAddr, LinkName>;

/// Maximum number of lookups for addresses of other nodes per reconcile.
pub(super) const MAX_LOOKUPS: usize = 64;

/// The destinations that the kernel has to look up: BGP peers and other nodes, of which many are sampled evenly. Empty without
/// policy routing, because table `main` is sufficient then.
#[must_use]
pub fn lookup_targets(actual: &NetworkState, inputs: &Inputs) -> BTreeSet<IpAddr> {
    if !actual.policy_routing {
        return BTreeSet::new();
    }
    let nodes: BTreeSet<IpAddr> = other_nodes(inputs).collect();
    let step = nodes.len().div_ceil(MAX_LOOKUPS).max(1);
    nodes
        .into_iter()
        .step_by(step)
        .chain(bgp_peers(inputs))
        .collect()
}

fn other_nodes(inputs: &Inputs) -> impl Iterator<Item = IpAddr> {
    let remote = inputs.remote.iter();
    remote.flat_map(|block| block.addresses.iter())
}

fn bgp_peers(inputs: &Inputs) -> impl Iterator<Item = IpAddr> {
    let sessions = inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
    sessions.map(|session| session.peer)
}

/// The routes to other nodes and BGP peers.
pub(super) struct PeerRoutes<'a> {
    actual: &'a NetworkState,
    inputs: &'a Inputs,
    looked_up: &'a LookedUp,
    /// Prefix lengths of all routes, the longest first.
    prefix_lengths: BTreeSet<Reverse<u8>>,
}

impl<'a> PeerRoutes<'a> {
    pub(super) fn new(
        actual: &'a NetworkState,
        inputs: &'a Inputs,
        looked_up: &'a LookedUp,
    ) -> Self {
        let routes = actual.routes.keys();
        Self {
            actual,
            inputs,
            looked_up,
            prefix_lengths: routes.map(|key| Reverse(key.dst.prefix_len())).collect(),
        }
    }

    pub(super) fn bgp_peer_links(&self) -> BTreeSet<LinkName> {
        let links = bgp_peers(self.inputs).filter_map(|peer| self.link_to(peer));
        links.flatten().collect()
    }

    /// The links in use for the addresses of a family; `None` in it stands for a route with several links.
    pub(super) fn links_in_use(&self, ipv4: bool) -> BTreeSet<Option<LinkName>> {
        let peers: BTreeSet<IpAddr> = other_nodes(self.inputs)
            .chain(bgp_peers(self.inputs))
            .collect();
        let of_family = peers.into_iter().filter(|peer| peer.is_ipv4() == ipv4);
        of_family.filter_map(|peer| self.link_to(peer)).collect()
    }

    /// The link of the route to a peer: the one with the longest prefix, then with the lowest metric. `None`: there is no
    /// route, or the kernel has not looked it up. `Some(None)`: the route has several links.
    fn link_to(&self, peer: IpAddr) -> Option<Option<LinkName>> {
        if self.actual.policy_routing {
            return self.looked_up.get(&peer).cloned().map(Some);
        }
        self.prefix_lengths.iter().find_map(|Reverse(length)| {
            let dst = IpNet::new(peer, *length).ok()?.trunc();
            let key = |metric| RouteKey {
                table: TABLE_MAIN,
                dst,
                metric,
            };
            let mut routes = self.actual.routes.range(key(0)..=key(u32::MAX));
            let best = routes.find(|(_, route)| route.kind == RouteKind::Unicast);
            best.map(|(_, route)| route.dev.clone())
        })
    }
}
