//! What only the kernel knows: which links carry the node's addresses, how large their packets may be, who else is on them,
//! and whether the relay is there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeMode, Way};
use netweft_netstate::model::{
    Link, LinkKind, LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN,
};
use netweft_netstate::owner::{PROTOCOL_AGENT, PROTOCOL_PLUGIN, is_our_link};

use crate::desired::bird::learnt;
use crate::inputs::Inputs;

/// The loopback link: it has addresses of nodes that are reached by several links, and takes packets of 65536 bytes, which no other can.
const LOOPBACK: &str = "lo";

/// Kinds of links (`IFLA_INFO_KIND`) that lead out of a machine; hardware has none.
const UPLINKS: [&str; 4] = ["", "bond", "team", "vlan"];
/// Who made a route that came by a router advertisement (`RTPROT_RA`).
const PROTOCOL_RA: u8 = 9;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Egress links by node address.
    pub egress: BTreeMap<IpAddr, Egress>,
    /// Links that lead to BGP peers.
    pub towards_peers: BTreeSet<LinkName>,
    /// Other nodes' blocks to which BIRD has a route, and by which link; `None`: by more than one.
    pub learnt: BTreeMap<IpNet, Option<LinkName>>,
    /// Links that hear routers, if they listen.
    pub listening: BTreeSet<LinkName>,
    /// TUN links, and whether a program has them open.
    pub tuns: BTreeMap<LinkName, bool>,
}

/// A link that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name.
    pub link: LinkName,
    /// Bytes of its largest packet.
    pub mtu: u32,
    /// Prefixes whose addresses are on the link itself: its connected routes, which follow from its addresses and their
    /// prefix lengths, or from what routers say of an IPv6 link.
    pub on_link: BTreeSet<IpNet>,
    /// Prefixes for which somebody has set another way.
    pub elsewhere: BTreeSet<IpNet>,
}

impl Egress {
    /// Whether a peer with this address can be sent to without a router between. As in the kernel's own look-up, the
    /// longest prefix decides.
    #[must_use]
    pub fn is_on_link(&self, peer: IpAddr) -> bool {
        let longest = |nets: &BTreeSet<IpNet>| {
            let around = nets.iter().filter(|net| net.contains(&peer));
            around.map(IpNet::prefix_len).max()
        };
        let here = longest(&self.on_link);
        here.is_some() && here >= longest(&self.elsewhere)
    }
}

/// An address that the operator chose and that no link has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no link of this node has the node address {0}; compare `ip address` with the Node's status.addresses, or choose another address in the NetworkMode's spec.nodeAddress"
)]
pub struct NoSuchAddress(pub IpAddr);

impl Facts {
    /// Find the links that hold the node's addresses.
    ///
    /// # Errors
    /// An address that tunnels end at is on no link. Nothing should be changed then: an address can vanish for a moment.
    pub fn measure(actual: &NetworkState, inputs: &Inputs) -> Result<Self, NoSuchAddress> {
        let found = |address: IpAddr| {
            let key = actual
                .addresses
                .keys()
                .find(|key| key.net.addr() == address)?;
            let link = key.link.clone();
            let beside = (link.as_str() == LOOPBACK).then(|| mtu_beside_loopback(actual, inputs));
            let mtu = beside.flatten().unwrap_or(actual.links.get(&link)?.mtu);
            let (on_link, elsewhere) = ways(actual, &link, address.is_ipv4());
            let egress = Egress {
                link,
                mtu,
                on_link,
                elsewhere,
            };
            Some((address, egress))
        };
        let tuns = actual
            .links
            .iter()
            .filter(|(_, link)| link.kind == LinkKind::Tun);
        let sessions = || inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let locals = sessions().map(|session| session.local);
        let peers = sessions().filter_map(|session| towards(actual, session.peer));
        let facts = Self {
            egress: inputs
                .addresses
                .iter()
                .chain(locals)
                .filter_map(found)
                .collect(),
            towards_peers: peers.collect(),
            learnt: learnt(inputs, actual)
                .map(|(key, route)| (key.dst, route.dev.clone()))
                .collect(),
            listening: listening(actual),
            tuns: tuns
                .map(|(name, _)| (name.clone(), actual.carriers.contains(name)))
                .collect(),
        };
        let needed = inputs.modes.iter().flat_map(|mode| needed(inputs, mode));
        match needed
            .into_iter()
            .find(|address| !facts.egress.contains_key(address))
        {
            Some(missing) => Err(NoSuchAddress(missing)),
            None => Ok(facts),
        }
    }
}

