//! Decodes messages into the model. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoIpTunnel, InfoKind, InfoPortData, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
    RouteVia,
};
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::model::{
    Address, AddressKey, FdbKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey, Route,
    RouteKey, RouteKind, SpecialAddress, Vxlan,
};

/// Link names by index, from the same dump.
pub(super) type Names = BTreeMap<u32, LinkName>;

/// The index of the bridge that a link is attached to, and whether the port is in hairpin mode.
pub(super) fn port(message: &LinkMessage) -> Option<(u32, bool)> {
    let mut master = None;
    let mut hairpin = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkInfo(infos) => hairpin = infos.iter().any(is_hairpin),
            _ => {}
        }
    }
    master.map(|master| (master, hairpin))
}

fn is_hairpin(info: &LinkInfo) -> bool {
    matches!(info, LinkInfo::PortData(InfoPortData::BridgePort(data))
        if data.contains(&InfoBridgePort::HairpinMode(true)))
}

/// Whether a rule is neither one of a new network namespace (`fib_default_rules_init`, `fib6_rules_net_init`) nor the one that
/// the kernel adds with the first VRF (`l3mdev`), which affects only links of VRFs.
pub(super) fn is_policy(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = message else {
        return false;
    };
    let by_kernel = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Protocol(RouteProtocol::Kernel) | RuleAttribute::L3MDev(true)
        )
    };
    !rule.attributes.iter().any(by_kernel)
}

/// A link and its index; `None` if the message has no name.
pub(super) fn link(message: &LinkMessage) -> Option<(u32, LinkName, Link)> {
    let mut name = None;
    let mut link = Link {
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => link.kind = link_kind(infos),
            _ => {}
        }
    }
    Some((message.header.index, name?, link))
}

fn link_kind(infos: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other(String::new());
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Tun) => kind = LinkKind::Tun,
            LinkInfo::Kind(other) => kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => kind = vxlan(data),
            // IPv6 tunnels have the same parameters, but netweft has none.
            LinkInfo::Data(InfoData::IpTunnel(data))
                if kind == LinkKind::Other(InfoKind::IpIp.to_string()) =>
            {
                kind = ipip(data);
            }
            _ => {}
        }
    }
    kind
}

fn vxlan(data: &[InfoVxlan]) -> LinkKind {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        learning: false,
    };
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some(IpAddr::V4(*local)),
            InfoVxlan::Local6(local) => vxlan.local = Some(IpAddr::V6(*local)),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            // Such a link floods; links of netweft do not, so this is another kind of link.
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) => {
                return LinkKind::Other("vxlan with a default destination".to_owned());
            }
            _ => {}
        }
    }
    LinkKind::Vxlan(vxlan)
}

/// A link with a remote endpoint reaches only one node, so it is another kind of link.
fn ipip(data: &[InfoIpTunnel]) -> LinkKind {
    let mut local = Ipv4Addr::UNSPECIFIED;
    for info in data {
        match info {
            InfoIpTunnel::Local(IpAddr::V4(address)) => local = *address,
            InfoIpTunnel::Remote(IpAddr::V4(remote)) if !remote.is_unspecified() => {
                return LinkKind::Other(format!("ipip remote {remote}"));
            }
            _ => {}
        }
    }
    LinkKind::Ipip { local }
}

/// Whether the link has a carrier (`IFF_LOWER_UP`).
pub(super) fn has_carrier(message: &LinkMessage) -> bool {
    message.header.flags.contains(LinkFlags::LowerUp)
}

/// Why an address is special, if it is. `IFA_F_SECONDARY` and `IFA_F_TEMPORARY` are the same bit.
pub(super) fn special_address(message: &AddressMessage) -> Option<SpecialAddress> {
    let header = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut attributes = message.attributes.iter();
    let full = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = full.unwrap_or(header);
    if message.header.family == AddressFamily::Inet {
        let secondary = flags.contains(AddressFlags::Secondary);
        return secondary.then_some(SpecialAddress::Secondary);
    }
    let unstable = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed;
    flags
        .intersects(unstable)
        .then_some(SpecialAddress::Unstable)
}

