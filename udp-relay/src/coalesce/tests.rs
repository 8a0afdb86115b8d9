use proptest::prelude::*;

use super::*;
use crate::packet::check;
use crate::segment::Segmentation;
use crate::testing::{self, Packet, Segmented, verify};

#[derive(Default)]
struct Frames(Vec<(Vec<u8>, usize)>);

impl Sink for Frames {
    fn write(&mut self, frame: &[IoSlice<'_>], packets: usize) {
        let bytes = frame.iter().flat_map(|slice| slice.to_vec()).collect();
        self.0.push((bytes, packets));
    }
}

/// Coalesces packets of one receive call. The last field of the result is the number of packets in a frame.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(VirtioNetHdr, Vec<u8>, usize)> {
    let (mut buffer, mut ranges) = (Vec::new(), Vec::new());
    for packet in packets {
        assert_eq!(check(packet, MAX_PACKET), Ok(()));
        ranges.push(buffer.len()..buffer.len() + packet.len());
        buffer.extend(packet);
    }
    let (mut coalescer, mut frames) = (Coalescer::new(), Frames::default());
    for range in ranges {
        coalescer.push(&buffer, range, &mut frames);
    }
    coalescer.flush(&buffer, &mut frames);
    let split = |(mut frame, packets): (Vec<u8>, usize)| {
        let (vnet_hdr, packet) = VirtioNetHdr::split(&mut frame).unwrap();
        (vnet_hdr, packet.to_vec(), packets)
    };
    frames.0.into_iter().map(split).collect()
}

/// Segments of the coalesced packets.
fn segment_again(coalesced: &[(VirtioNetHdr, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (vnet_hdr, packet, _) in coalesced {
        let Some(segmentation) = Segmentation::new(vnet_hdr, packet).unwrap() else {
            packets.push(packet.clone());
            continue;
        };
        for index in 0..segmentation.count() {
            let mut segment = vec![0; segmentation.headers()];
            segmentation.write_header(packet, index, &mut segment);
            segment.extend(&packet[segmentation.payload(index)]);
            packets.push(segment);
        }
    }
    packets
}

fn is_coalescable_into_one(packet: &Packet) -> bool {
    !packet.udp
        && packet.flags & !(flags::ACK | flags::PSH | flags::ECE) == 0
        && packet.segments().len() > 1
        && packet.segments().len() <= MAX_SEGMENTS
}

proptest! {
    #[test]
    fn coalesced_segments_restore_original_packet(packet in testing::packets()) {
        let coalesced = coalesce(&packet.segments());
        prop_assert_eq!(segment_again(&coalesced), packet.segments());
        if is_coalescable_into_one(&packet) {
            let (vnet_hdr, bytes) = packet.unsegmented();
            let vnet_hdr = VirtioNetHdr { hdr_len: coalesced[0].0.hdr_len, ..vnet_hdr };
            prop_assert_eq!(coalesced, vec![(vnet_hdr, bytes, packet.segments().len())]);
        }
    }

    /// Two interleaved flows with lost, duplicate and reordered segments.
    #[test]
    fn coalescing_mixed_flows_keeps_content_and_order(
        (a, b) in (testing::packets(), testing::packets()),
        order in prop::collection::vec((any::<bool>(), 0usize..40), 0..80),
    ) {
        let flows = [a.segments(), b.segments()];
        let pick = |(flow, index): (bool, usize)| {
            let flow = &flows[usize::from(flow)];
            flow[index % flow.len()].clone()
        };
        let sent: Vec<Vec<u8>> = order.into_iter().map(pick).collect();
        let received = segment_again(&coalesce(&sent));
        for flow in &flows {
            let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                packets.iter().filter(|packet| flow.contains(packet)).cloned().collect()
            };
            prop_assert_eq!(of_flow(&received), of_flow(&sent));
        }
        prop_assert_eq!(received.len(), sent.len());
    }

    /// A flipped bit in one segment changes no packet. The order remains, unless the bit changes the flow.
    #[test]
    fn segment_with_flipped_bit_passes_unchanged(packet in testing::packets(), which: usize, bit: usize) {
        let mut segments = packet.segments();
        let which = which % segments.len();
        let bit = bit % (segments[which].len().min(120) * 8);
        segments[which][bit / 8] ^= 1 << (bit % 8);
        if check(&segments[which], MAX_PACKET).is_ok() {
            let mut received = segment_again(&coalesce(&segments));
            let at = received.iter().position(|packet| *packet == segments[which]);
            let at = at.expect("the changed segment is in the output");
            let other = received.remove(at);
            segments.remove(which);
            prop_assert_eq!(&received, &segments);
            let flow = |packet: &[u8]| Tcp::parse(packet).map(|tcp| {
                let addresses = if tcp.v4 { 12..20 } else { 8..40 };
                (packet[tcp.header.start..tcp.header.start + 4].to_vec(), packet[addresses].to_vec())
            });
            if segments.first().is_some_and(|first| flow(first) == flow(&other)) {
                prop_assert_eq!(at, which);
            }
        }
    }

    #[test]
    fn malformed_tcp_segments_pass_unchanged(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..80), 0..20)) {
        let fixed = packets.into_iter().map(|mut packet| {
            let length = packet.len() as u16;
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[6..10].copy_from_slice(&[0, 0, 9, 6]);
            packet
        });
        let packets: Vec<Vec<u8>> = fixed.collect();
        prop_assert_eq!(segment_again(&coalesce(&packets)), packets);
    }
}

