//! The kernel itself, through one netlink connection for the life of the value.
//!
//! ```text
//!   dump.rs     requests for whole tables, repeated until one was not disturbed
//!   decode.rs   messages ─▶ model
//!   request.rs  Op ─▶ messages
//!   link.rs     messages about links, veth pairs
//!   lookup.rs   by which link and from which address a packet leaves
//! ```
//!
//! What has to be known about rtnetlink 0.24 and the kernel:
//! - `get().execute()` drops message headers, so `NLM_F_DUMP_INTR` would go unseen; the kernel may set it on `NLMSG_DONE`
//!   alone, which netlink-proto hides unless told otherwise. So all requests are made of messages here, on a connection
//!   that forwards `NLMSG_DONE` and acknowledgements; the high-level calls must not be used on it.
//! - Without forwarded acknowledgements the end of an answer and the end of the connection look the same.
//! - A name is resolved to an index as late as possible: a link can be recreated under the same name.
//! - The extended acknowledgement's text is not parsed, so an error carries the operation and the number.
//! - The kernel carries out a request inside `sendmsg`, under the RTNL lock. `REQUEST_TIMEOUT` therefore bounds lost answers only:
//!   a thread that waits for the lock cannot be interrupted, and its owner has to be watched from another thread.

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

/// How long the kernel may take for the next message of an answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the kernel's network state in one network namespace.
pub struct Rtnl {
    handle: rtnetlink::Handle,
    /// Reads the socket. Without it every request fails.
    connection: JoinHandle<()>,
    /// A netlink socket runs one dump at a time and answers a second with `EBUSY` (`__netlink_dump_start`).
    dumping: Mutex<()>,
    interruptions: AtomicU64,
}

impl Rtnl {
    /// Connects to the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Connection`] if no socket can be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time, which runs the connection.
    pub fn new() -> Result<Self, Error> {
        netns::socket(NETLINK_ROUTE, None).and_then(Self::over)
    }

    /// Connects to another network namespace and stays connected to it.
    ///
    /// # Errors
    /// [`Error::Namespace`] if it cannot be entered, [`Error::Connection`] if no socket can be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time, which runs the connection.
    pub fn in_netns(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        netns::socket(NETLINK_ROUTE, Some(netns)).and_then(Self::over)
    }

    fn over(mut socket: TokioSocket) -> Result<Self, Error> {
        let error = |source| Error::Connection {
            what: "set up a netlink socket".to_owned(),
            source,
        };
        // With strict checking the kernel honours the table in a request for routes instead of sending all tables.
        socket
            .socket_mut()
            .set_netlink_get_strict_chk(true)
            .map_err(error)?;
        // An answer need not repeat the request.
        socket.socket_mut().set_cap_ack(true).map_err(error)?;
        let (mut connection, handle, _unsolicited) = rtnetlink::from_socket(socket);
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        // Ends with the last handle, that is with this value.
        let connection = tokio::spawn(connection);
        Ok(Self {
            handle,
            connection,
            dumping: Mutex::new(()),
            interruptions: AtomicU64::new(0),
        })
    }

    /// Creates both ends of a veth pair in one message, the peer already inside `netns`. Both are down.
    ///
    /// # Errors
    /// [`Error::Refused`], with `EEXIST` if either name is taken.
    pub async fn add_veth(&self, pair: &VethPair, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let what = || format!("add link {} with peer {}", pair.host_name, pair.peer_name);
        self.request(link::add_veth(pair, netns), link::CREATE)
            .await
            .map_err(|failure| failure.into_error(what()))
    }

    /// Whether there is a link of this name.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other answer than yes or no.
    pub async fn link_exists(&self, name: &LinkName) -> Result<bool, Error> {
        match self.index(name).await {
            Ok(_) => Ok(true),
            Err(Failure::Errno(Errno::ENODEV)) => Ok(false),
            Err(failure) => Err(failure.into_error(format!("look up link {name}"))),
        }
    }

    /// Whether a link passes packets (`IF_OPER_UP`). A veth that is up before its peer gets its queue only when the kernel's
    /// link watch has run, which can take a second (`linkwatch_urgent_event`); what is sent until then is dropped. Since
    /// Linux 6.8 asking makes it run (`linkwatch_sync_dev` in `rtnl_getlink`).
    ///
    /// # Errors
    /// [`Error::Refused`], with `ENODEV` if there is no such link.
    pub async fn link_is_operational(&self, name: &LinkName) -> Result<bool, Error> {
        let link = self
            .link(name)
            .await
            .map_err(|failure| failure.into_error(format!("look up link {name}")))?;
        Ok(link
            .attributes
            .contains(&LinkAttribute::OperState(State::Up)))
    }

    /// Deletes a link; absent is fine.
    ///
    /// # Errors
    /// [`Error::Refused`] if it cannot be deleted.
    pub async fn delete_link(&self, name: &LinkName) -> Result<(), Error> {
        self.apply(&Op::LinkDelete { name: name.clone() }).await
    }

    /// How often a table was read again because it had changed meanwhile, since the connection was made.
    #[must_use]
    pub fn interruptions(&self) -> u64 {
        self.interruptions.load(Ordering::Relaxed)
    }

    /// Sends one request and waits for its acknowledgement. `flags` come on top of `NLM_F_REQUEST` and `NLM_F_ACK`.
    async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        let mut answers = self.send(message, NLM_F_ACK | flags)?;
        while let Some(answer) = next(&mut answers).await? {
            if let NetlinkPayload::Error(error) = answer.payload {
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
    ) -> Result<impl Stream<Item = Answer> + use<>, Failure> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        self.handle
            .clone()
            .request(message)
            .map_err(|_| Failure::Disconnected)
    }

    /// The index of a link now.
    async fn index(&self, name: &LinkName) -> Result<u32, Failure> {
        self.link(name).await.map(|link| link.header.index)
    }

    async fn link(&self, name: &LinkName) -> Result<LinkMessage, Failure> {
        match self.ask(link::get(name)).await? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(Failure::Errno(Errno::ENODEV)),
        }
    }

    /// Sends one request for one object and waits for the object.
    async fn ask(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Failure> {
        let mut answers = self.send(message, NLM_F_ACK)?;
        let mut found = None;
        while let Some(answer) = next(&mut answers).await? {
            match answer.payload {
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

type Answer = NetlinkMessage<RouteNetlinkMessage>;

/// The next message of an answer; `None` if the connection has ended.
async fn next(
    answers: &mut (impl Stream<Item = Answer> + Unpin),
) -> Result<Option<Answer>, Failure> {
    next_within(REQUEST_TIMEOUT, answers).await
}

async fn next_within(
    patience: Duration,
    answers: &mut (impl Stream<Item = Answer> + Unpin),
) -> Result<Option<Answer>, Failure> {
    timeout(patience, answers.next())
        .await
        .map_err(|_| Failure::Slow)
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

/// Why a request did not work, before it is known what it was for.
#[derive(Debug)]
enum Failure {
    Errno(Errno),
    Disconnected,
    Slow,
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
            Self::Slow => Error::Slow {
                what,
                patience: REQUEST_TIMEOUT,
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
            "read routes: no answer from the kernel within 10s"
        );
        assert!(error.is_retryable());
    }
}
