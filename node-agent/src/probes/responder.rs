//! The task that answers the UDP requests by which other agents probe a datapath (see `packet`).
//!
//! Only requests from addresses of known nodes are answered, and the rate is limited. A reply has the destination of the request as
//! its source, whatever route it takes: the socket is bound to no address, and the kernel passes the destination of each packet
//! (`IP_PKTINFO` in ip(7), `IPV6_RECVPKTINFO` in ipv6(7)).

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use futures::future::join_all;
use netweft_cni::block;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::inputs::Inputs;
use crate::probes::packet;
use crate::reconcile::link_conflicts::{Listener, listener};
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use crate::telemetry::failure_log::FailureLog;

/// Interval of the attempts to open the port.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Delay after a failure to receive.
const RECEIVE_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Maximum number of packets of one family per second.
const MAX_PACKETS_PER_SECOND: u32 = 500;

/// The reconciler's handle to the task.
pub struct ResponderHandle {
    peers: watch::Sender<BTreeSet<IpAddr>>,
    problem: watch::Receiver<Option<Problem>>,
}

impl ResponderHandle {
    /// Sets the addresses whose requests are answered.
    pub fn set_peers(&self, peers: BTreeSet<IpAddr>) {
        self.peers.send_if_modified(|current| {
            let changed = *current != peers;
            *current = peers;
            changed
        });
    }

    /// Why no request is answered.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.problem.borrow().clone()
    }

    /// Reports each change of the problem.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Problem>> {
        self.problem.clone()
    }
}

/// The source addresses of requests of other nodes: their node addresses, and their own addresses in their blocks.
#[must_use]
pub fn peers(inputs: &Inputs) -> BTreeSet<IpAddr> {
    let remote = inputs.remote.iter();
    let addresses = remote.flat_map(|block| {
        let own = block::tunnel_address(block.cidr);
        block.addresses.iter().chain(own)
    });
    addresses.collect()
}

/// The task.
pub struct Responder {
    port: u16,
    peers: watch::Receiver<BTreeSet<IpAddr>>,
    problem: watch::Sender<Option<Problem>>,
    failure_log: FailureLog,
}

impl Responder {
    /// A responder on a UDP port without peers, and its handle.
    #[must_use]
    pub fn new(port: u16) -> (Self, ResponderHandle) {
        let (peers, receiver) = watch::channel(BTreeSet::new());
        let (sender, problem) = watch::channel(None);
        let responder = Self {
            port,
            peers: receiver,
            problem: sender,
            failure_log: FailureLog::default(),
        };
        (responder, ResponderHandle { peers, problem })
    }

