//! What only the kernel knows: which links carry the node's addresses, how large their packets may be, who else is on them,
//! and whether the relay is there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeMode, Transport};
use netweft_netstate::model::{
    Link, LinkKind, LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN,
};
use netweft_netstate::owner::{PROTOCOL_AGENT, PROTOCOL_PLUGIN, is_netweft_link};

use crate::inputs::Inputs;
use crate::inputs::bgp_routes::bgp_routes;

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
    pub bgp_routes: BTreeMap<IpNet, Option<LinkName>>,
    /// Links that hear routers, if they listen.
    pub listening: BTreeSet<LinkName>,
    /// TUN links, and whether a program has them open.
    pub tuns: BTreeMap<LinkName, bool>,
}

/// The link that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name. It need not have the node's address itself: that can be on a link of its own, a dummy for one.
    pub link: LinkName,
    /// Bytes of its largest packet; if packets to others leave by several links, the least of theirs.
    pub mtu: u32,
    /// Prefixes whose addresses are on the link itself: its connected routes, which follow from its addresses and their
    /// prefix lengths, or from what routers say of an IPv6 link.
    pub on_link: BTreeSet<IpNet>,
    /// Prefixes for which another program has set another route.
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
    "no link of this node has the node address {0}; compare `ip address` with the Node's status.addresses, or choose another address in the NetworkMode's spec.nodeAddress (an address behind 1:1 NAT, which is on no link of the node, is not supported)"
)]
pub struct NoSuchAddress(pub IpAddr);