/// The links that hear routers: hardware, what is stacked on it, and whatever has a route from a router. Not those towards containers and
/// virtual machines, which could give the node a default route.
fn listening(actual: &NetworkState) -> BTreeSet<LinkName> {
    let leads_out = |link: &Link| matches!(&link.kind, LinkKind::Other(kind) if UPLINKS.contains(&kind.as_str()));
    let links = actual.links.iter();
    let uplinks = links.filter(|(name, link)| name.as_str() != LOOPBACK && leads_out(link));
    let routes = actual.routes.values();
    let told = routes.filter(|route| route.protocol == PROTOCOL_RA);
    let told = told.filter_map(|route| route.dev.as_ref());
    uplinks.map(|(name, _)| name).chain(told).cloned().collect()
}

/// Bytes of the largest packet that leaves a node whose address is on none of its uplinks: on the way to other nodes and BGP peers, or where
/// that is more than one link, or nobody is known yet, by any link with an address.
fn mtu_beside_loopback(actual: &NetworkState, inputs: &Inputs) -> Option<u32> {
    let sessions = inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
    let nodes = inputs
        .remote
        .iter()
        .flat_map(|block| block.addresses.iter());
    let others: BTreeSet<IpAddr> = sessions.map(|session| session.peer).chain(nodes).collect();
    let towards = others.iter().filter_map(|other| towards(actual, *other));
    let mtu = |link: LinkName| Some(actual.links.get(&link)?.mtu);
    let addressed = actual.addresses.keys().map(|key| key.link.clone());
    let addressed = addressed.filter(|name| name.as_str() != LOOPBACK && !is_our_link(name));
    let least = towards.filter_map(mtu).min();
    least.or_else(|| addressed.filter_map(mtu).min())
}

/// The node's addresses without which a mode cannot be carried out.
fn needed(inputs: &Inputs, mode: &NodeMode) -> Vec<IpAddr> {
    let next_hops = [IpFamily::Ipv4, IpFamily::Ipv6]
        .into_iter()
        .filter(|family| inputs.carries(*family))
        .filter_map(|family| inputs.addresses.of(family));
    match mode.send.way() {
        Some(Way::Direct) => next_hops.collect(),
        Some(Way::Vxlan(_) | Way::Ipip | Way::Udp(_)) => inputs.local(mode).into_iter().collect(),
        Some(Way::Bgp) | None => vec![],
    }
}

/// The link over which packets for an address leave: by the longest prefix, and of equal ones the least metric.
fn towards(actual: &NetworkState, peer: IpAddr) -> Option<LinkName> {
    let around = actual.routes.iter().filter(|(key, route)| {
        key.table == TABLE_MAIN && key.dst.contains(&peer) && route.dev.is_some()
    });
    let best = around.max_by_key(|(key, _)| (key.dst.prefix_len(), Reverse(key.metric)));
    best.and_then(|(_, route)| route.dev.clone())
}

/// What other people's routes of a family say of a link: the prefixes that are on it, and those that are behind a router or
/// on another link.
fn ways(actual: &NetworkState, link: &LinkName, ipv4: bool) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
    let foreign = |(key, route): &(&RouteKey, &Route)| {
        key.table == TABLE_MAIN
            && key.dst.addr().is_ipv4() == ipv4
            && ![PROTOCOL_AGENT, PROTOCOL_PLUGIN].contains(&route.protocol)
    };
    let connected = |route: &Route| {
        route.kind == RouteKind::Unicast && route.via.is_none() && route.dev.as_ref() == Some(link)
    };
    let (here, elsewhere): (Vec<_>, Vec<_>) = actual
        .routes
        .iter()
        .filter(foreign)
        .partition(|(_, route)| connected(route));
    let nets =
        |routes: Vec<(&RouteKey, &Route)>| routes.into_iter().map(|(key, _)| key.dst).collect();
    (nets(here), nets(elsewhere))
}

#[cfg(test)]
mod tests {
    use netweft_crds::{EncapsulateWhen, NodeAddresses};
    use netweft_netstate::model::{Address, AddressKey};

