//! Notices of rtnetlink(7).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NetlinkPortId, Notification};
use crate::model::Mac;
use crate::object_ref::ObjectRef;
use crate::rtnl::is_permanent;

/// The last two tell of forwarding and of the reverse path filter (`inet_netconf_notify_devconf`).
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];

/// As `bind` wants them.
pub(super) fn groups() -> u32 {
    GROUPS
        .iter()
        .fold(0, |groups, group| groups | 1 << (*group as u32 - 1))
}

/// What cannot be read concerns us.
pub(super) fn parse(mut datagram: &[u8]) -> Notification {
    let mut notification = Notification::default();
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            notification.concerns_us = true;
            return notification;
        };
        let object = match &message.payload {
            NetlinkPayload::InnerMessage(inner) if concerns_us(inner) => object(inner),
            NetlinkPayload::InnerMessage(_) => Reading::Passed,
            _ => Reading::Unnamed,
        };
        notification.concerns_us |= !matches!(object, Reading::Passed);
        if let Reading::Named(object) = object {
            let port = NetlinkPortId(message.header.port_number);
            notification.writers.push((object, port));
        }
        // NLMSG_ALIGN
        let length = (message.header.length as usize).next_multiple_of(4);
        datagram = datagram.get(length.max(1)..).unwrap_or_default();
    }
    notification
}

enum Reading {
    /// It is about nothing of ours.
    Passed,
    /// It may be about something of ours that it does not name.
    Unnamed,
    /// It is about this.
    Named(ObjectRef),
}

fn concerns_us(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => configured(neighbour),
        // A neighbour that is being deleted has lost its state, so any may have been ours (`neigh_delete`).
        RouteNetlinkMessage::DelNeighbour(neighbour) => {
            neighbour.header.family != AddressFamily::Bridge || configured(neighbour)
        }
        _ => true,
    }
}

/// Whether it is permanent, and not a bridge's own notice of a MAC behind a port. Resolution and learning go on all the
/// time and change nothing of ours.
fn configured(message: &NeighbourMessage) -> bool {
    let permanent = is_permanent(message.header.state);
    let remote = || {
        message
            .attributes
            .iter()
            .any(|a| matches!(a, NeighbourAttribute::Destination(_)))
    };
    permanent && (message.header.family != AddressFamily::Bridge || remote())
}

fn object(message: &RouteNetlinkMessage) -> Reading {
    let object = match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => of_link(link),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            of_address(address)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            of_route(route)
        }
        RouteNetlinkMessage::NewNeighbour(neighbour)
        | RouteNetlinkMessage::DelNeighbour(neighbour) => of_neighbour(neighbour),
        _ => None,
    };
    object.map_or(Reading::Unnamed, Reading::Named)
}

fn of_link(link: &LinkMessage) -> Option<ObjectRef> {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
    name?.parse().ok().map(ObjectRef::Link)
}

fn of_address(message: &AddressMessage) -> Option<ObjectRef> {
    let mut attributes = message.attributes.iter();
    let ip = attributes.find_map(|attribute| match attribute {
        // IPv4's own; on point-to-point links the other is the peer's. IPv6 has the other only.
        AddressAttribute::Local(ip) => Some(*ip),
        AddressAttribute::Address(ip) if ip.is_ipv6() => Some(*ip),
        _ => None,
    });
    IpNet::new(ip?, message.header.prefix_len)
        .ok()
        .map(ObjectRef::Address)
}

fn of_route(route: &RouteMessage) -> Option<ObjectRef> {
    let mut attributes = route.attributes.iter();
    let dst = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    IpNet::new(dst?, route.header.destination_prefix_length)
        .ok()
        .map(ObjectRef::Route)
}

fn of_neighbour(message: &NeighbourMessage) -> Option<ObjectRef> {
    let mut attributes = message.attributes.iter();
    if message.header.family == AddressFamily::Bridge {
        let mac = attributes.find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
            _ => None,
        });
        return mac.map(|mac| ObjectRef::Fdb(Mac(mac)));
    }
    let ip = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    ip.map(ObjectRef::Neighbour)
}
