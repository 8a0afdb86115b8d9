//! Putting TCP segments together again that were one packet before the sending relay cut it.
//!
//! ```text
//!   datagrams of one receive call ─▶ push ─▶ trains, one for each flow ─▶ flush ─▶ one packet to be cut ─▶ link
//!                                        └─▶ everything else, as it is ───────────────────────────────▶ link
//! ```
//!
//! The rules are stricter than the kernel's (`tcp_gro_receive`, `inet_gro_receive`): only what cutting the result again
//! would yield byte for byte is put together. Segments of one flow leave in the order they came in. No payload is moved: a
//! train is a header and ranges of the receive buffer, so nothing may stay here when the buffer is used again.

use std::io::IoSlice;
use std::ops::Range;

use crate::checksum::{be, fold, is_right, sum};
use crate::packet::{Tcp, be16, flags, is_fragment, put};
use crate::segment::write_v4_checksum;
use crate::virtio_net_hdr::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VirtioNetHdr};

/// Flows that are put together side by side.
const TRAINS: usize = 8;
/// Segments of one train: what fits in 64 KiB with an MTU of 1280 is 52.
const PIECES: usize = 64;
/// IPv4 and TCP headers with all their options.
const MAX_HEADERS: usize = 120;
/// The longest packet, by IPv4's total length and IPv6's payload length.
const MAX_PACKET: usize = 65535;

/// Where packets go.
pub trait Sink {
    /// Takes a frame for the link, virtio-net header first, that holds a number of packets.
    fn write(&mut self, frame: &[IoSlice<'_>], packets: usize);
}

/// Segments that follow each other.
#[derive(Debug)]
struct Train {
    headers: [u8; MAX_HEADERS],
    tcp: Tcp,
    pieces: [Range<usize>; PIECES],
    count: usize,
    /// Payload of the first segment and of all but the last.
    size: usize,
    /// Payload of all.
    payload: usize,
    /// The first segment as it came.
    first: Range<usize>,
}

/// The trains of one receive call.
#[derive(Debug)]
pub struct Coalescer {
    trains: [Option<Train>; TRAINS],
    next: usize,
}

impl Coalescer {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            trains: [const { None }; TRAINS],
            next: 0,
        }
    }

    /// Takes the packet at `place` in `buffer`, for which [`crate::packet::check`] holds.
    pub fn push(&mut self, buffer: &[u8], place: Range<usize>, sink: &mut impl Sink) {
        let packet = buffer.get(place.clone()).unwrap_or_default();
        let Some(tcp) = Tcp::of(packet) else {
            // Which flow a fragment belongs to is not known, so it goes behind all of them.
            if is_fragment(packet) {
                self.flush(buffer, sink);
            }
            return write_whole(packet, sink);
        };
        let slot = self.slot_of(packet, &tcp);
        let good = can_be_joined(packet, &tcp);
        if let Some(slot) = slot {
            if good && self.append(slot, packet, &place, &tcp) {
                if self.is_complete(slot) {
                    self.flush_one(slot, buffer, sink);
                }
                return;
            }
            self.flush_one(slot, buffer, sink);
        }
        if good && tcp.flags & flags::PSH == 0 {
            let slot = slot.unwrap_or_else(|| self.free_slot(buffer, sink));
            self.begin(slot, packet, place, tcp);
        } else {
            write_whole(packet, sink);
        }
    }

    /// Lets everything go.
    pub fn flush(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        for slot in 0..TRAINS {
            self.flush_one(slot, buffer, sink);
        }
    }

    fn slot_of(&self, packet: &[u8], tcp: &Tcp) -> Option<usize> {
        let same = |train: &Option<Train>| {
            train
                .as_ref()
                .is_some_and(|train| train.same_flow(packet, tcp))
        };
        self.trains.iter().position(same)
    }