    use super::*;
    use crate::inputs::{PodState, RemoteBlock};

    fn link(kind: LinkKind) -> Link {
        Link {
            kind,
            mac: None,
            mtu: 1400,
            up: true,
        }
    }

    fn state() -> NetworkState {
        let mut state = NetworkState::default();
        let name: LinkName = "uplink7".parse().unwrap();
        state.links.insert(name.clone(), link(LinkKind::Veth));
        let key = AddressKey {
            link: name,
            net: "192.0.2.1/24".parse().unwrap(),
        };
        state.addresses.insert(key, Address::default());
        state
    }

    fn inputs(addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
        inputs_by(Way::Ipip, addresses, outer_family)
    }

    fn inputs_by(way: Way, addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
        let mode = NodeMode {
            name: "default".into(),
            pools: vec![],
            accept: vec![],
            standby: vec![],
            send: way.into(),
            outer_family,
            encapsulate_when: EncapsulateWhen::default(),
            mtu: 0,
        };
        Inputs {
            node: "n".into(),
            addresses,
            modes: vec![mode],
            serving: vec![],
            namespaces: BTreeMap::new(),
            blocks: vec![],
            withdrawn: vec![],
            remote: vec![],
            pools: BTreeMap::new(),
            bgp: None,
            pods: PodState::default(),
            problems: vec![],
        }
    }

    fn addresses(ipv4: &str, ipv6: &str) -> NodeAddresses {
        NodeAddresses {
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
        }
    }

    #[test]
    fn the_mtu_is_that_of_the_link_with_the_node_address() {
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let facts = Facts::measure(&state(), &inputs).unwrap();
        let egress = &facts.egress[&"192.0.2.1".parse::<IpAddr>().unwrap()];
        assert_eq!((egress.link.as_str(), egress.mtu), ("uplink7", 1400));
    }

    #[test]
    fn hardware_and_what_routers_have_told_of_hears_routers_and_no_link_of_guests() {
        let mut state = state();
        let other = |kind: &str| LinkKind::Other(kind.to_owned());
        for (name, kind) in [
            ("lo", other("")),
            ("ens8", other("")),
            ("bond0", other("bond")),
            ("ens8.7", other("vlan")),
            ("bwp0", other("ifb")),
            ("tap0", LinkKind::Tun),
            ("nw-br0", LinkKind::Bridge),
            ("nw0123456789a", LinkKind::Veth),
            ("guests0", LinkKind::Bridge),
            ("told0", LinkKind::Bridge),
        ] {
            state.links.insert(name.parse().unwrap(), link(kind));
        }
        let (key, route) = default_by("told0", PROTOCOL_RA);
        state.routes.insert(key, route);
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let found = Facts::measure(&state, &inputs).unwrap().listening;
        let found: Vec<&str> = found.iter().map(LinkName::as_str).collect();
        assert_eq!(found, ["bond0", "ens8", "ens8.7", "told0"]);
    }

    #[test]
    fn the_mtu_of_an_address_on_the_loopback_is_that_of_the_way_to_the_others() {
        let mut state = state();
        let loopback: LinkName = "lo".parse().unwrap();
        let large = Link {
            mtu: 65536,
            ..link(LinkKind::Other(String::new()))
        };
        state.links.insert(loopback.clone(), large);
        let key = AddressKey {
            link: loopback,
            net: "198.51.100.1/32".parse().unwrap(),
        };
        state.addresses.insert(key, Address::default());
        let mtus = |state: &NetworkState, inputs: &Inputs| -> Vec<u32> {
            let facts = Facts::measure(state, inputs).unwrap();
            facts.egress.values().map(|egress| egress.mtu).collect()
        };
        let mut inputs = inputs(addresses("198.51.100.1", ""), IpFamily::Ipv4);
        inputs.remote.push(RemoteBlock {
            cidr: "10.244.0.64/26".parse().unwrap(),
            pool: "p".into(),
            node: "other".into(),
            addresses: addresses("198.51.100.2", ""),
            link_mtu: None,
        });
        // By more than one link, or by none: by whatever has an address.
        assert_eq!(mtus(&state, &inputs), [1400]);
        let jumbo = Link {
            mtu: 9000,
            ..link(LinkKind::Veth)
        };
        state.links.insert("uplink8".parse().unwrap(), jumbo);
        let (key, route) = default_by("uplink8", 4);
        state.routes.insert(key, route);
        assert_eq!(mtus(&state, &inputs), [9000]);
    }

