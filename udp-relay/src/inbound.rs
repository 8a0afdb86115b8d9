//! From the peers to the link.
//!
//! ```text
//!   socket ─receive─▶ datagrams ─▶ from a peer? ─▶ one whole packet? ─▶ put segments together ─▶ queue
//! ```
//!
//! Nothing of what is received is kept for longer than one batch, and nothing is allocated after the start.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::coalesce::{Coalescer, Sink};
use crate::counters::{Counters, Drop};
use crate::packet::check;
use crate::rcu::Reader;
use crate::routes::Routes;
use crate::stop::Stop;
use crate::sys::receive::{Received, Receiver};
use crate::sys::tun;
use crate::virtio_net_hdr;

/// One socket's way in.
pub struct Inbound {
    pub link: String,
    pub queue: Arc<File>,
    pub socket: Arc<OwnedFd>,
    pub routes: Reader<Routes>,
    /// What the link takes, as far as is known.
    pub mtu: Arc<AtomicUsize>,
    pub counters: Arc<Counters>,
}

impl Inbound {
    /// Works until asked to stop.
    ///
    /// # Errors
    /// The socket or the link does not work any more.
    pub fn run(mut self, stop: &Stop) -> io::Result<()> {
        let (mut receiver, mut coalescer) = (Receiver::new(), Coalescer::new());
        while !stop.is_asked() {
            match receiver.receive(&self.socket) {
                Ok(count) => {
                    self.counters.reads.add(1);
                    self.routes.refresh();
                    self.pass_on(count, &receiver, &mut coalescer)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stop.or_readable(self.socket.as_fd())?;
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pass_on(
        &self,
        count: usize,
        receiver: &Receiver,
        coalescer: &mut Coalescer,
    ) -> io::Result<()> {
        let mut link = LinkWriter {
            queue: &self.queue,
            counters: &self.counters,
            gone: None,
        };
        let mut mtu = Mtu::of(self);
        for received in (0..count).filter_map(|index| receiver.get(index)) {
            if let Err(reason) = admit(&self.routes, &received) {
                self.counters.dropped(reason, datagrams(&received).count());
                continue;
            }
            for place in datagrams(&received) {
                let packet = receiver.buffer().get(place.clone()).unwrap_or_default();
                match mtu.check(packet) {
                    Ok(()) => coalescer.push(receiver.buffer(), place, &mut link),
                    Err(reason) => self.counters.dropped(reason, 1),
                }
            }
        }
        coalescer.flush(receiver.buffer(), &mut link);
        link.gone.map_or(Ok(()), Err)
    }
}

/// What a socket reports of a datagram that was sent before, or of a signal; the next call works.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

/// Whether a datagram comes from a relay of ours. Addresses of senders can be forged: that much a tunnel without keys has
/// to leave to the network, as the kernel's tunnels do.
fn admit(routes: &Routes, received: &Received) -> Result<(), Drop> {
    match received.source {
        _ if received.truncated => Err(Drop::TooBig),
        Some(source) if !is_peer(routes, source) => Err(Drop::NotAPeer),
        Some(source) if source.port() != routes.port() => Err(Drop::Port),
        Some(_) => Ok(()),
        None => Err(Drop::NotAPeer),
    }
}

fn is_peer(routes: &Routes, source: SocketAddr) -> bool {
    routes.is_peer(source.ip())
}

/// The places of the datagrams that the kernel has put together; one at least, which may be empty.
fn datagrams(received: &Received) -> impl Iterator<Item = Range<usize>> + use<> {
    let place = received.place.clone();
    let size = received.segment.unwrap_or(place.len()).max(1);
    let end = place.end;
    let starts = place.step_by(size);
    let empty = received.place.is_empty().then(|| received.place.clone());
    starts
        .map(move |start| start..(start + size).min(end))
        .chain(empty)
}

/// The link's MTU, asked for again when something does not fit, once for each batch: the agent may have raised it.
struct Mtu<'a> {
    inbound: &'a Inbound,
    known: usize,
    asked: bool,
}

impl<'a> Mtu<'a> {
    fn of(inbound: &'a Inbound) -> Self {
        Self {
            inbound,
            known: inbound.mtu.load(Ordering::Relaxed),
            asked: false,
        }
    }

    fn check(&mut self, packet: &[u8]) -> Result<(), Drop> {
        let checked = check(packet, self.known);
        if checked != Err(Drop::TooBig) || self.asked {
            return checked;
        }
        self.asked = true;
        if let Ok(mtu) = tun::mtu(&self.inbound.link) {
            self.known = mtu;
            self.inbound.mtu.store(mtu, Ordering::Relaxed);
        }
        check(packet, self.known)
    }
}

/// Writes to the link.
struct LinkWriter<'a> {
    queue: &'a File,
    counters: &'a Counters,
    /// Why there is no link any more.
    gone: Option<io::Error>,
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
                self.counters.dropped(Drop::LinkRefused, packets);
                // The queue belongs to no link (`tun_chr_write_iter`).
                if error.raw_os_error() == Some(libc::EBADFD) {
                    self.gone = Some(error);
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
            place: 100..100 + length,
            source: None,
            segment,
            truncated: false,
        }
    }

    #[test]
    fn gro_buffer_is_split_into_all_its_datagrams() {
        let places = |length, segment| datagrams(&received(length, segment)).collect::<Vec<_>>();
        assert_eq!(places(10, None), vec![100..110; 1]);
        assert_eq!(places(10, Some(4)), [100..104, 104..108, 108..110]);
        assert_eq!(places(8, Some(4)), [100..104, 104..108]);
        assert_eq!(places(0, None), vec![100..100; 1]);
    }

    #[test]
    fn datagram_from_non_peer_or_wrong_port_is_dropped() {
        let config = serde_json::from_str(
            r#"{"link":"nw-udp1","port":8285,"local":"192.0.2.1","peers":[{"address":"192.0.2.2"}]}"#,
        );
        let routes = Routes::new(&config.unwrap());
        let from = |source: Option<&str>, truncated| {
            let source = source.map(|source| source.parse().unwrap());
            admit(
                &routes,
                &Received {
                    source,
                    truncated,
                    ..received(40, None)
                },
            )
        };
        assert_eq!(from(Some("192.0.2.2:8285"), false), Ok(()));
        assert_eq!(from(Some("192.0.2.2:8286"), false), Err(Drop::Port));
        assert_eq!(from(Some("192.0.2.3:8285"), false), Err(Drop::NotAPeer));
        assert_eq!(from(None, false), Err(Drop::NotAPeer));
        assert_eq!(from(Some("192.0.2.2:8285"), true), Err(Drop::TooBig));
    }
}
