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
use crate::vnet::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Vnet};

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
    let vnet = Vnet::default().to_bytes();
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
    fn finish_headers(&mut self) -> Vnet {
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
        Vnet {
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::check;
    use crate::segment::Cut;
    use crate::testing::{self, Packet, Segmented, verify};

    #[derive(Default)]
    struct Frames(Vec<(Vec<u8>, usize)>);

    impl Sink for Frames {
        fn write(&mut self, frame: &[IoSlice<'_>], packets: usize) {
            let bytes = frame.iter().flat_map(|slice| slice.to_vec()).collect();
            self.0.push((bytes, packets));
        }
    }

    /// What leaves when these packets come in one receive call, with how many packets each holds.
    fn join(packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>, usize)> {
        let (mut buffer, mut places) = (Vec::new(), Vec::new());
        for packet in packets {
            assert_eq!(check(packet, MAX_PACKET), Ok(()));
            places.push(buffer.len()..buffer.len() + packet.len());
            buffer.extend(packet);
        }
        let (mut coalescer, mut frames) = (Coalescer::new(), Frames::default());
        for place in places {
            coalescer.push(&buffer, place, &mut frames);
        }
        coalescer.flush(&buffer, &mut frames);
        let split = |(mut frame, packets): (Vec<u8>, usize)| {
            let (vnet, packet) = Vnet::split(&mut frame).unwrap();
            (vnet, packet.to_vec(), packets)
        };
        frames.0.into_iter().map(split).collect()
    }

    /// Cuts what left again.
    fn cut(joined: &[(Vnet, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for (vnet, packet, _) in joined {
            let Some(cut) = Cut::of(vnet, packet).unwrap() else {
                packets.push(packet.clone());
                continue;
            };
            for index in 0..cut.count() {
                let mut segment = vec![0; cut.headers()];
                cut.write_header(packet, index, &mut segment);
                segment.extend(&packet[cut.payload(index)]);
                packets.push(segment);
            }
        }
        packets
    }

    fn can_be_one(packet: &Packet) -> bool {
        !packet.udp
            && packet.flags & !(flags::ACK | flags::PSH | flags::ECE) == 0
            && packet.segments().len() > 1
            && packet.segments().len() <= PIECES
    }

    proptest! {
        #[test]
        fn what_was_cut_becomes_one_again(packet in testing::packets()) {
            let joined = join(&packet.segments());
            prop_assert_eq!(cut(&joined), packet.segments());
            if can_be_one(&packet) {
                let (vnet, bytes) = packet.uncut();
                let vnet = Vnet { hdr_len: joined[0].0.hdr_len, ..vnet };
                prop_assert_eq!(joined, vec![(vnet, bytes, packet.segments().len())]);
            }
        }

        /// Two flows that are mixed, with lost, doubled and exchanged segments.
        #[test]
        fn nothing_is_lost_changed_or_put_in_another_order(
            (a, b) in (testing::packets(), testing::packets()),
            order in prop::collection::vec((any::<bool>(), 0usize..40), 0..80),
        ) {
            let flows = [a.segments(), b.segments()];
            let pick = |(flow, index): (bool, usize)| {
                let flow = &flows[usize::from(flow)];
                flow[index % flow.len()].clone()
            };
            let sent: Vec<Vec<u8>> = order.into_iter().map(pick).collect();
            let received = cut(&join(&sent));
            for flow in &flows {
                let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    packets.iter().filter(|packet| flow.contains(packet)).cloned().collect()
                };
                prop_assert_eq!(of_flow(&received), of_flow(&sent));
            }
            prop_assert_eq!(received.len(), sent.len());
        }

        /// Whatever bit is different in one segment, all come out as they went in; in their order, unless it is another
        /// flow's now.
        #[test]
        fn a_segment_that_differs_is_not_swallowed(packet in testing::packets(), which: usize, bit: usize) {
            let mut segments = packet.segments();
            let which = which % segments.len();
            let bit = bit % (segments[which].len().min(120) * 8);
            segments[which][bit / 8] ^= 1 << (bit % 8);
            if check(&segments[which], MAX_PACKET).is_ok() {
                let mut received = cut(&join(&segments));
                let at = received.iter().position(|packet| *packet == segments[which]);
                let at = at.expect("it is there, as it is");
                let other = received.remove(at);
                segments.remove(which);
                prop_assert_eq!(&received, &segments);
                let flow = |packet: &[u8]| Tcp::of(packet).map(|tcp| {
                    let addresses = if tcp.v4 { 12..20 } else { 8..40 };
                    (packet[tcp.header.start..tcp.header.start + 4].to_vec(), packet[addresses].to_vec())
                });
                if segments.first().is_some_and(|first| flow(first) == flow(&other)) {
                    prop_assert_eq!(at, which);
                }
            }
        }

        #[test]
        fn rubbish_passes_as_it_is(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..80), 0..20)) {
            let fixed = packets.into_iter().map(|mut packet| {
                let length = packet.len() as u16;
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                packet[6..10].copy_from_slice(&[0, 0, 9, 6]);
                packet
            });
            let packets: Vec<Vec<u8>> = fixed.collect();
            prop_assert_eq!(cut(&join(&packets)), packets);
        }
    }

    /// Segments that follow each other but for one thing, with right checksums.
    #[test]
    fn only_what_agrees_in_everything_is_put_together() {
        type Change = fn(&mut Packet);
        let changes: [Change; 11] = [
            |packet| packet.ack += 1,
            |packet| packet.window += 1,
            |packet| packet.options[5] ^= 1,
            |packet| packet.flags |= flags::ECE,
            |packet| packet.flags |= flags::FIN,
            |packet| packet.class ^= 3,
            |packet| packet.hops -= 1,
            |packet| packet.seq += 1,
            |packet| packet.ports[0] += 1,
            |packet| packet.payload.push(0),
            |packet| packet.payload.clear(),
        ];
        let only_v4: [Change; 3] = [
            |packet| packet.id += 1,
            |packet| packet.dont_fragment = false,
            |packet| packet.ip_options = vec![1; 4],
        ];
        let changes = || changes.iter().chain(&only_v4);
        for first in [Packet::tcp_v4(100, 200), Packet::tcp_v6(100, 200)] {
            let next = Packet {
                seq: first.seq + 100,
                id: first.id + 1,
                ..first.clone()
            };
            let both = |next: &Packet| [first.whole(), next.whole()];
            assert_eq!(join(&both(&next)).len(), 1, "nothing is different");
            let count = if first.from.is_ipv4() { 14 } else { 11 };
            for (number, change) in changes().take(count).enumerate() {
                let mut next = next.clone();
                change(&mut next);
                let joined = join(&both(&next));
                assert_eq!(joined.len(), 2, "change {number}: {next:?}");
                assert_eq!(cut(&joined), both(&next));
            }
        }
    }

    #[test]
    fn a_packet_of_the_greatest_length_is_made_and_no_longer_one() {
        let packet = Packet {
            options: Vec::new(),
            ..Packet::tcp_v4(70_000, 1400)
        };
        let segments: Vec<Vec<u8>> = {
            // Longer than a packet can be, therefore made of two.
            let first = Packet {
                payload: packet.payload[..1400 * 46].to_vec(),
                ..packet.clone()
            };
            let rest = Packet {
                payload: packet.payload[1400 * 46..].to_vec(),
                seq: packet.seq + 1400 * 46,
                id: packet.id + 46,
                ..packet
            };
            [first.segments(), rest.segments()].concat()
        };
        let joined = join(&segments);
        assert!(joined.iter().all(|(_, bytes, _)| bytes.len() <= MAX_PACKET));
        assert_eq!(joined[0].2, 46);
        assert_eq!(cut(&joined), segments);
        segments.iter().for_each(|segment| verify(segment));
    }

    #[test]
    fn many_flows_take_turns() {
        let packet = |port| Packet {
            ports: [port, 80],
            ..Packet::tcp_v6(300, 100)
        };
        let flows: Vec<Vec<Vec<u8>>> = (0..20).map(|port| packet(port).segments()).collect();
        let mixed: Vec<Vec<u8>> = (0..3)
            .flat_map(|index| flows.iter().map(move |flow| flow[index].clone()))
            .collect();
        let mut received = cut(&join(&mixed));
        assert_eq!(received.len(), mixed.len());
        let (mut mixed, by) = (mixed, |packet: &Vec<u8>| packet.clone());
        received.sort_by_key(by);
        mixed.sort_by_key(by);
        assert_eq!(received, mixed);
    }
}