/// Consecutive segments with one difference, and valid checksums.
#[test]
fn segments_with_different_headers_are_not_coalesced() {
    type Change = fn(&mut Packet);
    let changes: [Change; 11] = [
        |packet| packet.ack += 1,
        |packet| packet.window += 1,
        |packet| packet.options[5] ^= 1,
        |packet| packet.flags |= flags::ECE,
        |packet| packet.flags |= flags::FIN,
        |packet| packet.traffic_class ^= 3,
        |packet| packet.hop_limit -= 1,
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
        let both = |next: &Packet| [first.with_checksum(), next.with_checksum()];
        assert_eq!(coalesce(&both(&next)).len(), 1, "without a difference");
        let count = if first.from.is_ipv4() { 14 } else { 11 };
        for (number, change) in changes().take(count).enumerate() {
            let mut next = next.clone();
            change(&mut next);
            let coalesced = coalesce(&both(&next));
            assert_eq!(coalesced.len(), 2, "change {number}: {next:?}");
            assert_eq!(segment_again(&coalesced), both(&next));
        }
    }
}

#[test]
fn coalesced_packet_never_exceeds_maximum_length() {
    let packet = Packet {
        options: Vec::new(),
        ..Packet::tcp_v4(70_000, 1400)
    };
    let segments: Vec<Vec<u8>> = {
        // The payload is longer than that of one packet, therefore there are two.
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
    let coalesced = coalesce(&segments);
    assert!(
        coalesced
            .iter()
            .all(|(_, bytes, _)| bytes.len() <= MAX_PACKET)
    );
    assert_eq!(coalesced[0].2, 46);
    assert_eq!(segment_again(&coalesced), segments);
    segments.iter().for_each(|segment| verify(segment));
}

#[test]
fn many_interleaved_flows_lose_no_segment() {
    let packet = |port| Packet {
        ports: [port, 80],
        ..Packet::tcp_v6(300, 100)
    };
    let flows: Vec<Vec<Vec<u8>>> = (0..20).map(|port| packet(port).segments()).collect();
    let mixed: Vec<Vec<u8>> = (0..3)
        .flat_map(|index| flows.iter().map(move |flow| flow[index].clone()))
        .collect();
    let mut received = segment_again(&coalesce(&mixed));
    assert_eq!(received.len(), mixed.len());
    let (mut mixed, by) = (mixed, |packet: &Vec<u8>| packet.clone());
    received.sort_by_key(by);
    mixed.sort_by_key(by);
    assert_eq!(received, mixed);
}