    fn free_slot(&mut self, buffer: &[u8], sink: &mut impl Sink) -> usize {
        if let Some(free) = self.trains.iter().position(Option::is_none) {
            return free;
        }
        let slot = self.next;
        self.next = (self.next + 1) % TRAINS;
        self.flush_one(slot, buffer, sink);
        slot
    }

    fn begin(&mut self, slot: usize, packet: &[u8], place: Range<usize>, tcp: Tcp) {
        if let Some(train) = self.trains.get_mut(slot) {
            *train = Train::new(packet, place, tcp);
        }
    }

    fn append(&mut self, slot: usize, packet: &[u8], place: &Range<usize>, tcp: &Tcp) -> bool {
        match self.trains.get_mut(slot) {
            Some(Some(train)) => train.append(packet, place, tcp),
            _ => false,
        }
    }

    fn is_complete(&self, slot: usize) -> bool {
        matches!(self.trains.get(slot), Some(Some(train)) if train.is_complete())
    }

    fn flush_one(&mut self, slot: usize, buffer: &[u8], sink: &mut impl Sink) {
        if let Some(mut train) = self.trains.get_mut(slot).and_then(Option::take) {
            train.write(buffer, sink);
        }
    }
}

fn write_whole(packet: &[u8], sink: &mut impl Sink) {
    let vnet = VirtioNetHdr::default().to_bytes();
    sink.write(&[IoSlice::new(&vnet), IoSlice::new(packet)], 1);
}

/// Whether a segment can be part of a train at all: data, no flag with a meaning of its own, right checksums. The kernel
/// does not look at the checksums of what was put together.
fn can_be_joined(packet: &[u8], tcp: &Tcp) -> bool {
    let joined = flags::ACK | flags::PSH | flags::ECE;
    let (start, end) = (tcp.header.start, tcp.header.end);
    packet.len() > end
        && tcp.flags & flags::ACK != 0
        && tcp.flags & !joined == 0
        && end <= MAX_HEADERS
        && (!tcp.v4
            || packet
                .get(..start)
                .is_some_and(|header| is_right(sum(header))))
        && packet
            .get(start..)
            .is_some_and(|segment| is_right(sum(segment) + pseudo(packet, tcp, segment.len())))
}

/// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a TCP segment of some length.
fn pseudo(packet: &[u8], tcp: &Tcp, length: usize) -> u64 {
    let addresses = if tcp.v4 { 12..20 } else { 8..40 };
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    sum(packet.get(addresses).unwrap_or_default()) + be(u16::from(crate::packet::TCP)) + be(length)
}

impl Train {
    fn new(packet: &[u8], place: Range<usize>, tcp: Tcp) -> Option<Self> {
        let mut headers = [0; MAX_HEADERS];
        let end = tcp.header.end;
        headers.get_mut(..end)?.copy_from_slice(packet.get(..end)?);
        let size = packet.len() - end;
        let mut pieces = [const { 0..0 }; PIECES];
        *pieces.first_mut()? = place.start + end..place.end;
        Some(Self {
            headers,
            tcp,
            pieces,
            count: 1,
            size,
            payload: size,
            first: place,
        })
    }

    /// Whether `packet` has these addresses and ports.
    fn same_flow(&self, packet: &[u8], tcp: &Tcp) -> bool {
        let addresses = if tcp.v4 { 12..20 } else { 8..40 };
        let (own, its) = (self.tcp.header.start, tcp.header.start);
        self.tcp.v4 == tcp.v4
            && self.headers.get(own..own + 4) == packet.get(its..its + 4)
            && self.headers.get(addresses.clone()) == packet.get(addresses)
    }

