//! The link by which packets from a node address leave, its MTU, and the prefixes on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_netstate::model::{LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN};
use netweft_netstate::owner::{PROTOCOL_AGENT, PROTOCOL_PLUGIN, is_netweft_link};

use crate::inputs::host_facts::LOOPBACK;

/// The link that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name. The node address can be on another link, for example a dummy link.
    pub link: LinkName,
    /// MTU in bytes; the smallest one if packets to other nodes leave by several links.
    pub mtu: u32,
    /// Prefixes on the link: its connected routes, which follow from its addresses and their prefix lengths, or from router
    /// advertisements.
    pub on_link: BTreeSet<IpNet>,
    /// Prefixes to which another program has added another route.
    pub off_link: BTreeSet<IpNet>,
}

impl Egress {
    /// The egress of a node address; `None` if no link has the address. `links` are those by which packets to other nodes
    /// leave; `None` in it stands for a route with several links.
    pub(super) fn of(
        address: IpAddr,
        actual: &NetworkState,
        links: &BTreeSet<Option<LinkName>>,
    ) -> Option<Self> {
        let mut keys = actual.addresses.keys();
        let address_link = &keys.find(|key| key.net.addr() == address)?.link;
        let mtu = mtu(actual, address_link, links)?;
        let link = egress_link(address_link, links);
        let (on_link, off_link) = prefixes(actual, &link, address.is_ipv4());
        Some(Self {
            link,
            mtu,
            on_link,
            off_link,
        })
    }

    /// Whether a peer with this address is reached without a router. The longest prefix decides, as in the kernel's own
    /// lookup.
    #[must_use]
    pub fn is_on_link(&self, peer: IpAddr) -> bool {
        let longest_prefix = |nets: &BTreeSet<IpNet>| {
            let matching = nets.iter().filter(|net| net.contains(&peer));
            matching.map(IpNet::prefix_len).max()
        };
        let on_link = longest_prefix(&self.on_link);
        on_link.is_some() && on_link >= longest_prefix(&self.off_link)
    }
}

/// The link that has the address, unless all packets to other nodes leave by one other link.
fn egress_link(address_link: &LinkName, links: &BTreeSet<Option<LinkName>>) -> LinkName {
    let mut links = links.iter();
    match (links.next(), links.next()) {
        (Some(Some(only)), None) => only.clone(),
        _ => address_link.clone(),
    }
}

/// The smallest MTU of the links in use. Without other nodes it is the MTU of the link with the address. If that is the
/// loopback, or if a route has several links, any link with an address may be in use.
fn mtu(
    actual: &NetworkState,
    address_link: &LinkName,
    links: &BTreeSet<Option<LinkName>>,
) -> Option<u32> {
    let mtu_of = |link: &LinkName| Some(actual.links.get(link)?.mtu);
    let in_use = links.iter().flatten().filter_map(mtu_of).min();
    let on_loopback = address_link.as_str() == LOOPBACK;
    let any_link = (on_loopback && links.is_empty()) || links.contains(&None);
    let with_address = actual.addresses.keys().map(|key| &key.link);
    let with_address =
        with_address.filter(|name| name.as_str() != LOOPBACK && !is_netweft_link(name));
    let possible = any_link.then(|| with_address.filter_map(mtu_of).min());
    let smallest = in_use.into_iter().chain(possible.flatten()).min();
    smallest.or_else(|| mtu_of(address_link))
}

/// The prefixes that foreign routes of a family have on a link, and those that they have behind a router or on another link.
fn prefixes(
    actual: &NetworkState,
    link: &LinkName,
    ipv4: bool,
) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
    let is_foreign = |(key, route): &(&RouteKey, &Route)| {
        key.table == TABLE_MAIN
            && key.dst.addr().is_ipv4() == ipv4
            && ![PROTOCOL_AGENT, PROTOCOL_PLUGIN].contains(&route.protocol)
    };
    let is_connected = |route: &Route| {
        route.kind == RouteKind::Unicast && route.via.is_none() && route.dev.as_ref() == Some(link)
    };
    let (on_link, off_link): (Vec<_>, Vec<_>) = actual
        .routes
        .iter()
        .filter(is_foreign)
        .partition(|(_, route)| is_connected(route));
    let nets =
        |routes: Vec<(&RouteKey, &Route)>| routes.into_iter().map(|(key, _)| key.dst).collect();
    (nets(on_link), nets(off_link))
}
