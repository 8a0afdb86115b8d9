//! Send offloads that the kernel leaves to the reader of the link: checksums and segmentation.
//!
//! A packet with a GSO type becomes segments of equal size, with a possibly shorter last segment, as by `tcp_gso_segment` and
//! `__udp_gso_segment`. The payload is not copied: a segment is a new header and a range of the packet.

use std::ops::Range;

use crate::checksum::{be, finish, minus, sum};
use crate::packet::{be16, be32, flags, put};
use crate::virtio_net_hdr::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VirtioNetHdr,
};

/// Maximum length of the headers of a segment in bytes. IPv4 and TCP have at most 120 bytes, and IPv6 extension headers are rare.
pub const MAX_HEADERS: usize = 256;

/// Offset of the checksum in the TCP header.
const TCP_CHECK: usize = 16;
/// Offset of the checksum in the UDP header.
const UDP_CHECK: usize = 6;

/// The `virtio_net_hdr` does not fit the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSegmentable;

/// The segmentation of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segmentation {
    v4: bool,
    udp: bool,
    /// Offset of the transport header.
    transport: usize,
    /// Length of all headers in bytes.
    headers: usize,
    /// Bytes of payload of each segment except the last.
    size: usize,
    /// Length of the packet in bytes.
    length: usize,
    /// The sum of the pseudo header without the length, which differs between segments.
    pseudo: u64,
}

impl Segmentation {
    /// The segmentation that `vnet_hdr` requests for the packet; `None` for a packet without GSO.
    ///
    /// # Errors
    /// The GSO type is unknown, or the header does not fit the packet.
    pub fn new(vnet_hdr: &VirtioNetHdr, packet: &[u8]) -> Result<Option<Self>, NotSegmentable> {
        let udp = match vnet_hdr.gso_type & !GSO_ECN {
            GSO_NONE => return Ok(None),
            GSO_TCPV4 | GSO_TCPV6 => false,
            GSO_UDP_L4 => true,
            _ => return Err(NotSegmentable),
        };
        Self::checked(vnet_hdr, packet, udp)
            .ok_or(NotSegmentable)
            .map(Some)
    }

    /// A GSO packet always has a partial checksum (`skb_segment` on `CHECKSUM_PARTIAL`). `csum_start` is therefore the offset of the
    /// transport header, also with extension headers.
    fn checked(vnet_hdr: &VirtioNetHdr, packet: &[u8], udp: bool) -> Option<Self> {
        let v4 = match packet.first()? >> 4 {
            4 => true,
            6 => false,
            _ => return None,
        };
        let transport = usize::from(vnet_hdr.csum_start);
        let transport_header = if udp {
            8
        } else {
            usize::from(packet.get(transport + 12)? >> 4) * 4
        };
        let check = if udp { UDP_CHECK } else { TCP_CHECK };
        let headers = transport + transport_header;
        let fits = vnet_hdr.flags & NEEDS_CSUM != 0
            && vnet_hdr.gso_size > 0
            && usize::from(vnet_hdr.csum_offset) == check
            && transport >= ip_header(packet, v4)?
            && (udp || transport_header >= 20)
            && headers <= MAX_HEADERS
            && headers < packet.len();
        let length = u16::try_from(packet.len().checked_sub(transport)?).ok()?;
        let field = packet.get(transport + check..)?.first_chunk()?;
        fits.then(|| Self {
            v4,
            udp,
            transport,
            headers,
            size: usize::from(vnet_hdr.gso_size),
            length: packet.len(),
            pseudo: u64::from(u16::from_ne_bytes(*field)) + minus(be(length)),
        })
    }

    /// Number of segments.
    pub const fn count(&self) -> usize {
        (self.length - self.headers).div_ceil(self.size)
    }

    /// Length of the headers of each segment in bytes.
    pub const fn headers(&self) -> usize {
        self.headers
    }

    /// Length of every segment except the last in bytes, with headers.
    pub const fn segment(&self) -> usize {
        self.headers + self.size
    }

    /// The range of the payload of a segment in the packet.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self.headers + index * self.size;
        start..(start + self.size).min(self.length)
    }

    /// Writes the headers of a segment to `out`, which has [`Segmentation::headers`] bytes.
    pub fn write_header(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let Some(original) = packet.get(..self.headers) else {
            return;
        };
        out.copy_from_slice(original);
        let payload = self.payload(index);
        let total = self.headers + payload.len();
        let transport_length = to_u16(total - self.transport);
        let (ip, transport) = out.split_at_mut(self.transport);
        if self.v4 {
            write_segment_ipv4(ip, to_u16(total), to_u16(index));
        } else {
            put(ip, 4, to_u16(total - 40).to_be_bytes());
        }
        let check = if self.udp {
            put(transport, 4, transport_length.to_be_bytes());
            UDP_CHECK
        } else {
            write_segment_tcp(
                transport,
                index * self.size,
                index == 0,
                index + 1 == self.count(),
            );
            TCP_CHECK
        };
        put(transport, check, [0, 0]);
        let payload = packet.get(payload).unwrap_or_default();
        let all = self.pseudo + be(transport_length) + sum(transport) + sum(payload);
        put(transport, check, finish(all));
    }
}