    /// Takes a segment of the same flow in, if cutting the train would yield it again.
    fn append(&mut self, packet: &[u8], place: &Range<usize>, tcp: &Tcp) -> bool {
        let more = packet.len() - tcp.header.end;
        let follows = self.tcp.header == tcp.header
            && tcp.seq
                == self
                    .tcp
                    .seq
                    .wrapping_add(u32::try_from(self.payload).unwrap_or(u32::MAX))
            && more <= self.size
            && tcp.header.end + self.payload + more <= MAX_PACKET
            && tcp.flags & !flags::PSH == self.tcp.flags
            && self.same_ip(packet)
            && self.same_tcp(packet);
        let Some(piece) = self.pieces.get_mut(self.count).filter(|_| follows) else {
            return false;
        };
        *piece = place.start + tcp.header.end..place.end;
        self.count += 1;
        self.payload += more;
        if tcp.flags & flags::PSH != 0 {
            self.tcp.flags |= flags::PSH;
        }
        true
    }

    /// All of the IP header but lengths, checksum, and addresses, which are the flow's.
    fn same_ip(&self, packet: &[u8]) -> bool {
        let same = |range: Range<usize>| self.headers.get(range.clone()) == packet.get(range);
        if !self.tcp.v4 {
            // Version, class, flow label; next header, hop limit.
            return same(0..4) && same(6..8);
        }
        let id = be16(&self.headers, 4)
            .map(|id| id.wrapping_add(u16::try_from(self.count).unwrap_or_default()));
        // Version, length, class; flags; hops, protocol; options.
        same(0..2) && same(6..10) && same(20..self.tcp.header.start) && be16(packet, 4) == id
    }

    /// All of the TCP header but ports, which are the flow's, sequence number, flags and checksum.
    fn same_tcp(&self, packet: &[u8]) -> bool {
        let start = self.tcp.header.start;
        let same = |range: Range<usize>| {
            let range = start + range.start..start + range.end;
            self.headers.get(range.clone()) == packet.get(range)
        };
        // Acknowledgement; length and reserved bits; window; urgent pointer and options.
        same(8..13) && same(14..16) && same(18..self.tcp.header.len())
    }

    /// Whether nothing can follow: the last segment was shorter, or said so.
    fn is_complete(&self) -> bool {
        self.payload < self.size * self.count
            || self.tcp.flags & flags::PSH != 0
            || self.count == PIECES
    }

    fn write(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        if self.count == 1 {
            return write_whole(buffer.get(self.first.clone()).unwrap_or_default(), sink);
        }
        let vnet = self.finish_headers().to_bytes();
        let mut frame = [IoSlice::new(&[]); PIECES + 2];
        let headers = self.headers.get(..self.tcp.header.end).unwrap_or_default();
        let pieces = self.pieces.iter().take(self.count);
        let pieces = pieces.map(|piece| buffer.get(piece.clone()).unwrap_or_default());
        for (slice, part) in frame
            .iter_mut()
            .zip([&vnet[..], headers].into_iter().chain(pieces))
        {
            *slice = IoSlice::new(part);
        }
        sink.write(frame.get(..self.count + 2).unwrap_or_default(), self.count);
    }

    /// Makes the first segment's headers those of the whole. The checksum is left to the kernel, which may never need it.
    fn finish_headers(&mut self) -> VirtioNetHdr {
        let (start, end) = (self.tcp.header.start, self.tcp.header.end);
        let total = end + self.payload;
        let partial = fold(pseudo(&self.headers, &self.tcp, total - start));
        let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let (ip, tcp) = self.headers.split_at_mut(start);
        if self.tcp.v4 {
            put(ip, 2, short(total).to_be_bytes());
            write_v4_checksum(ip);
        } else {
            put(ip, 4, short(total - 40).to_be_bytes());
        }
        put(tcp, 13, [self.tcp.flags]);
        put(tcp, 16, partial.to_ne_bytes());
        VirtioNetHdr {
            flags: NEEDS_CSUM,
            gso_type: if self.tcp.v4 { GSO_TCPV4 } else { GSO_TCPV6 },
            hdr_len: short(end),
            gso_size: short(self.size),
            csum_start: short(start),
            csum_offset: 16,
        }
    }
}

#[cfg(test)]
mod tests;
