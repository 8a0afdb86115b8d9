//! Encodes operations as messages.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use nix::errno::Errno;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Rtnl, link};
use crate::model::{
    Address, AddressKey, FdbKey, Link, LinkName, Mac, Neighbour, Route, RouteKey, RouteKind,
};
use crate::op::Op;

const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Executes one operation. The caller decides whether an absent object is a failure.
pub(super) async fn apply(rtnl: &Rtnl, op: &Op) -> Result<(), Failure> {
    match op {
        Op::LinkAdd { .. }
        | Op::LinkRecreate { .. }
        | Op::LinkChange { .. }
        | Op::LinkDelete { .. } => apply_link(rtnl, op).await,
        Op::PortReplace { link, port } => {
            let master = rtnl.index(&port.master).await?;
            rtnl.request(link::enslave(link, master), 0).await?;
            rtnl.request(link::hairpin(link, port.hairpin), 0).await
        }
        Op::PortDelete { link } => rtnl.request(link::enslave(link, 0), 0).await,
        Op::AddressAdd { key, address } => add_address(rtnl, key, address).await,
        Op::AddressReplace { key, address } => {
            delete_address(rtnl, key).await?;
            add_address(rtnl, key, address).await
        }
        Op::AddressDelete { key } => delete_address(rtnl, key).await,
        Op::RouteAdd { key, route } => put_route(rtnl, key, route, link::CREATE).await,
        Op::RouteReplace { key, route } => put_route(rtnl, key, route, PUT).await,
        Op::RouteDelete { key, route } => {
            let index = index_of(rtnl, route).await?;
            // Any scope, source and MTU: they follow from the target, or the kernel may have changed them.
            let target = Route {
                source: None,
                mtu: None,
                ..route.clone()
            };
            let message = route_message(key, &target, index, RouteScope::NoWhere);
            rtnl.request(RouteNetlinkMessage::DelRoute(message), 0)
                .await
        }
        Op::NeighbourReplace { key, neighbour } => {
            let message = neighbour_message(rtnl.index(&key.link).await?, key.ip, Some(neighbour));
            rtnl.request(RouteNetlinkMessage::NewNeighbour(message), PUT)
                .await
        }
        Op::NeighbourDelete { key } => {
            let message = neighbour_message(rtnl.index(&key.link).await?, key.ip, None);
            rtnl.request(RouteNetlinkMessage::DelNeighbour(message), 0)
                .await
        }
        Op::FdbReplace { key, remote } => {
            let message = fdb_message(rtnl, key, *remote).await?;
            rtnl.request(RouteNetlinkMessage::NewNeighbour(message), PUT)
                .await
        }
        Op::FdbDelete { key, remote } => {
            let message = fdb_message(rtnl, key, *remote).await?;
            rtnl.request(RouteNetlinkMessage::DelNeighbour(message), 0)
                .await
        }
    }
}

async fn apply_link(rtnl: &Rtnl, op: &Op) -> Result<(), Failure> {
    match op {
        Op::LinkAdd { name, link } => add_link(rtnl, name, link).await,
        Op::LinkRecreate { name, link, .. } => {
            match rtnl.request(link::delete(name), 0).await {
                Ok(()) | Err(Failure::Errno(Errno::ENODEV)) => {}
                Err(failure) => return Err(failure),
            }
            add_link(rtnl, name, link).await
        }
        Op::LinkChange { name, mtu, mac, up } => change_link(rtnl, name, *mtu, *mac, *up).await,
        Op::LinkDelete { name } => rtnl.request(link::delete(name), 0).await,
        _ => Ok(()),
    }
}

async fn add_link(rtnl: &Rtnl, name: &LinkName, link: &Link) -> Result<(), Failure> {
    let message = link::add(name, link).map_err(Failure::Unsupported)?;
    rtnl.request(message, link::CREATE).await?;
    change_link(rtnl, name, None, None, Some(link.up)).await
}

async fn change_link(
    rtnl: &Rtnl,
    name: &LinkName,
    mtu: Option<u32>,
    mac: Option<Mac>,
    up: Option<bool>,
) -> Result<(), Failure> {
    if up == Some(true) {
        // Each time the link is set up, because the creation of the link may have been interrupted before.
        match rtnl.request(link::without_link_local(name), 0).await {
            // The kernel has no IPv6, or none on a link of this MTU: then the link gets no link-local address.
            Ok(()) | Err(Failure::Errno(Errno::EAFNOSUPPORT)) => {}
            Err(failure) => return Err(failure),
        }
    }
    rtnl.request(link::change(name, mtu, mac, up), 0).await
}