/// Length of the IP header in bytes, without IPv6 extension headers.
fn ip_header(packet: &[u8], v4: bool) -> Option<usize> {
    if !v4 {
        return Some(40);
    }
    let length = usize::from(packet.first()? & 0xf) * 4;
    (length >= 20).then_some(length)
}

/// The identification is consecutive, beginning with that of the packet (`inet_gso_segment`).
fn write_segment_ipv4(ip: &mut [u8], total: u16, index: u16) {
    let id = be16(ip, 4).unwrap_or_default().wrapping_add(index);
    put(ip, 2, total.to_be_bytes());
    put(ip, 4, id.to_be_bytes());
    write_ipv4_checksum(ip);
}

/// Sets the checksum of an IPv4 header.
pub fn write_ipv4_checksum(header: &mut [u8]) {
    put(header, 10, [0, 0]);
    let check = !crate::checksum::fold(sum(header));
    put(header, 10, check.to_ne_bytes());
}

/// Only the last segment has FIN and PSH, and only the first has CWR.
fn write_segment_tcp(tcp: &mut [u8], offset: usize, first: bool, last: bool) {
    let seq = be32(tcp, 4).unwrap_or_default();
    // A packet has at most 65535 bytes.
    let seq = seq.wrapping_add(u32::try_from(offset).unwrap_or_default());
    put(tcp, 4, seq.to_be_bytes());
    if let Some(found) = tcp.get_mut(13) {
        if !last {
            *found &= !(flags::FIN | flags::PSH);
        }
        if !first {
            *found &= !flags::CWR;
        }
    }
}

/// Converts lengths and numbers of segments. They fit into 16 bits, because the length of the packet does.
fn to_u16(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Completes the partial checksum of a packet that needs no segmentation.
///
/// # Errors
/// The header does not fit the packet.
pub fn complete_checksum(vnet_hdr: &VirtioNetHdr, packet: &mut [u8]) -> Result<(), NotSegmentable> {
    if vnet_hdr.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let summed = packet
        .get_mut(usize::from(vnet_hdr.csum_start)..)
        .ok_or(NotSegmentable)?;
    let check = usize::from(vnet_hdr.csum_offset);
    if check + 2 > summed.len() {
        return Err(NotSegmentable);
    }
    let all = sum(summed);
    put(summed, check, finish(all));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, Packet, Segmented};

    fn segments(packet: &Packet) -> Vec<Vec<u8>> {
        let (vnet_hdr, bytes) = packet.unsegmented();
        let segmentation = Segmentation::new(&vnet_hdr, &bytes).unwrap().unwrap();
        let segment = |index| {
            let mut out = vec![0; segmentation.headers()];
            segmentation.write_header(&bytes, index, &mut out);
            out.extend_from_slice(&bytes[segmentation.payload(index)]);
            out
        };
        (0..segmentation.count()).map(segment).collect()
    }

    proptest! {
        #[test]
        fn segmentation_matches_reference_segments(packet in testing::packets()) {
            let segments = segments(&packet);
            prop_assert_eq!(&segments, &packet.segments());
            for segment in &segments {
                testing::verify(segment);
            }
        }

        #[test]
        fn packet_without_gso_only_gets_its_checksum(packet in testing::packets()) {
            let (mut vnet_hdr, mut bytes) = packet.unsegmented();
            vnet_hdr.gso_type = GSO_NONE;
            prop_assert_eq!(Segmentation::new(&vnet_hdr, &bytes), Ok(None));
            complete_checksum(&vnet_hdr, &mut bytes).unwrap();
            testing::verify(&bytes);
        }

        #[test]
        fn segmentation_of_arbitrary_header_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            (flags, kind, size) in (0u8..2, 0u8..7, 0u16..80),
            (start, offset) in (0u16..210, prop::sample::select(vec![0u16, 6, 16, 200])),
        ) {
            let mut bytes = bytes;
            let vnet_hdr = VirtioNetHdr { flags, gso_type: kind, hdr_len: 0, gso_size: size, csum_start: start, csum_offset: offset };
            if let Ok(Some(segmentation)) = Segmentation::new(&vnet_hdr, &bytes) {
                let mut out = vec![0; segmentation.headers()];
                let mut end = segmentation.headers();
                for index in 0..segmentation.count() {
                    segmentation.write_header(&bytes, index, &mut out);
                    prop_assert_eq!(segmentation.payload(index).start, end);
                    end = segmentation.payload(index).end;
                }
                prop_assert_eq!(end, bytes.len());
            }
            let _ = complete_checksum(&vnet_hdr, &mut bytes);
        }
    }

    #[test]
    fn segmentation_sets_cwr_first_and_fin_psh_last() {
        let packet = Packet {
            flags: flags::ACK | flags::FIN | flags::PSH | flags::CWR,
            ..Packet::tcp_v4(250, 100)
        };
        let flags: Vec<u8> = segments(&packet)
            .iter()
            .map(|segment| segment[33])
            .collect();
        let ack = flags::ACK;
        assert_eq!(
            flags,
            [ack | flags::CWR, ack, ack | flags::FIN | flags::PSH]
        );
    }
}