    #[test]
    fn an_address_of_a_tunnel_that_is_on_no_link_is_an_error_that_names_it() {
        let gone = inputs(addresses("192.0.2.9", ""), IpFamily::Ipv4);
        let error = Facts::measure(&state(), &gone).unwrap_err();
        assert!(error.to_string().contains("192.0.2.9"));
        // No tunnel ends at this one.
        let other = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv4);
        assert_eq!(Facts::measure(&state(), &other).unwrap().egress.len(), 1);
        let needed = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv6);
        assert!(Facts::measure(&state(), &needed).is_err());
    }

    fn default_by(dev: &str, protocol: u8) -> (RouteKey, Route) {
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: "0.0.0.0/0".parse().unwrap(),
            metric: 0,
        };
        let route = Route {
            kind: RouteKind::Unicast,
            protocol,
            via: "192.0.2.254".parse().ok(),
            dev: dev.parse().ok(),
            onlink: false,
            source: None,
            mtu: None,
        };
        (key, route)
    }

    fn egress_with(routes: &[(&str, Option<&str>, &str)]) -> Egress {
        let mut state = state();
        for (dst, via, dev) in routes {
            let key = RouteKey {
                table: TABLE_MAIN,
                dst: dst.parse().unwrap(),
                metric: 0,
            };
            let route = Route {
                kind: RouteKind::Unicast,
                protocol: 2,
                via: via.map(|via| via.parse().unwrap()),
                dev: Some(dev.parse().unwrap()),
                onlink: false,
                source: None,
                mtu: None,
            };
            state.routes.insert(key, route);
        }
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let mut facts = Facts::measure(&state, &inputs).unwrap();
        facts.egress.pop_first().unwrap().1
    }

    #[test]
    fn a_peer_is_on_the_link_if_the_longest_route_says_so() {
        let on_link = |egress: &Egress, peer: &str| egress.is_on_link(peer.parse().unwrap());
        let egress = egress_with(&[
            ("0.0.0.0/0", Some("192.0.2.254"), "uplink7"),
            ("192.0.2.0/24", None, "uplink7"),
            ("192.0.2.64/26", Some("192.0.2.254"), "uplink7"),
            ("198.51.100.0/24", None, "uplink8"),
        ]);
        assert!(on_link(&egress, "192.0.2.2"));
        assert!(!on_link(&egress, "192.0.2.65"), "behind a router");
        assert!(!on_link(&egress, "198.51.100.2"), "on another link");
        assert!(!on_link(&egress, "203.0.113.1"), "by the default route");
        // A host address without a network, as clouds give them.
        let alone = egress_with(&[("192.0.2.254/32", None, "uplink7")]);
        assert!(!on_link(&alone, "192.0.2.2"));
    }

    #[test]
    fn next_hops_need_the_address_of_each_family_that_pods_have() {
        let mut both = inputs_by(
            Way::Direct,
            addresses("192.0.2.1", "2001:db8::9"),
            IpFamily::Ipv4,
        );
        assert!(
            Facts::measure(&state(), &both).is_ok(),
            "nobody has an IPv6 address"
        );
        both.blocks.push(crate::inputs::OwnBlock {
            cidr: "fd00::/122".parse().unwrap(),
            pool: "p".into(),
        });
        let error = Facts::measure(&state(), &both).unwrap_err();
        assert!(error.to_string().contains("2001:db8::9"));
    }

    #[test]
    fn tun_links_are_found_and_whether_they_are_open() {
        let mut state = state();
        for name in ["nw-udp8285", "nw-udp8286"] {
            let link = Link {
                kind: LinkKind::Tun,
                mac: None,
                mtu: 1500,
                up: true,
            };
            state.links.insert(name.parse().unwrap(), link);
        }
        state.carriers.insert("nw-udp8286".parse().unwrap());
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let tuns = Facts::measure(&state, &inputs).unwrap().tuns;
        assert_eq!(tuns.into_values().collect::<Vec<_>>(), [false, true]);
    }
}