/// An address; `None` on a link that is not in `names`.
pub(super) fn address(message: &AddressMessage, names: &Names) -> Option<(AddressKey, Address)> {
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the address of the peer, else the local address. IPv6 has no separate local address.
            AddressAttribute::Address(address) if ip.is_none() => ip = Some(*address),
            AddressAttribute::Local(local) => ip = Some(*local),
            _ => {}
        }
    }
    let net = IpNet::new(ip?, message.header.prefix_len).ok()?;
    let link = names.get(&message.header.index)?.clone();
    Some((
        AddressKey { link, net },
        Address {
            link_scope: message.header.scope == AddressScope::Link,
        },
    ))
}

/// A route; `None` for routes without a key in the model: cached, source-specific, or with a TOS. netweft has none of these.
pub(super) fn route(message: &RouteMessage, names: &Names) -> Option<(RouteKey, Route)> {
    let header = &message.header;
    let cached = header.flags.contains(RouteFlags::Cloned);
    if cached || header.source_prefix_length != 0 || header.tos != 0 {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut dst = unspecified;
    let mut key = RouteKey {
        table: u32::from(header.table),
        dst: IpNet::from(unspecified),
        metric: 0,
    };
    let mut route = Route {
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::BlackHole => RouteKind::Blackhole,
            other => RouteKind::Other(other.into()),
        },
        protocol: header.protocol.into(),
        via: None,
        dev: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => key.table = *table,
            RouteAttribute::Priority(metric) => key.metric = *metric,
            RouteAttribute::Destination(address) => dst = route_address(address)?,
            attribute => route_target(attribute, names, &mut route),
        }
    }
    if route.kind != RouteKind::Unicast {
        // IPv6 reports such routes with the loopback link (`ip6_route_info_create`).
        route.dev = None;
    }
    key.dst = IpNet::new(dst, header.destination_prefix_length)
        .ok()?
        .trunc();
    Some((key, route))
}

fn route_target(attribute: &RouteAttribute, names: &Names, route: &mut Route) {
    match attribute {
        RouteAttribute::Gateway(address) => route.via = route_address(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => route.via = Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => route.via = Some(IpAddr::V6(*address)),
        RouteAttribute::Oif(index) => route.dev = names.get(index).cloned(),
        RouteAttribute::PrefSource(address) => route.source = route_address(address),
        RouteAttribute::Metrics(metrics) => {
            route.mtu = metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        }
        _ => {}
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A neighbour; `None` on a link that is not in `names`.
pub(super) fn neighbour(
    message: &NeighbourMessage,
    names: &Names,
) -> Option<(NeighbourKey, Neighbour)> {
    let (ip, mac) = neighbour_attributes(message);
    let link = names.get(&message.header.ifindex)?.clone();
    let permanent = is_permanent(message.header.state);
    Some((NeighbourKey { link, ip: ip? }, Neighbour { mac, permanent }))
}

/// A configured forwarding entry with a remote endpoint; `None` for other entries, such as learned ones, which expire.
pub(super) fn fdb(message: &NeighbourMessage, names: &Names) -> Option<(FdbKey, IpAddr)> {
    let (remote, mac) = neighbour_attributes(message);
    let link = names.get(&message.header.ifindex)?.clone();
    let permanent = is_permanent(message.header.state);
    remote.filter(|_| permanent).map(|remote| {
        (
            FdbKey {
                link,
                mac: mac.unwrap_or(Mac([0; 6])),
            },
            remote,
        )
    })
}

/// The state is a set of bits: `bridge fdb add` sets `NUD_NOARP` as well.
pub(crate) fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & u16::from(NeighbourState::Permanent) != 0
}

fn neighbour_attributes(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let mut found = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => found.0 = neighbour_address(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => found.1 = mac(bytes),
            _ => {}
        }
    }
    found
}

fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        // The family of a forwarding entry is AF_BRIDGE, so the family of the address follows from its length.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).ok().map(Mac)
}
