//! The path of packets from the peers to the link.
//!
//! ```text
//!   socket ─receive─▶ datagrams ─▶ check of the source ─▶ check of the packet ─▶ coalesce ─▶ queue
//! ```
//!
//! All packets of a batch are written before the next batch is received. After the start, no memory is allocated.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::coalesce::{Coalescer, Sink};
use crate::counters::{Counters, DropReason};
use crate::packet::check;
use crate::rcu::Reader;
use crate::routes::Routes;
use crate::stop::Stop;
use crate::sys::receive::{Received, Receiver};
use crate::sys::tun;
use crate::virtio_net_hdr;

/// The worker of one socket.
pub struct Inbound {
    pub link: String,
    pub queue: Arc<File>,
    pub socket: Arc<OwnedFd>,
    pub routes: Reader<Routes>,
    /// The last known MTU of the link in bytes; 0 if unknown.
    pub mtu: Arc<AtomicUsize>,
    pub counters: Arc<Counters>,
}

impl Inbound {
    /// Forwards packets until a stop is requested.
    ///
    /// # Errors
    /// The socket fails, or the link has been deleted.
    pub fn run(mut self, stop: &Stop) -> io::Result<()> {
        let (mut receiver, mut coalescer) = (Receiver::new(), Coalescer::new());
        while !stop.is_requested() {
            match receiver.receive(&self.socket) {
                Ok(count) => {
                    self.counters.reads.add(1);
                    self.routes.refresh();
                    self.forward(count, &receiver, &mut coalescer)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stop.wait_readable(self.socket.as_fd())?;
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forward(
        &self,
        count: usize,
        receiver: &Receiver,
        coalescer: &mut Coalescer,
    ) -> io::Result<()> {
        let mut link = LinkWriter {
            queue: &self.queue,
            counters: &self.counters,
            deleted: None,
        };
        let mut mtu = Mtu::new(self);
        for received in (0..count).filter_map(|index| receiver.get(index)) {
            if let Err(reason) = check_source(&self.routes, &received) {
                self.counters.dropped(reason, datagrams(&received).count());
                continue;
            }
            for range in datagrams(&received) {
                let packet = receiver.buffer().get(range.clone()).unwrap_or_default();
                match mtu.check(packet) {
                    Ok(()) => coalescer.push(receiver.buffer(), range, &mut link),
                    Err(reason) => self.counters.dropped(reason, 1),
                }
            }
        }
        coalescer.flush(receiver.buffer(), &mut link);
        link.deleted.map_or(Ok(()), Err)
    }
}

/// Whether an error is about an earlier sent datagram or a signal. The next call can succeed.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

/// Checks that a datagram comes from the relay of a peer. The source address can be spoofed. A tunnel without keys, as those of the
/// kernel, relies on the underlay against spoofing.
fn check_source(routes: &Routes, received: &Received) -> Result<(), DropReason> {
    match received.source {
        _ if received.truncated => Err(DropReason::TooBig),
        Some(source) if !is_peer(routes, source) => Err(DropReason::NotAPeer),
        Some(source) if source.port() != routes.port() => Err(DropReason::Port),
        Some(_) => Ok(()),
        None => Err(DropReason::NotAPeer),
    }
}

fn is_peer(routes: &Routes, source: SocketAddr) -> bool {
    routes.is_peer(source.ip())
}

/// The ranges of the datagrams that the kernel has coalesced: at least one, which may be empty.
fn datagrams(received: &Received) -> impl Iterator<Item = Range<usize>> + use<> {
    let range = received.range.clone();
    let size = received.segment.unwrap_or(range.len()).max(1);
    let end = range.end;
    let starts = range.step_by(size);
    let empty = received.range.is_empty().then(|| received.range.clone());
    starts
        .map(move |start| start..(start + size).min(end))
        .chain(empty)
}

/// The MTU of the link. If a packet is longer, the MTU is read again, at most once per batch, because the agent may have raised it.
struct Mtu<'a> {
    inbound: &'a Inbound,
    known: usize,
    was_read: bool,
}

impl<'a> Mtu<'a> {
    fn new(inbound: &'a Inbound) -> Self {
        Self {
            inbound,
            known: inbound.mtu.load(Ordering::Relaxed),
            was_read: false,
        }
    }

    fn check(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let checked = check(packet, self.known);
        if checked != Err(DropReason::TooBig) || self.was_read {
            return checked;
        }
        self.was_read = true;
        if let Ok(mtu) = tun::mtu(&self.inbound.link) {
            self.known = mtu;
            self.inbound.mtu.store(mtu, Ordering::Relaxed);
        }
        check(packet, self.known)
    }
}

/// The sink that writes to the link.
struct LinkWriter<'a> {
    queue: &'a File,
    counters: &'a Counters,
    /// The error that reports that the link has been deleted.
    deleted: Option<io::Error>,
}

impl Sink for LinkWriter<'_> {
    fn write(&mut self, frame: &[IoSlice<'_>], packets: usize) {
        match self.queue.write_vectored(frame) {
            Ok(written) => {
                self.counters.packets.add(packets);
                self.counters
                    .bytes
                    .add(written.saturating_sub(virtio_net_hdr::LEN));
                self.counters.writes.add(1);
            }
            Err(error) => {
                self.counters.dropped(DropReason::LinkRefused, packets);
                // The error for a queue without a link (`tun_chr_write_iter`).
                if error.raw_os_error() == Some(libc::EBADFD) {
                    self.deleted = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(length: usize, segment: Option<usize>) -> Received {
        Received {
            range: 100..100 + length,
            source: None,
            segment,
            truncated: false,
        }
    }

    #[test]
    fn gro_buffer_is_split_into_all_its_datagrams() {
        let ranges = |length, segment| datagrams(&received(length, segment)).collect::<Vec<_>>();
        assert_eq!(ranges(10, None), vec![100..110; 1]);
        assert_eq!(ranges(10, Some(4)), [100..104, 104..108, 108..110]);
        assert_eq!(ranges(8, Some(4)), [100..104, 104..108]);
        assert_eq!(ranges(0, None), vec![100..100; 1]);
    }

    #[test]
    fn datagram_from_non_peer_or_wrong_port_is_dropped() {
        let config = serde_json::from_str(
            r#"{"link":"nw-udp1","port":8285,"local":"192.0.2.1","peers":[{"address":"192.0.2.2"}]}"#,
        );
        let routes = Routes::new(&config.unwrap());
        let from = |source: Option<&str>, truncated| {
            let source = source.map(|source| source.parse().unwrap());
            check_source(
                &routes,
                &Received {
                    source,
                    truncated,
                    ..received(40, None)
                },
            )
        };
        assert_eq!(from(Some("192.0.2.2:8285"), false), Ok(()));
        assert_eq!(from(Some("192.0.2.2:8286"), false), Err(DropReason::Port));
        assert_eq!(
            from(Some("192.0.2.3:8285"), false),
            Err(DropReason::NotAPeer)
        );
        assert_eq!(from(None, false), Err(DropReason::NotAPeer));
        assert_eq!(from(Some("192.0.2.2:8285"), true), Err(DropReason::TooBig));
    }
}
