//! Receive offload: coalescing of TCP segments into GSO packets.
//!
//! ```text
//!   datagrams of one receive call ─▶ push ─▶ aggregates, one for each flow ─▶ flush ─▶ GSO packets ─▶ link
//!                                        └─▶ all other packets, unchanged ──────────────────────────▶ link
//! ```
//!
//! The rules are stricter than those of the kernel (`tcp_gro_receive`, `inet_gro_receive`): segmentation of the result must restore
//! the segments byte for byte. Segments of one flow keep their order. No payload is copied: an aggregate is a header and ranges of
//! the receive buffer, and must be flushed before the buffer is used again.

use std::io::IoSlice;
use std::ops::Range;

use crate::checksum::{be, fold, is_valid, sum};
use crate::packet::{Tcp, be16, flags, is_fragment, put};
use crate::segment::write_ipv4_checksum;
use crate::virtio_net_hdr::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VirtioNetHdr};

/// Maximum number of flows with an aggregate at the same time.
const MAX_FLOWS: usize = 8;
/// Maximum number of segments of one aggregate. With an MTU of 1280, 52 segments fit into 64 KiB.
const MAX_SEGMENTS: usize = 64;
/// Maximum length of IPv4 and TCP headers with options, in bytes.
const MAX_HEADERS: usize = 120;
/// Maximum length of a packet in bytes, by the total length of IPv4 and the payload length of IPv6.
const MAX_PACKET: usize = 65535;