    /// Runs until the process ends. Retries while another program uses the port.
    pub async fn run(mut self) {
        loop {
            match sockets(self.port) {
                Ok(sockets) => {
                    self.publish(None);
                    join_all(sockets.iter().map(|socket| self.serve(socket))).await;
                }
                Err(error) => {
                    let problem = Problem::from(unavailable(self.port, &error, listener));
                    self.publish(Some(problem));
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    fn publish(&mut self, problem: Option<Problem>) {
        self.failure_log
            .set(problem.as_ref().map(ToString::to_string));
        self.problem.send_if_modified(|current| {
            let changed = *current != problem;
            *current = problem;
            changed
        });
    }

    async fn serve(&self, socket: &UdpSocket) {
        let mut limit = RateLimit::default();
        loop {
            let received = || receive(socket);
            match socket.async_io(Interest::READABLE, received).await {
                Ok(request) => {
                    if let Some(reply) = reply(&request, &self.peers.borrow())
                        && let Err(error) = send(socket, &request, &reply)
                    {
                        // The other agent repeats its request.
                        debug!(to = %request.source, %error, "answering probe failed");
                    }
                    sleep(limit.count(Instant::now())).await;
                }
                Err(error) => {
                    debug!(%error, "receiving probes failed, will retry");
                    sleep(RECEIVE_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Why the port cannot be opened. `listener` finds the program that listens on a port.
fn unavailable(port: u16, error: &io::Error, listener: impl Fn(u16) -> Option<Listener>) -> Cause {
    let reason = match error.kind() {
        ErrorKind::AddrInUse => match listener(port) {
            Some(Listener::Process(process)) => {
                format!("is used on this node by {process}; end that program, or")
            }
            Some(Listener::Unseen) | None => format!(
                "is used on this node by another program (on the node, ss -ulpn sport = {port} shows which); end that program, or"
            ),
        },
        _ => format!("cannot be opened: {error};"),
    };
    Cause::ProbePortUnavailable { port, reason }
}

/// A received packet.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    data: Vec<u8>,
    source: SocketAddr,
    destination: IpAddr,
}

/// The reply to a packet, if it is a request of a known node.
fn reply(request: &Received, peers: &BTreeSet<IpAddr>) -> Option<[u8; packet::LENGTH]> {
    let is_peer = peers.contains(&request.source.ip());
    is_peer.then(|| packet::udp_reply(&request.data)).flatten()
}

/// Limits the number of packets per second.
#[derive(Debug, Default)]
struct RateLimit {
    /// Start of the present second.
    since: Option<Instant>,
    /// Packets in the present second.
    packets: u32,
}

impl RateLimit {
    /// Counts a packet, and returns the delay before the next one.
    fn count(&mut self, now: Instant) -> Duration {
        const SECOND: Duration = Duration::from_secs(1);
        let elapsed = self.since.map(|since| now.duration_since(since));
        let elapsed = elapsed
            .filter(|elapsed| *elapsed < SECOND)
            .unwrap_or_else(|| {
                self.since = Some(now);
                self.packets = 0;
                Duration::ZERO
            });
        self.packets = self.packets.saturating_add(1);
        if self.packets < MAX_PACKETS_PER_SECOND {
            Duration::ZERO
        } else {
            SECOND.saturating_sub(elapsed)
        }
    }
}

/// One socket per family that the kernel supports.
fn sockets(port: u16) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for ipv4 in [true, false] {
        match socket(ipv4, port) {
            Ok(socket) => sockets.push(UdpSocket::from_std(socket)?),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

fn socket(ipv4: bool, port: u16) -> io::Result<std::net::UdpSocket> {
    let (domain, any) = if ipv4 {
        (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED))
    } else {
        (Domain::IPV6, IpAddr::from(Ipv6Addr::UNSPECIFIED))
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if ipv4 {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket.into())
}

/// Receives one packet. A longer packet than a request is truncated to twice the length of a request.
fn receive(socket: &UdpSocket) -> io::Result<Received> {
    let mut buffer = [0; packet::LENGTH * 2];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let destination = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(Ipv4Addr::from(
            info.ipi_addr.s_addr.to_ne_bytes(),
        ))),
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::from(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    let (bytes, source) = (message.bytes, message.address.and_then(socket_address));
    let without_addresses =
        || io::Error::new(ErrorKind::InvalidData, "a packet without its addresses");
    Ok(Received {
        data: buffer.get(..bytes).unwrap_or_default().to_vec(),
        source: source.ok_or_else(without_addresses)?,
        destination: destination.ok_or_else(without_addresses)?,
    })
}

/// Sends a reply from the destination of the request.
fn send(socket: &UdpSocket, request: &Received, reply: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(reply)];
    let to = SockaddrStorage::from(request.source);
    let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    match request.destination {
        IpAddr::V4(address) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&to))?;
        }
        IpAddr::V6(address) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: 0,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&to))?;
        }
    }
    Ok(())
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().copied().map(SocketAddrV4::from);
    let v6 = address.as_sockaddr_in6().copied().map(SocketAddrV6::from);
    v4.map(SocketAddr::from)
        .or_else(|| v6.map(SocketAddr::from))
}
