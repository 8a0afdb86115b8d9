//! The kernel, by one netlink connection that lives as long as the value.
//!
//! ```text
//!   dump.rs     dumps of complete tables, repeated until they are consistent
//!   decode.rs   messages ─▶ model
//!   request.rs  Op ─▶ messages
//!   link.rs     messages about links, veth pairs
//!   lookup.rs   the link and the source address of a packet
//! ```
//!
//! Properties of rtnetlink 0.24 and the kernel:
//! - `get().execute()` drops message headers, and with them `NLM_F_DUMP_INTR`. The kernel may set this flag only on
//!   `NLMSG_DONE`, which netlink-proto hides by default. This module therefore sends all messages itself, on a connection
//!   that forwards `NLMSG_DONE` and acknowledgements. The high-level calls must not be used on it.
//! - Without forwarded acknowledgements, the end of a reply cannot be distinguished from the end of the connection.
//! - A name is resolved to an index as late as possible, because a link can be recreated with the same name.
//! - The text of the extended acknowledgement is not parsed, so an error has the operation and the error number.
//! - The kernel executes a request inside `sendmsg`, under the RTNL lock. `REQUEST_TIMEOUT` therefore covers only lost
//!   replies. A thread that waits for the lock cannot be interrupted; another thread has to supervise it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::Stream;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, State};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::model::{LinkName, NetworkState, SelectedRoute};
use crate::netns;
use crate::op::Op;

mod decode;
mod dump;
mod link;
mod lookup;
mod request;

pub(crate) use decode::is_permanent;
pub use link::VethPair;

/// Time limit of the next message of a reply.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the kernel's network state in one network namespace.
pub struct Rtnl {
    handle: rtnetlink::Handle,
    /// The task that reads the socket. When it has ended, every request fails.
    connection: JoinHandle<()>,
    /// A netlink socket executes one dump at a time, and refuses a second with `EBUSY` (`__netlink_dump_start`).
    dump_lock: Mutex<()>,
    interruptions: AtomicU64,
}