impl Facts {
    /// Find the links that hold the node's addresses. `selected` is what the kernel says of [`peers`] where there is policy routing.
    ///
    /// # Errors
    /// An address that tunnels end at is on no link. Nothing should be changed then: an address can vanish for a moment.
    pub fn measure(
        actual: &NetworkState,
        inputs: &Inputs,
        selected: &Selected,
    ) -> Result<Self, NoSuchAddress> {
        let others = Others::new(actual, inputs, selected);
        let found = |address: IpAddr| {
            let key = actual
                .addresses
                .keys()
                .find(|key| key.net.addr() == address)?;
            let used = others.used(address.is_ipv4());
            let mtu = mtu(actual, &key.link, &used)?;
            let link = leaving(&key.link, &used);
            let (on_link, elsewhere) = prefixes_of_link(actual, &link, address.is_ipv4());
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
        let sessions = inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let locals = sessions.map(|session| session.local);
        let facts = Self {
            egress: inputs
                .addresses
                .iter()
                .chain(locals)
                .filter_map(found)
                .collect(),
            towards_peers: others.towards_peers(),
            bgp_routes: bgp_routes(inputs, actual)
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

/// The links by which the kernel sends to other nodes and BGP peers, by address.
pub type Selected = BTreeMap<IpAddr, LinkName>;

/// Most other nodes' addresses that the kernel is asked about in one reading.
const ASKED: usize = 64;

/// The addresses of which the kernel has to be asked by which link it sends to them: those of BGP peers, and of other nodes, evenly
/// chosen where they are many. None where there is no policy routing: then table `main` answers.
#[must_use]
pub fn peers(actual: &NetworkState, inputs: &Inputs) -> BTreeSet<IpAddr> {
    if !actual.policy_routing {
        return BTreeSet::new();
    }
    let nodes: BTreeSet<IpAddr> = of_nodes(inputs).collect();
    let step = nodes.len().div_ceil(ASKED).max(1);
    nodes
        .into_iter()
        .step_by(step)
        .chain(of_peers(inputs))
        .collect()
}

fn of_nodes(inputs: &Inputs) -> impl Iterator<Item = IpAddr> {
    let remote = inputs.remote.iter();
    remote.flat_map(|block| block.addresses.iter())
}

fn of_peers(inputs: &Inputs) -> impl Iterator<Item = IpAddr> {
    let sessions = inputs.bgp.iter().flat_map(|bgp| &bgp.sessions);
    sessions.map(|session| session.peer)
}

/// By which links packets leave for other nodes and BGP peers.
struct Others<'a> {
    actual: &'a NetworkState,
    inputs: &'a Inputs,
    selected: &'a Selected,
    /// Lengths of the prefixes that there are routes for, the longest first.
    lengths: BTreeSet<Reverse<u8>>,
}

impl<'a> Others<'a> {
    fn new(actual: &'a NetworkState, inputs: &'a Inputs, selected: &'a Selected) -> Self {
        let routes = actual.routes.keys();
        Self {
            actual,
            inputs,
            selected,
            lengths: routes.map(|key| Reverse(key.dst.prefix_len())).collect(),
        }
    }

    fn towards_peers(&self) -> BTreeSet<LinkName> {
        let links = of_peers(self.inputs).filter_map(|peer| self.towards(peer));
        links.flatten().collect()
    }

    /// The links in use for the addresses of a family; `None`: several for one address.
    fn used(&self, ipv4: bool) -> BTreeSet<Option<LinkName>> {
        let all: BTreeSet<IpAddr> = of_nodes(self.inputs).chain(of_peers(self.inputs)).collect();
        let of_family = all.into_iter().filter(|other| other.is_ipv4() == ipv4);
        of_family.filter_map(|other| self.towards(other)).collect()
    }

    /// The link over which packets for an address leave, by the longest prefix, and of equal ones the least metric: none without a route,
    /// and an inner none where the route has several. With policy routing it is what the kernel says, if it was asked.
    fn towards(&self, other: IpAddr) -> Option<Option<LinkName>> {
        if self.actual.policy_routing {
            return self.selected.get(&other).cloned().map(Some);
        }
        self.lengths.iter().find_map(|Reverse(length)| {
            let dst = IpNet::new(other, *length).ok()?.trunc();
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

/// The link by which packets of an address leave: the one that has it, unless all for others leave by another.
fn leaving(home: &LinkName, used: &BTreeSet<Option<LinkName>>) -> LinkName {
    let mut links = used.iter();
    match (links.next(), links.next()) {
        (Some(Some(only)), None) => only.clone(),
        _ => home.clone(),
    }
}

/// Bytes of the largest packet that leaves the node for others: the least of the links in use. Where nobody is known yet it is that of the link with
/// the address. Where that is the loopback, or a route has several links, any link with an address may be in use.
fn mtu(actual: &NetworkState, home: &LinkName, used: &BTreeSet<Option<LinkName>>) -> Option<u32> {
    let mtu = |link: &LinkName| Some(actual.links.get(link)?.mtu);
    let least = used.iter().flatten().filter_map(mtu).min();
    let on_loopback = home.as_str() == LOOPBACK;
    let any = (on_loopback && used.is_empty()) || used.contains(&None);
    let addressed = actual.addresses.keys().map(|key| &key.link);
    let addressed = addressed.filter(|name| name.as_str() != LOOPBACK && !is_netweft_link(name));
    let beside = any.then(|| addressed.filter_map(mtu).min()).flatten();
    least.into_iter().chain(beside).min().or_else(|| mtu(home))
}

/// The node's addresses without which a mode cannot be carried out.
fn needed(inputs: &Inputs, mode: &NodeMode) -> Vec<IpAddr> {
    let next_hops = [IpFamily::Ipv4, IpFamily::Ipv6]
        .into_iter()
        .filter(|family| inputs.carries(*family))
        .filter_map(|family| inputs.addresses.of(family));
    match mode.transport.get() {
        Some(Transport::Direct) => next_hops.collect(),
        Some(Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_)) => {
            inputs.local(mode).into_iter().collect()
        }
        Some(Transport::Bgp) | None => vec![],
    }
}

/// What other people's routes of a family say of a link: the prefixes that are on it, and those that are behind a router or
/// on another link.
fn prefixes_of_link(
    actual: &NetworkState,
    link: &LinkName,
    ipv4: bool,
) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
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
    use crate::inputs::RemoteBlock;
    use crate::pods::PodState;
    use crate::status::problem::Problems;

    fn measure(actual: &NetworkState, inputs: &Inputs) -> Result<Facts, NoSuchAddress> {
        Facts::measure(actual, inputs, &Selected::new())
    }

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
        inputs_by(Transport::Ipip, addresses, outer_family)
    }

    fn inputs_by(way: Transport, addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
        let mode = NodeMode {
            name: "default".into(),
            pools: vec![],
            standby_pools: vec![],
            transport: way.into(),
            outer_family,
            encapsulate_when: EncapsulateWhen::default(),
            mtu: 0,
            probe: Default::default(),
        };
        Inputs {
            node: "n".into(),
            addresses,
            modes: vec![mode],
            serving: vec![],
            peers_without_blocks: vec![],
            namespaces: BTreeMap::new(),
            blocks: vec![],
            withdrawn: vec![],
            remote: vec![],
            pools: BTreeMap::new(),
            bgp: None,
            pods: PodState::default(),
            problems: Problems::default(),
        }
    }

    fn addresses(ipv4: &str, ipv6: &str) -> NodeAddresses {
        NodeAddresses {
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
        }
    }

    #[test]
    fn mtu_is_read_from_link_with_node_address() {
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let facts = measure(&state(), &inputs).unwrap();
        let egress = &facts.egress[&"192.0.2.1".parse::<IpAddr>().unwrap()];
        assert_eq!((egress.link.as_str(), egress.mtu), ("uplink7", 1400));
    }

    #[test]
    fn accept_ra_links_are_hardware_and_links_with_ra_route() {
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
        let found = measure(&state, &inputs).unwrap().listening;
        let found: Vec<&str> = found.iter().map(LinkName::as_str).collect();
        assert_eq!(found, ["bond0", "ens8", "ens8.7", "told0"]);
    }

    #[test]
    fn mtu_of_loopback_node_address_follows_route_to_peers() {
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
            let facts = measure(state, inputs).unwrap();
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

    fn remote(node: &str, address: &str) -> RemoteBlock {
        RemoteBlock {
            cidr: "10.244.0.64/26".parse().unwrap(),
            pool: "p".into(),
            node: node.into(),
            addresses: addresses(address, ""),
            link_mtu: None,
        }
    }

    /// As with routing on the host: the address is on a link that no packet leaves by.
    #[test]
    fn node_address_on_dummy_link_uses_links_of_peer_routes() {
        let mut state = state();
        for (name, mtu) in [("dummy0", 1500), ("uplink8", 9000)] {
            let link = Link {
                mtu,
                ..link(LinkKind::Other("dummy".into()))
            };
            state.links.insert(name.parse().unwrap(), link);
        }
        let key = AddressKey {
            link: "dummy0".parse().unwrap(),
            net: "198.51.100.1/32".parse().unwrap(),
        };
        state.addresses.insert(key, Address::default());
        let mut inputs = inputs(addresses("198.51.100.1", ""), IpFamily::Ipv4);
        let egress = |state: &NetworkState, inputs: &Inputs| {
            let facts = measure(state, inputs).unwrap();
            let egress = facts.egress.into_values().next().unwrap();
            (egress.link.to_string(), egress.mtu)
        };
        assert_eq!(egress(&state, &inputs), ("dummy0".into(), 1500), "alone");
        inputs.remote.push(remote("a", "198.51.100.2"));
        inputs.remote.push(remote("b", "198.51.100.3"));
        let (key, route) = default_by("uplink8", 4);
        state.routes.insert(key.clone(), route.clone());
        assert_eq!(egress(&state, &inputs), ("uplink8".into(), 9000));
        let (longer, by_the_other) = (
            RouteKey {
                dst: "198.51.100.3/32".parse().unwrap(),
                ..key.clone()
            },
            Route {
                dev: "uplink7".parse().ok(),
                ..route.clone()
            },
        );
        state.routes.insert(longer.clone(), by_the_other);
        assert_eq!(
            egress(&state, &inputs),
            ("dummy0".into(), 1400),
            "two links"
        );
        state.routes.remove(&longer);
        let several = Route { dev: None, ..route };
        state.routes.insert(key, several);
        assert_eq!(
            egress(&state, &inputs),
            ("dummy0".into(), 1400),
            "one route"
        );
    }

    /// `ip rule add to 198.51.100.0/24 lookup 100`: table `main` has no route for it.
    #[test]
    fn policy_routing_determines_egress_link() {
        let mut state = state();
        let other = Link {
            mtu: 1300,
            ..link(LinkKind::Veth)
        };
        state.links.insert("uplink8".parse().unwrap(), other);
        let (key, route) = default_by("uplink7", 4);
        state.routes.insert(key, route);
        let mut inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        inputs.remote.push(remote("a", "198.51.100.2"));
        assert!(peers(&state, &inputs).is_empty(), "nothing to ask");
        state.policy_routing = true;
        let asked = peers(&state, &inputs);
        assert_eq!(asked.len(), 1);
        let by = |link: &str| {
            asked
                .iter()
                .map(|to| (*to, link.parse().unwrap()))
                .collect()
        };
        let egress = |selected: &Selected| {
            let facts = Facts::measure(&state, &inputs, selected).unwrap();
            let egress = facts.egress.into_values().next().unwrap();
            (egress.link.to_string(), egress.mtu)
        };
        assert_eq!(egress(&by("uplink8")), ("uplink8".into(), 1300));
        assert_eq!(egress(&by("uplink7")), ("uplink7".into(), 1400));
    }

    #[test]
    fn route_lookups_for_many_nodes_are_bounded() {
        let mut state = state();
        state.policy_routing = true;
        let mut inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        for last in 0..=255 {
            for third in 0..4 {
                let address = format!("198.51.{third}.{last}");
                inputs.remote.push(remote("x", &address));
            }
        }
        let asked = peers(&state, &inputs);
        assert_eq!(asked.len(), ASKED);
        assert!(asked.last().unwrap().to_string().starts_with("198.51.3."));
    }

    #[test]
    fn missing_tunnel_endpoint_address_is_named_in_error() {
        let gone = inputs(addresses("192.0.2.9", ""), IpFamily::Ipv4);
        let error = measure(&state(), &gone).unwrap_err();
        assert!(error.to_string().contains("192.0.2.9"));
        // No tunnel ends at this one.
        let other = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv4);
        assert_eq!(measure(&state(), &other).unwrap().egress.len(), 1);
        let needed = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv6);
        assert!(measure(&state(), &needed).is_err());
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
        let mut facts = measure(&state, &inputs).unwrap();
        facts.egress.pop_first().unwrap().1
    }

    #[test]
    fn on_link_check_follows_longest_prefix_route() {
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
    fn missing_node_address_is_error_only_for_pod_families() {
        let mut both = inputs_by(
            Transport::Direct,
            addresses("192.0.2.1", "2001:db8::9"),
            IpFamily::Ipv4,
        );
        assert!(
            measure(&state(), &both).is_ok(),
            "nobody has an IPv6 address"
        );
        both.blocks.push(crate::inputs::OwnBlock {
            cidr: "fd00::/122".parse().unwrap(),
            pool: "p".into(),
        });
        let error = measure(&state(), &both).unwrap_err();
        assert!(error.to_string().contains("2001:db8::9"));
    }

    #[test]
    fn tun_links_are_listed_with_carrier_state() {
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
        let tuns = measure(&state, &inputs).unwrap().tuns;
        assert_eq!(tuns.into_values().collect::<Vec<_>>(), [false, true]);
    }
}
