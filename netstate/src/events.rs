//! Notice that the kernel's network state may have changed, and nothing about what changed: the state is read anew.

use std::io;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Error;
use crate::netns;
use crate::rtnl::is_permanent;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// A subscription to changes of links, addresses, routes, configured neighbours and forwarding entries.
///
/// Nothing is buffered here. The socket's buffer is the bound: when it overflows, that counts as a change. IPv4 routes
/// that the kernel drops with a link that goes down are not announced, but the link is.
pub struct Events {
    socket: TokioSocket,
}

impl Events {
    /// Subscribes in the namespace of the calling thread. Subscribe before the first reading, or changes between the two
    /// are missed.
    ///
    /// # Errors
    /// [`Error::Connection`] if no socket can be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        netns::socket(None).and_then(Self::over)
    }

    /// Subscribes in another network namespace.
    ///
    /// # Errors
    /// [`Error::Namespace`] if it cannot be entered, [`Error::Connection`] if no socket can be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn in_netns(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        netns::socket(Some(netns)).and_then(Self::over)
    }

    fn over(mut socket: TokioSocket) -> Result<Self, Error> {
        let groups = GROUPS
            .iter()
            .fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, groups))
            .map_err(disconnected)?;
        Ok(Self { socket })
    }

    /// Waits for the next change. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`Error::Connection`] if the socket broke; make a new subscription, then read.
    pub async fn next(&mut self) -> Result<(), Error> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) if !concerns_us(&datagram) => {}
                Ok(_) => return Ok(()),
                // The socket overran: whatever was lost may concern us.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(()),
                Err(error) => return Err(disconnected(error)),
            }
        }
    }
}

fn disconnected(source: io::Error) -> Error {
    Error::Connection {
        what: "wait for changes".to_owned(),
        source,
    }
}

/// What cannot be read concerns us.
fn concerns_us(mut datagram: &[u8]) -> bool {
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            return true;
        };
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                if configured(neighbour) {
                    return true;
                }
            }
            // A neighbour that is being deleted has lost its state, so any may have been ours (`neigh_delete`).
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                if neighbour.header.family != AddressFamily::Bridge || configured(neighbour) {
                    return true;
                }
            }
            _ => return true,
        }
        // NLMSG_ALIGN
        let length = (message.header.length as usize).next_multiple_of(4);
        datagram = datagram.get(length.max(1)..).unwrap_or_default();
    }
    false
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