/// The receiver of coalesced packets.
pub trait Sink {
    /// Receives a frame for the link, which begins with a `virtio_net_hdr` and contains `packets` packets.
    fn write(&mut self, frame: &[IoSlice<'_>], packets: usize);
}

/// Consecutive segments of one flow.
#[derive(Debug)]
struct Aggregate {
    headers: [u8; MAX_HEADERS],
    tcp: Tcp,
    payloads: [Range<usize>; MAX_SEGMENTS],
    count: usize,
    /// Bytes of payload of each segment except the last.
    size: usize,
    /// Bytes of payload of all segments.
    payload: usize,
    /// The range of the first segment in the receive buffer.
    first: Range<usize>,
}

/// The aggregates of one receive call.
#[derive(Debug)]
pub struct Coalescer {
    aggregates: [Option<Aggregate>; MAX_FLOWS],
    next: usize,
}

impl Coalescer {
    /// Without aggregates.
    pub const fn new() -> Self {
        Self {
            aggregates: [const { None }; MAX_FLOWS],
            next: 0,
        }
    }

    /// Adds the packet at `range` in `buffer`, which [`crate::packet::check`] must have accepted.
    pub fn push(&mut self, buffer: &[u8], range: Range<usize>, sink: &mut impl Sink) {
        let packet = buffer.get(range.clone()).unwrap_or_default();
        let Some(tcp) = Tcp::parse(packet) else {
            // The flow of a fragment is unknown. To keep the order, the segments of all flows are written first.
            if is_fragment(packet) {
                self.flush(buffer, sink);
            }
            return write_unchanged(packet, sink);
        };
        let slot = self.slot_of(packet, &tcp);
        let coalescable = is_coalescable(packet, &tcp);
        if let Some(slot) = slot {
            if coalescable && self.append(slot, packet, &range, &tcp) {
                if self.is_complete(slot) {
                    self.flush_one(slot, buffer, sink);
                }
                return;
            }
            self.flush_one(slot, buffer, sink);
        }
        if coalescable && tcp.flags & flags::PSH == 0 {
            let slot = slot.unwrap_or_else(|| self.free_slot(buffer, sink));
            self.start(slot, packet, range, tcp);
        } else {
            write_unchanged(packet, sink);
        }
    }

    /// Writes all aggregates.
    pub fn flush(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        for slot in 0..MAX_FLOWS {
            self.flush_one(slot, buffer, sink);
        }
    }

    fn slot_of(&self, packet: &[u8], tcp: &Tcp) -> Option<usize> {
        let same = |aggregate: &Option<Aggregate>| {
            aggregate
                .as_ref()
                .is_some_and(|aggregate| aggregate.same_flow(packet, tcp))
        };
        self.aggregates.iter().position(same)
    }

    fn free_slot(&mut self, buffer: &[u8], sink: &mut impl Sink) -> usize {
        if let Some(free) = self.aggregates.iter().position(Option::is_none) {
            return free;
        }
        let slot = self.next;
        self.next = (self.next + 1) % MAX_FLOWS;
        self.flush_one(slot, buffer, sink);
        slot
    }

    fn start(&mut self, slot: usize, packet: &[u8], range: Range<usize>, tcp: Tcp) {
        if let Some(aggregate) = self.aggregates.get_mut(slot) {
            *aggregate = Aggregate::new(packet, range, tcp);
        }
    }

    fn append(&mut self, slot: usize, packet: &[u8], range: &Range<usize>, tcp: &Tcp) -> bool {
        match self.aggregates.get_mut(slot) {
            Some(Some(aggregate)) => aggregate.append(packet, range, tcp),
            _ => false,
        }
    }

    fn is_complete(&self, slot: usize) -> bool {
        matches!(self.aggregates.get(slot), Some(Some(aggregate)) if aggregate.is_complete())
    }

    fn flush_one(&mut self, slot: usize, buffer: &[u8], sink: &mut impl Sink) {
        if let Some(mut aggregate) = self.aggregates.get_mut(slot).and_then(Option::take) {
            aggregate.write(buffer, sink);
        }
    }
}

fn write_unchanged(packet: &[u8], sink: &mut impl Sink) {
    let vnet_hdr = VirtioNetHdr::default().to_bytes();
    sink.write(&[IoSlice::new(&vnet_hdr), IoSlice::new(packet)], 1);
}

/// Whether a segment can be part of an aggregate: it has data, no flags other than ACK, PSH and ECE, and valid checksums. The kernel
/// does not verify the checksums of a coalesced packet.
fn is_coalescable(packet: &[u8], tcp: &Tcp) -> bool {
    let allowed = flags::ACK | flags::PSH | flags::ECE;
    let (start, end) = (tcp.header.start, tcp.header.end);
    packet.len() > end
        && tcp.flags & flags::ACK != 0
        && tcp.flags & !allowed == 0
        && end <= MAX_HEADERS
        && (!tcp.v4
            || packet
                .get(..start)
                .is_some_and(|header| is_valid(sum(header))))
        && packet.get(start..).is_some_and(|segment| {
            is_valid(sum(segment) + pseudo_header_sum(packet, tcp, segment.len()))
        })
}

/// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a TCP segment of some length.
fn pseudo_header_sum(packet: &[u8], tcp: &Tcp, length: usize) -> u64 {
    let addresses = if tcp.v4 { 12..20 } else { 8..40 };
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    sum(packet.get(addresses).unwrap_or_default()) + be(u16::from(crate::packet::TCP)) + be(length)
}

impl Aggregate {
    fn new(packet: &[u8], range: Range<usize>, tcp: Tcp) -> Option<Self> {
        let mut headers = [0; MAX_HEADERS];
        let end = tcp.header.end;
        headers.get_mut(..end)?.copy_from_slice(packet.get(..end)?);
        let size = packet.len() - end;
        let mut payloads = [const { 0..0 }; MAX_SEGMENTS];
        *payloads.first_mut()? = range.start + end..range.end;
        Some(Self {
            headers,
            tcp,
            payloads,
            count: 1,
            size,
            payload: size,
            first: range,
        })
    }

    /// Whether `packet` has these addresses and ports.
    fn same_flow(&self, packet: &[u8], tcp: &Tcp) -> bool {
        let addresses = if tcp.v4 { 12..20 } else { 8..40 };
        let (own_start, start) = (self.tcp.header.start, tcp.header.start);
        self.tcp.v4 == tcp.v4
            && self.headers.get(own_start..own_start + 4) == packet.get(start..start + 4)
            && self.headers.get(addresses.clone()) == packet.get(addresses)
    }

    /// Adds a segment of the same flow, if segmentation of the aggregate restores the segment. Returns whether it was added.
    fn append(&mut self, packet: &[u8], range: &Range<usize>, tcp: &Tcp) -> bool {
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
        let Some(payload_range) = self.payloads.get_mut(self.count).filter(|_| follows) else {
            return false;
        };
        *payload_range = range.start + tcp.header.end..range.end;
        self.count += 1;
        self.payload += more;
        if tcp.flags & flags::PSH != 0 {
            self.tcp.flags |= flags::PSH;
        }
        true
    }

    /// Whether the IP header is the same, except for lengths and checksum. The caller has compared the addresses. The identification
    /// of IPv4 must be consecutive.
    fn same_ip(&self, packet: &[u8]) -> bool {
        let same = |range: Range<usize>| self.headers.get(range.clone()) == packet.get(range);
        if !self.tcp.v4 {
            // Version, traffic class, flow label; next header, hop limit.
            return same(0..4) && same(6..8);
        }
        let id = be16(&self.headers, 4)
            .map(|id| id.wrapping_add(u16::try_from(self.count).unwrap_or_default()));
        // Version, header length, type of service; flags, fragment offset, TTL, protocol; options.
        same(0..2) && same(6..10) && same(20..self.tcp.header.start) && be16(packet, 4) == id
    }

    /// Whether the TCP header is the same, except for sequence number, flags and checksum. The caller has compared the ports.
    fn same_tcp(&self, packet: &[u8]) -> bool {
        let start = self.tcp.header.start;
        let same = |range: Range<usize>| {
            let range = start + range.start..start + range.end;
            self.headers.get(range.clone()) == packet.get(range)
        };
        // Acknowledgement number, data offset and reserved bits; window; urgent pointer and options.
        same(8..13) && same(14..16) && same(18..self.tcp.header.len())
    }

    /// Whether no segment can follow: the last segment was shorter or had PSH, or the aggregate is full.
    fn is_complete(&self) -> bool {
        self.payload < self.size * self.count
            || self.tcp.flags & flags::PSH != 0
            || self.count == MAX_SEGMENTS
    }

    fn write(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        if self.count == 1 {
            return write_unchanged(buffer.get(self.first.clone()).unwrap_or_default(), sink);
        }
        let vnet_hdr = self.finish_headers().to_bytes();
        let mut frame = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
        let headers = self.headers.get(..self.tcp.header.end).unwrap_or_default();
        let payloads = self.payloads.iter().take(self.count);
        let payloads =
            payloads.map(|payload_range| buffer.get(payload_range.clone()).unwrap_or_default());
        for (slice, part) in frame
            .iter_mut()
            .zip([&vnet_hdr[..], headers].into_iter().chain(payloads))
        {
            *slice = IoSlice::new(part);
        }
        sink.write(frame.get(..self.count + 2).unwrap_or_default(), self.count);
    }

    /// Changes the headers of the first segment to those of the coalesced packet. The checksum is partial: the kernel completes it if
    /// needed.
    fn finish_headers(&mut self) -> VirtioNetHdr {
        let (start, end) = (self.tcp.header.start, self.tcp.header.end);
        let total = end + self.payload;
        let partial = fold(pseudo_header_sum(&self.headers, &self.tcp, total - start));
        let to_u16 = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let (ip, tcp) = self.headers.split_at_mut(start);
        if self.tcp.v4 {
            put(ip, 2, to_u16(total).to_be_bytes());
            write_ipv4_checksum(ip);
        } else {
            put(ip, 4, to_u16(total - 40).to_be_bytes());
        }
        put(tcp, 13, [self.tcp.flags]);
        put(tcp, 16, partial.to_ne_bytes());
        VirtioNetHdr {
            flags: NEEDS_CSUM,
            gso_type: if self.tcp.v4 { GSO_TCPV4 } else { GSO_TCPV6 },
            hdr_len: to_u16(end),
            gso_size: to_u16(self.size),
            csum_start: to_u16(start),
            csum_offset: 16,
        }
    }
}

#[cfg(test)]
mod tests;
