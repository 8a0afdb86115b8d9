//! Notice that the kernel's network state may have changed, and who did it. What it is now is read anew.
//!
//! ```text
//!   rtnetlink.rs   links, addresses, routes, configured neighbours, forwarding entries, forwarding and filter parameters
//!   nftables.rs    tables
//! ```

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::error::Error;
use crate::netns;
use crate::object_ref::ObjectRef;

mod nftables;
mod rtnetlink;

/// The most objects whose writers are remembered between two looks at them.
const REMEMBERED: usize = 1024;

/// The process that changed something, by the number that its netlink socket has. A program's first socket has the number
/// of its process (`netlink_autobind`); others have numbers that say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetlinkPortId(pub u32);

impl NetlinkPortId {
    /// `PID_MAX_LIMIT`: what is larger is no process.
    const MAX_PID: u32 = 4 << 20;

    /// The process, in the PID namespace that it was in when it opened its socket; `None` for the kernel itself and for
    /// sockets without a process's number.
    #[must_use]
    pub fn process(self) -> Option<u32> {
        (1..=Self::MAX_PID).contains(&self.0).then_some(self.0)
    }
}

/// Which process wrote what, the last of each. Of links, forwarding entries and neighbours that go the kernel tells in
/// its own name, so who changed them is not known.
pub type Writers = BTreeMap<ObjectRef, NetlinkPortId>;

/// A subscription to changes of links, addresses, routes, configured neighbours, forwarding entries and one nft table.
///
/// No notices are buffered here. The sockets' buffers are the bound: when one overflows, that counts as a change. IPv4
/// routes that the kernel drops with a link that goes down are not announced, but the link is.
pub struct Events {
    route: TokioSocket,
    /// None where the kernel has no nftables.
    tables: Option<TokioSocket>,
    table: String,
    writers: Writers,
}

/// What a datagram says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notification {
    /// Whether what is ours may be concerned.
    concerns_us: bool,
    writers: Vec<(ObjectRef, NetlinkPortId)>,
}

impl Events {
    /// Subscribes in the namespace of the calling thread; of nft tables to those called `table`. Subscribe before the first
    /// reading, or changes between the two are missed.
    ///
    /// # Errors
    /// [`Error::Connection`] if no socket can be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(table: &str) -> Result<Self, Error> {
        let bound = |protocol, groups| {
            let mut socket = netns::socket(protocol, None)?;
            let address = SocketAddr::new(0, groups);
            socket.socket_mut().bind(&address).map_err(disconnected)?;
            Ok(socket)
        };
        Ok(Self {
            route: bound(NETLINK_ROUTE, rtnetlink::groups())?,
            // A kernel without nftables has no table that could change.
            tables: bound(NETLINK_NETFILTER, nftables::GROUPS).ok(),
            table: table.to_owned(),
            writers: Writers::new(),
        })
    }

    /// Waits for the next change. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`Error::Connection`] if a socket broke; make a new subscription, then read.
    pub async fn next(&mut self) -> Result<(), Error> {
        loop {
            let (received, of_tables) = tokio::select! {
                received = self.route.recv_from_full() => (received, false),
                received = receive(&mut self.tables) => (received, true),
            };
            let notification = match received {
                Ok((datagram, _)) if of_tables => nftables::parse(&datagram, &self.table),
                Ok((datagram, _)) => rtnetlink::parse(&datagram),
                // The socket overran: whatever was lost may concern us.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Notification {
                    concerns_us: true,
                    writers: Vec::new(),
                },
                Err(error) => return Err(disconnected(error)),
            };
            let room = REMEMBERED.saturating_sub(self.writers.len());
            let named = notification.writers.into_iter();
            let named = named.filter(|(_, port)| port.process().is_some());
            self.writers.extend(named.take(room));
            if notification.concerns_us {
                return Ok(());
            }
        }
    }

    /// Who wrote what since that was last taken.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Takes who wrote what. Read the kernel afterwards: what it shows then has been announced before,
    /// if at all.
    pub fn take_writers(&mut self) -> Writers {
        std::mem::take(&mut self.writers)
    }
}

async fn receive(socket: &mut Option<TokioSocket>) -> io::Result<(Vec<u8>, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from_full().await,
        None => std::future::pending().await,
    }
}

fn disconnected(source: io::Error) -> Error {
    Error::Connection {
        what: "wait for changes".to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_id_of_kernel_or_second_socket_has_no_process() {
        assert_eq!(NetlinkPortId(0).process(), None);
        assert_eq!(NetlinkPortId(4242).process(), Some(4242));
        assert_eq!(NetlinkPortId(u32::MAX - 3).process(), None);
    }
}
