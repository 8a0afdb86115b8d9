//! The route that the kernel selects for a destination, as in `ip route get`.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Rtnl};
use crate::error::Error;
use crate::model::{LinkName, SelectedRoute};

/// The errors for a destination to which no packet can be sent: no route; a route of type unreachable, prohibit or blackhole
/// (`fib_props` in net/ipv4/fib_semantics.c); a family that the kernel lacks (`rtnetlink_rcv_msg` without a handler).
const NO_ROUTE: [Errno; 5] = [
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EACCES,
    Errno::EINVAL,
    Errno::EOPNOTSUPP,
];

/// See [`crate::kernel::Kernel::select_route`].
pub(super) async fn select_route(rtnl: &Rtnl, to: IpAddr) -> Result<Option<SelectedRoute>, Error> {
    let failed = |failure: Failure| failure.into_error(format!("look up the route to {to}"));
    let reply = match rtnl.get(request(to)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(reply))) => reply,
        Ok(_) => return Ok(None),
        Err(Failure::Errno(errno)) if NO_ROUTE.contains(&errno) => return Ok(None),
        Err(failure) => return Err(failed(failure)),
    };
    let mut index = None;
    let mut source = None;
    for attribute in reply.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(oif),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                source = Some(address.into());
            }
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                source = Some(address.into());
            }
            _ => {}
        }
    }
    let Some(index) = index else { return Ok(None) };
    match link_name(rtnl, index).await {
        Ok(link) => Ok(link.map(|link| SelectedRoute { link, source })),
        // The link has been deleted since, with its routes.
        Err(Failure::Errno(Errno::ENODEV)) => Ok(None),
        Err(failure) => Err(failed(failure)),
    }
}

/// With strict checking the header must have only family and prefix length (`inet_rtm_valid_getroute_req`).
fn request(to: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let (family, length, address) = match to {
        IpAddr::V4(to) => (AddressFamily::Inet, 32, RouteAddress::Inet(to)),
        IpAddr::V6(to) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(to)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message
        .attributes
        .push(RouteAttribute::Destination(address));
    RouteNetlinkMessage::GetRoute(message)
}

async fn link_name(rtnl: &Rtnl, index: u32) -> Result<Option<LinkName>, Failure> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let Some(RouteNetlinkMessage::NewLink(link)) =
        rtnl.get(RouteNetlinkMessage::GetLink(message)).await?
    else {
        return Ok(None);
    };
    let mut attributes = link.attributes.iter();
    Ok(attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    }))
}
