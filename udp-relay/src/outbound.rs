//! The path of packets from the link to the peers.
//!
//! ```text
//!   queue ─read─▶ packet ─▶ destination ─▶ peer ─▶ checksum or segmentation ─▶ batch ─▶ socket
//! ```
//!
//! A batch has the packets of the queue that fit into the buffer. After the start, no memory is allocated. No payload is copied.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::SockaddrStorage;

use crate::counters::{Counters, DropReason};
use crate::packet;
use crate::rcu::Reader;
use crate::routes::Routes;
use crate::segment::{MAX_HEADERS, Segmentation, complete_checksum};
use crate::stop::Stop;
use crate::sys::send::{MAX_MESSAGE_BYTES, MAX_SEGMENTS, Sender};
use crate::virtio_net_hdr::{self, VirtioNetHdr};

/// Bytes for the longest packet and its `virtio_net_hdr`, a multiple of a cache line.
const FRAME: usize = 65536 + 64;
/// Bytes for the packets of one batch.
const PACKETS: usize = 4 * FRAME;
/// Bytes for the headers of the segments of one batch.
const HEADERS: usize = MAX_SEGMENTS * MAX_HEADERS * 4;
/// Alignment of frames in bytes.
const ALIGN: usize = 64;

/// The worker of one queue.
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
    /// A worker with empty buffers.
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

    /// Forwards packets until a stop is requested.
    ///
    /// # Errors
    /// The queue cannot be read, for example because the link has been deleted.
    pub fn run(mut self, stop: &Stop) -> io::Result<()> {
        while !stop.is_requested() {
            let read = self.read_batch();
            self.flush();
            match read {
                Ok(true) => {}
                Ok(false) => stop.wait_readable(self.queue.as_fd())?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads packets until the queue is empty or the batch is full. Returns whether the queue may have more packets.
    fn read_batch(&mut self) -> io::Result<bool> {
        self.routes.refresh();
        let mut used = 0;
        while used + FRAME <= PACKETS && self.batch.has_room(1) {
            let room = self.buffer.get_mut(used..used + FRAME).unwrap_or_default();
            match (&*self.queue).read(room) {
                Ok(length) => {
                    self.counters.reads.add(1);
                    self.add(used..used + length);
                    used = (used + length).next_multiple_of(ALIGN);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Adds a frame to the batch, or counts it as dropped.
    fn add(&mut self, frame: Range<usize>) {
        if let Err(reason) = self.try_add(frame) {
            self.counters.dropped(reason, 1);
        }
    }

    fn try_add(&mut self, frame: Range<usize>) -> Result<(), DropReason> {
        let range = frame.start + virtio_net_hdr::LEN..frame.end;
        let bytes = self
            .buffer
            .get_mut(frame)
            .ok_or(DropReason::NotSegmentable)?;
        let (vnet_hdr, bytes) = VirtioNetHdr::split(bytes).ok_or(DropReason::NotSegmentable)?;
        let destination = packet::destination(bytes).ok_or(DropReason::NotSegmentable)?;
        let peer = self.routes.find(destination).ok_or(DropReason::NoPeer)?;
        let to = *self.routes.address(peer).ok_or(DropReason::NoPeer)?;
        match Segmentation::new(&vnet_hdr, bytes).map_err(|_| DropReason::NotSegmentable)? {
            Some(segmentation) => self.add_segments(to, &range, &segmentation),
            None => {
                complete_checksum(&vnet_hdr, bytes).map_err(|_| DropReason::NotSegmentable)?;
                self.batch.push(to, range);
                Ok(())
            }
        }
    }

    /// Adds the segments of a packet, in as many messages as necessary.
    fn add_segments(
        &mut self,
        to: SockaddrStorage,
        range: &Range<usize>,
        segmentation: &Segmentation,
    ) -> Result<(), DropReason> {
        let per_message = MAX_SEGMENTS.min(MAX_MESSAGE_BYTES / segmentation.segment());
        if per_message == 0 {
            return Err(DropReason::NotSegmentable);
        }
        for first in (0..segmentation.count()).step_by(per_message) {
            let count = per_message.min(segmentation.count() - first);
            if !self.batch.has_room(2 * count)
                || self.headers_used + count * segmentation.headers() > HEADERS
            {
                self.flush();
            }
            let headers = PACKETS + self.headers_used;
            self.headers_used += count * segmentation.headers();
            self.write_headers(headers, range, segmentation, first..first + count);
            let part = |index: usize| {
                let header = headers + (index - first) * segmentation.headers();
                let payload = segmentation.payload(index);
                let payload = range.start + payload.start..range.start + payload.end;
                (header..header + segmentation.headers(), payload)
            };
            self.batch
                .push_segments(to, segmentation.segment(), (first..first + count).map(part));
        }
        Ok(())
    }

    fn write_headers(
        &mut self,
        at: usize,
        range: &Range<usize>,
        segmentation: &Segmentation,
        indexes: Range<usize>,
    ) {
        let Some((packets, headers)) = self.buffer.split_at_mut_checked(PACKETS) else {
            return;
        };
        let packet = packets.get(range.clone()).unwrap_or_default();
        let headers = headers.get_mut(at - PACKETS..).unwrap_or_default();
        for (index, out) in indexes.zip(headers.chunks_exact_mut(segmentation.headers())) {
            segmentation.write_header(packet, index, out);
        }
    }

    fn flush(&mut self) {
        self.batch.flush(&self.socket, &self.buffer, &self.counters);
        self.headers_used = 0;
    }
}