impl Rtnl {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Connection`] if no socket can be created.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time, which runs the connection.
    pub fn new() -> Result<Self, Error> {
        netns::socket(NETLINK_ROUTE, None).and_then(Self::from_socket)
    }

    /// Connects to another network namespace and stays connected to it.
    ///
    /// # Errors
    /// [`Error::Namespace`] if it cannot be entered, [`Error::Connection`] if no socket can be created.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time, which runs the connection.
    pub fn in_netns(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        netns::socket(NETLINK_ROUTE, Some(netns)).and_then(Self::from_socket)
    }

    fn from_socket(mut socket: TokioSocket) -> Result<Self, Error> {
        let error = |source| Error::Connection {
            what: "set up a netlink socket".to_owned(),
            source,
        };
        // With strict checking the kernel sends only the requested routing table.
        socket
            .socket_mut()
            .set_netlink_get_strict_chk(true)
            .map_err(error)?;
        // Replies do not repeat the request.
        socket.socket_mut().set_cap_ack(true).map_err(error)?;
        let (mut connection, handle, _unsolicited) = rtnetlink::from_socket(socket);
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        // The task ends with the last handle, which is that of this value.
        let connection = tokio::spawn(connection);
        Ok(Self {
            handle,
            connection,
            dump_lock: Mutex::new(()),
            interruptions: AtomicU64::new(0),
        })
    }

    /// Creates both ends of a veth pair in one message, the peer already inside `netns`. Both are down.
    ///
    /// # Errors
    /// [`Error::Refused`], with `EEXIST` if one of the names exists.
    pub async fn add_veth(&self, pair: &VethPair, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let what = || format!("add link {} with peer {}", pair.host_name, pair.peer_name);
        self.request(link::add_veth(pair, netns), link::CREATE)
            .await
            .map_err(|failure| failure.into_error(what()))
    }

    /// Whether a link of this name exists.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other error than a missing link.
    pub async fn link_exists(&self, name: &LinkName) -> Result<bool, Error> {
        match self.index(name).await {
            Ok(_) => Ok(true),
            Err(Failure::Errno(Errno::ENODEV)) => Ok(false),
            Err(failure) => Err(failure.into_error(format!("look up link {name}"))),
        }
    }

    /// Whether a link passes packets (`IF_OPER_UP`). The queue of a veth that is set up before its peer is activated when the
    /// kernel's link watch runs, which can take a second (`linkwatch_urgent_event`); until then packets are dropped. Since
    /// Linux 6.8 this request runs the link watch (`linkwatch_sync_dev` in `rtnl_getlink`).
    ///
    /// # Errors
    /// [`Error::Refused`], with `ENODEV` if the link does not exist.
    pub async fn link_is_operational(&self, name: &LinkName) -> Result<bool, Error> {
        let link = self
            .link(name)
            .await
            .map_err(|failure| failure.into_error(format!("look up link {name}")))?;
        Ok(link
            .attributes
            .contains(&LinkAttribute::OperState(State::Up)))
    }

    /// Deletes a link, if it exists.
    ///
    /// # Errors
    /// [`Error::Refused`] if it cannot be deleted.
    pub async fn delete_link(&self, name: &LinkName) -> Result<(), Error> {
        self.apply(&Op::LinkDelete { name: name.clone() }).await
    }

    /// Number of dumps that were repeated because the table changed, since the connection was created.
    #[must_use]
    pub fn interruptions(&self) -> u64 {
        self.interruptions.load(Ordering::Relaxed)
    }

    /// Sends one request and waits for its acknowledgement. `flags` are added to `NLM_F_REQUEST` and `NLM_F_ACK`.
    async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        let mut replies = self.send(message, NLM_F_ACK | flags)?;
        while let Some(reply) = next(&mut replies).await? {
            if let NetlinkPayload::Error(error) = reply.payload {
                return error.code.map_or(Ok(()), |code| {
                    Err(Failure::Errno(Errno::from_raw(-code.get())))
                });
            }
        }
        Err(Failure::Disconnected)
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<impl Stream<Item = Reply> + use<>, Failure> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        self.handle
            .clone()
            .request(message)
            .map_err(|_| Failure::Disconnected)
    }

    /// The present index of a link.
    async fn index(&self, name: &LinkName) -> Result<u32, Failure> {
        self.link(name).await.map(|link| link.header.index)
    }

    async fn link(&self, name: &LinkName) -> Result<LinkMessage, Failure> {
        match self.get(link::get(name)).await? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(Failure::Errno(Errno::ENODEV)),
        }
    }

    /// Requests one object.
    async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Failure> {
        let mut replies = self.send(message, NLM_F_ACK)?;
        let mut found = None;
        while let Some(reply) = next(&mut replies).await? {
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => found = Some(message),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        Some(code) => Err(Failure::Errno(Errno::from_raw(-code.get()))),
                        None => Ok(found),
                    };
                }
                _ => {}
            }
        }
        Err(Failure::Disconnected)
    }
}

type Reply = NetlinkMessage<RouteNetlinkMessage>;

/// The next message of a reply; `None` if the connection has ended.
async fn next(replies: &mut (impl Stream<Item = Reply> + Unpin)) -> Result<Option<Reply>, Failure> {
    next_within(REQUEST_TIMEOUT, replies).await
}

async fn next_within(
    limit: Duration,
    replies: &mut (impl Stream<Item = Reply> + Unpin),
) -> Result<Option<Reply>, Failure> {
    timeout(limit, replies.next())
        .await
        .map_err(|_| Failure::Timeout)
}

impl Kernel for Rtnl {
    fn is_connected(&self) -> bool {
        !self.connection.is_finished()
    }

    async fn read(&self) -> Result<NetworkState, Error> {
        dump::read(self).await
    }

    async fn select_route(&self, to: IpAddr) -> Result<Option<SelectedRoute>, Error> {
        lookup::select_route(self, to).await
    }

    async fn apply(&self, op: &Op) -> Result<(), Error> {
        match request::apply(self, op).await {
            Err(Failure::Errno(
                Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENOENT | Errno::ENXIO,
            )) if op.is_delete() => Ok(()),
            result => result.map_err(|failure| failure.into_error(op.to_string())),
        }
    }
}

/// Why a request failed, without the operation.
#[derive(Debug)]
enum Failure {
    Errno(Errno),
    Disconnected,
    Timeout,
    Unsupported(&'static str),
}

impl Failure {
    fn into_error(self, what: String) -> Error {
        match self {
            Self::Errno(errno) => Error::Refused { what, errno },
            Self::Disconnected => Error::Connection {
                what,
                source: std::io::ErrorKind::NotConnected.into(),
            },
            Self::Timeout => Error::Timeout {
                what,
                timeout: REQUEST_TIMEOUT,
            },
            Self::Unsupported(why) => Error::Unsupported { what, why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn netlink_request_without_reply_times_out_with_its_name() {
        let mut silent = futures::stream::pending();
        let failure = next_within(Duration::from_millis(1), &mut silent).await;
        let error = failure.unwrap_err().into_error("read routes".to_owned());
        assert_eq!(
            error.to_string(),
            "read routes: no reply from the kernel within 10s"
        );
        assert!(error.is_retryable());
    }
}
