//! Notifications of rtnetlink(7).

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

/// The last two groups are for forwarding and the reverse path filter (`inet_netconf_notify_devconf`).
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

/// The groups as a bit mask for `bind`.
pub(super) fn groups() -> u32 {
    GROUPS
        .iter()
        .fold(0, |groups, group| groups | 1 << (*group as u32 - 1))
}

/// A message that cannot be parsed is relevant.
pub(super) fn parse(mut datagram: &[u8]) -> Notification {
    let mut notification = Notification::default();
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            notification.is_relevant = true;
            return notification;
        };
        let object = match &message.payload {
            NetlinkPayload::InnerMessage(inner) if is_relevant(inner) => object(inner),
            NetlinkPayload::InnerMessage(_) => Subject::Irrelevant,
            _ => Subject::Unknown,
        };
        notification.is_relevant |= !matches!(object, Subject::Irrelevant);
        if let Subject::Object(object) = object {
            let port = NetlinkPortId(message.header.port_number);
            notification.writers.push((object, port));
        }
        // NLMSG_ALIGN
        let length = (message.header.length as usize).next_multiple_of(4);
        datagram = datagram.get(length.max(1)..).unwrap_or_default();
    }
    notification
}

/// What a message is about.
enum Subject {
    /// No object of netweft.
    Irrelevant,
    /// An object that the message does not name.
    Unknown,
    /// This object.
    Object(ObjectRef),
}

fn is_relevant(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => is_configured(neighbour),
        // The message about a deleted neighbour has no state, so the neighbour may have been a configured one
        // (`neigh_delete`).
        RouteNetlinkMessage::DelNeighbour(neighbour) => {
            neighbour.header.family != AddressFamily::Bridge || is_configured(neighbour)
        }
        _ => true,
    }
}

/// Whether the neighbour is permanent, and not an Ethernet address that a bridge has learned. Resolution and learning send
/// notifications continuously, and change no object of netweft.
fn is_configured(message: &NeighbourMessage) -> bool {
    let permanent = is_permanent(message.header.state);
    let remote = || {
        message
            .attributes
            .iter()
            .any(|a| matches!(a, NeighbourAttribute::Destination(_)))
    };
    permanent && (message.header.family != AddressFamily::Bridge || remote())
}

fn object(message: &RouteNetlinkMessage) -> Subject {
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
    object.map_or(Subject::Unknown, Subject::Object)
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
        // IPv4: the local address; on a point-to-point link the other is that of the peer. IPv6 has only the other.
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
