//! Notifications that the kernel's network state may have changed, and by which process. The caller then reads the state.
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

/// Maximum number of objects whose writers are stored until the next [`Events::take_writers`].
const MAX_WRITERS: usize = 1024;

/// The netlink port ID of the process that changed an object. The first socket of a process has the process ID as its port
/// ID (`netlink_autobind`); the port IDs of other sockets identify no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetlinkPortId(pub u32);

impl NetlinkPortId {
    /// `PID_MAX_LIMIT`: larger numbers are not process IDs.
    const MAX_PID: u32 = 4 << 20;

    /// The process ID, in the PID namespace in which the process opened its socket; `None` for the kernel itself, and for
    /// sockets whose port ID is not a process ID.
    #[must_use]
    pub fn process(self) -> Option<u32> {
        (1..=Self::MAX_PID).contains(&self.0).then_some(self.0)
    }
}

/// The process that changed each object last. The kernel itself is the sender of notifications about deleted links,
/// forwarding entries and neighbours, so their writers are not known.
pub type Writers = BTreeMap<ObjectRef, NetlinkPortId>;

/// A subscription to changes of links, addresses, routes, configured neighbours, forwarding entries and one nft table.
///
/// Notifications are buffered only in the sockets. An overflow of a socket's buffer counts as a change. The kernel sends no
/// notifications about IPv4 routes that it deletes because their link is set down, but it sends one about the link.
pub struct Events {
    route: TokioSocket,
    /// `None` if the kernel has no nftables.
    tables: Option<TokioSocket>,
    table: String,
    writers: Writers,
}

/// The content of a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notification {
    /// Whether an object of netweft may have changed.
    is_relevant: bool,
    writers: Vec<(ObjectRef, NetlinkPortId)>,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread, to the nft tables of name `table`. Subscribe before the
    /// state is first read, to miss no change between the two.
    ///
    /// # Errors
    /// [`Error::Connection`] if no socket can be created.
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
            // A kernel without nftables has no tables.
            tables: bound(NETLINK_NETFILTER, nftables::GROUPS).ok(),
            table: table.to_owned(),
            writers: Writers::new(),
        })
    }

    /// Waits for the next change. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Connection`] if a socket failed: create another subscription, then read the state.
    pub async fn next(&mut self) -> Result<(), Error> {
        loop {
            let (received, of_tables) = tokio::select! {
                received = self.route.recv_from_full() => (received, false),
                received = receive(&mut self.tables) => (received, true),
            };
            let notification = match received {
                Ok((datagram, _)) if of_tables => nftables::parse(&datagram, &self.table),
                Ok((datagram, _)) => rtnetlink::parse(&datagram),
                // The socket's buffer overflowed: a lost notification may have been relevant.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Notification {
                    is_relevant: true,
                    writers: Vec::new(),
                },
                Err(error) => return Err(disconnected(error)),
            };
            let free = MAX_WRITERS.saturating_sub(self.writers.len());
            let writers = notification.writers.into_iter();
            let writers = writers.filter(|(_, port)| port.process().is_some());
            self.writers.extend(writers.take(free));
            if notification.is_relevant {
                return Ok(());
            }
        }
    }

    /// The writers since the last [`Self::take_writers`].
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Returns the writers and clears them. Read the state afterwards: the notifications of all changes that it shows have
    /// been received then.
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
        what: "receive notifications of changes".to_owned(),
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
