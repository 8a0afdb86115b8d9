//! From the link to the peers.
//!
//! ```text
//!   queue ─read─▶ packet ─▶ destination ─▶ peer ─▶ complete its checksum, or cut it ─▶ batch ─▶ socket
//! ```
//!
//! A batch is what the queue holds, up to the room for it. Nothing is allocated after the start, and no payload is copied.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::SockaddrStorage;

use crate::counters::{Counters, Drop};
use crate::packet;
use crate::rcu::Reader;
use crate::routes::Routes;
use crate::segment::{Cut, MAX_HEADERS, complete};
use crate::stop::Stop;
use crate::sys::send::{BYTES, SEGMENTS, Sender};
use crate::virtio_net_hdr::{self, VirtioNetHdr};

/// Room for the longest packet and what stands before it, a multiple of a cache line.
const FRAME: usize = 65536 + 64;
/// Room for packets of one batch.
const PACKETS: usize = 4 * FRAME;
/// Room for headers of segments of one batch.
const HEADERS: usize = SEGMENTS * MAX_HEADERS * 4;
/// Frames begin at multiples of this, so that what is behind a virtio-net header and an IPv4 header is aligned.
const ALIGN: usize = 64;

/// One queue's way out.
pub struct Outbound {
    queue: Arc<File>,
    socket: Arc<OwnedFd>,
    routes: Reader<Routes>,
    counters: Arc<Counters>,
    /// Packets, then headers of segments.
    buffer: Vec<u8>,
    headers_used: usize,
    batch: Sender,
}

impl Outbound {
    /// With its buffers.
    pub fn new(
        queue: Arc<File>,
        socket: Arc<OwnedFd>,
        routes: Reader<Routes>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            queue,
            socket,
            routes,
            counters,
            buffer: vec![0; PACKETS + HEADERS],
            headers_used: 0,
            batch: Sender::new(),
        }
    }

    /// Works until asked to stop.
    ///
    /// # Errors
    /// The queue cannot be read any more; the link has been deleted.
    pub fn run(mut self, stop: &Stop) -> io::Result<()> {
        while !stop.is_asked() {
            let read = self.read_batch();
            self.flush();
            match read {
                Ok(true) => {}
                Ok(false) => stop.or_readable(self.queue.as_fd())?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what there is and has room. Says whether there may be more.
    fn read_batch(&mut self) -> io::Result<bool> {
        self.routes.refresh();
        let mut used = 0;
        while used + FRAME <= PACKETS && self.batch.has_room(1) {
            let room = self.buffer.get_mut(used..used + FRAME).unwrap_or_default();
            match (&*self.queue).read(room) {
                Ok(length) => {
                    self.counters.reads.add(1);
                    self.take(used..used + length);
                    used = (used + length).next_multiple_of(ALIGN);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Puts a frame into the batch.
    fn take(&mut self, frame: Range<usize>) {
        if let Err(reason) = self.try_take(frame) {
            self.counters.dropped(reason, 1);
        }
    }

    fn try_take(&mut self, frame: Range<usize>) -> Result<(), Drop> {
        let place = frame.start + virtio_net_hdr::LEN..frame.end;
        let bytes = self.buffer.get_mut(frame).ok_or(Drop::NotSegmentable)?;
        let (vnet, bytes) = VirtioNetHdr::split(bytes).ok_or(Drop::NotSegmentable)?;
        let destination = packet::destination(bytes).ok_or(Drop::NotSegmentable)?;
        let peer = self.routes.find(destination).ok_or(Drop::NoPeer)?;
        let to = *self.routes.address(peer).ok_or(Drop::NoPeer)?;
        match Cut::of(&vnet, bytes).map_err(|_| Drop::NotSegmentable)? {
            Some(cut) => self.cut(to, &place, &cut),
            None => {
                complete(&vnet, bytes).map_err(|_| Drop::NotSegmentable)?;
                self.batch.push(to, place);
                Ok(())
            }
        }
    }

    /// Cuts a packet into as many entries of the batch as it takes.
    fn cut(&mut self, to: SockaddrStorage, place: &Range<usize>, cut: &Cut) -> Result<(), Drop> {
        let most = SEGMENTS.min(BYTES / cut.segment());
        if most == 0 {
            return Err(Drop::NotSegmentable);
        }
        for first in (0..cut.count()).step_by(most) {
            let count = most.min(cut.count() - first);
            if !self.batch.has_room(2 * count)
                || self.headers_used + count * cut.headers() > HEADERS
            {
                self.flush();
            }
            let headers = PACKETS + self.headers_used;
            self.headers_used += count * cut.headers();
            self.write_headers(headers, place, cut, first..first + count);
            let part = |index: usize| {
                let header = headers + (index - first) * cut.headers();
                let payload = cut.payload(index);
                let payload = place.start + payload.start..place.start + payload.end;
                (header..header + cut.headers(), payload)
            };
            self.batch
                .push_cut(to, cut.segment(), (first..first + count).map(part));
        }
        Ok(())
    }

    fn write_headers(&mut self, at: usize, place: &Range<usize>, cut: &Cut, indexes: Range<usize>) {
        let Some((packets, headers)) = self.buffer.split_at_mut_checked(PACKETS) else {
            return;
        };
        let packet = packets.get(place.clone()).unwrap_or_default();
        let headers = headers.get_mut(at - PACKETS..).unwrap_or_default();
        for (index, out) in indexes.zip(headers.chunks_exact_mut(cut.headers())) {
            cut.write_header(packet, index, out);
        }
    }

    fn flush(&mut self) {
        self.batch.flush(&self.socket, &self.buffer, &self.counters);
        self.headers_used = 0;
    }
}