async fn add_address(rtnl: &Rtnl, key: &AddressKey, address: &Address) -> Result<(), Failure> {
    let message = address_message(rtnl.index(&key.link).await?, key, address.link_scope);
    rtnl.request(RouteNetlinkMessage::NewAddress(message), PUT)
        .await
}

async fn delete_address(rtnl: &Rtnl, key: &AddressKey) -> Result<(), Failure> {
    let message = address_message(rtnl.index(&key.link).await?, key, false);
    rtnl.request(RouteNetlinkMessage::DelAddress(message), 0)
        .await
}

pub(super) fn address_message(index: u32, key: &AddressKey, link_scope: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = key.net.addr();
    message.header.family = family(ip);
    message.header.prefix_len = key.net.prefix_len();
    message.header.index = index;
    message.header.scope = if link_scope {
        AddressScope::Link
    } else {
        AddressScope::Universe
    };
    message
        .attributes
        .extend([AddressAttribute::Local(ip), AddressAttribute::Address(ip)]);
    let mut flags = AddressFlags::empty();
    if ip.is_ipv6() {
        // The operator assigns each address once, and duplicate address detection would take a second.
        message.header.flags = AddressHeaderFlags::Nodad;
        flags |= AddressFlags::Nodad;
    }
    if key.net.prefix_len() < key.net.max_prefix_len() {
        // The routes are separate objects with the protocol of their owner, so that they can be restored. A route that the
        // kernel adds with an address has no owner.
        flags |= AddressFlags::Noprefixroute;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

async fn put_route(rtnl: &Rtnl, key: &RouteKey, route: &Route, flags: u16) -> Result<(), Failure> {
    let index = index_of(rtnl, route).await?;
    let direct = route.kind == RouteKind::Unicast && route.via.is_none();
    // The kernel resolves a next hop only by routes with a narrower scope (`fib_check_nh`).
    let scope = if direct {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    rtnl.request(
        RouteNetlinkMessage::NewRoute(route_message(key, route, index, scope)),
        flags,
    )
    .await
}

async fn index_of(rtnl: &Rtnl, route: &Route) -> Result<Option<u32>, Failure> {
    match &route.dev {
        Some(dev) => rtnl.index(dev).await.map(Some),
        None => Ok(None),
    }
}

fn route_message(
    key: &RouteKey,
    route: &Route,
    index: Option<u32>,
    scope: RouteScope,
) -> RouteMessage {
    let Route {
        kind,
        protocol,
        via,
        dev: _,
        onlink,
        source,
        mtu,
    } = route;
    let dst = key.dst.network();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(dst),
        destination_prefix_length: key.dst.prefix_len(),
        table: u8::try_from(key.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::from(*protocol),
        scope,
        kind: match kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Other(kind) => RouteType::from(*kind),
        },
        flags: if *onlink {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.extend([
        RouteAttribute::Table(key.table),
        RouteAttribute::Destination(dst.into()),
        RouteAttribute::Priority(key.metric),
    ]);
    attributes.extend(index.map(RouteAttribute::Oif));
    attributes.extend(via.map(|via| match (dst, via) {
        (IpAddr::V4(_), IpAddr::V6(via)) => RouteAttribute::Via(RouteVia::Inet6(via)),
        _ => RouteAttribute::Gateway(via.into()),
    }));
    attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(mtu_metrics(dst, mtu))));
    message
}

/// IPv6 applies the MTU of a route to forwarded packets only if it is locked (`ip6_dst_mtu_maybe_forward`). IPv4 always
/// applies it (`ip_dst_mtu_maybe_forward`), and a locked MTU would disable path MTU discovery of the node itself.
fn mtu_metrics(dst: IpAddr, mtu: u32) -> Vec<RouteMetric> {
    /// `RTAX_MTU`
    const MTU: u32 = 2;
    let mut metrics = vec![RouteMetric::Mtu(mtu)];
    if dst.is_ipv6() {
        metrics.push(RouteMetric::Lock(1 << MTU));
    }
    metrics
}

pub(super) fn neighbour_message(
    index: u32,
    ip: IpAddr,
    neighbour: Option<&Neighbour>,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(ip)));
    if let Some(neighbour) = neighbour {
        message.header.state = NeighbourState::Permanent;
        message.attributes.extend(
            neighbour
                .mac
                .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())),
        );
    }
    message
}

async fn fdb_message(
    rtnl: &Rtnl,
    key: &FdbKey,
    remote: IpAddr,
) -> Result<NeighbourMessage, Failure> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = rtnl.index(&key.link).await?;
    message.header.state = NeighbourState::Permanent;
    // NTF_SELF: an entry of the VXLAN link itself, and not of a bridge that it may be attached to.
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(key.mac.0.to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(remote)));
    Ok(message)
}

fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
