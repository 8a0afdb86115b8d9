//! Completing what the kernel left undone in a packet from the link: its checksum, and cutting it into segments.
//!
//! A packet with a GSO type becomes segments of equal size and perhaps a shorter last one, as `tcp_gso_segment` and
//! `__udp_gso_segment` make them. The payload is not moved: a segment is a header, written here, and a range of the packet.

use std::ops::Range;

use crate::checksum::{be, finish, minus, sum};
use crate::packet::{be16, be32, flags, put};
use crate::virtio_net_hdr::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VirtioNetHdr,
};

/// Headers longer than this are not cut: IPv4 and TCP have 120 bytes at most, IPv6 extension headers are rare.
pub const MAX_HEADERS: usize = 256;

const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

/// What the header of a packet says cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSegmentable;

/// How a packet is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    v4: bool,
    udp: bool,
    /// Where the transport header begins.
    transport: usize,
    /// Length of all headers.
    headers: usize,
    /// Payload of each segment.
    size: usize,
    /// Length of the packet.
    length: usize,
    /// The transport checksum's field without the packet's length, which each segment puts its own in place of.
    pseudo: u64,
}

impl Cut {
    /// How the packet behind `vnet` is to be cut; nothing if it is to be sent as it is.
    ///
    /// # Errors
    /// The header does not fit the packet.
    pub fn of(vnet: &VirtioNetHdr, packet: &[u8]) -> Result<Option<Self>, NotSegmentable> {
        let udp = match vnet.gso_type & !GSO_ECN {
            GSO_NONE => return Ok(None),
            GSO_TCPV4 | GSO_TCPV6 => false,
            GSO_UDP_L4 => true,
            _ => return Err(NotSegmentable),
        };
        Self::checked(vnet, packet, udp)
            .ok_or(NotSegmentable)
            .map(Some)
    }

    /// The kernel cuts only what has a checksum to be completed (`skb_segment` on `CHECKSUM_PARTIAL`), so its header says
    /// where the transport header is, behind whatever extension headers.
    fn checked(vnet: &VirtioNetHdr, packet: &[u8], udp: bool) -> Option<Self> {
        let v4 = match packet.first()? >> 4 {
            4 => true,
            6 => false,
            _ => return None,
        };
        let transport = usize::from(vnet.csum_start);
        let own = if udp {
            8
        } else {
            usize::from(packet.get(transport + 12)? >> 4) * 4
        };
        let check = if udp { UDP_CHECK } else { TCP_CHECK };
        let headers = transport + own;
        let fits = vnet.flags & NEEDS_CSUM != 0
            && vnet.gso_size > 0
            && usize::from(vnet.csum_offset) == check
            && transport >= ip_header(packet, v4)?
            && (udp || own >= 20)
            && headers <= MAX_HEADERS
            && headers < packet.len();
        let length = u16::try_from(packet.len().checked_sub(transport)?).ok()?;
        let field = packet.get(transport + check..)?.first_chunk()?;
        fits.then(|| Self {
            v4,
            udp,
            transport,
            headers,
            size: usize::from(vnet.gso_size),
            length: packet.len(),
            pseudo: u64::from(u16::from_ne_bytes(*field)) + minus(be(length)),
        })
    }

    /// Number of segments.
    pub const fn count(&self) -> usize {
        (self.length - self.headers).div_ceil(self.size)
    }

    /// Length of each header.
    pub const fn headers(&self) -> usize {
        self.headers
    }

    /// Length of every segment but the last, headers included.
    pub const fn segment(&self) -> usize {
        self.headers + self.size
    }

    /// Where a segment's payload is in the packet.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self.headers + index * self.size;
        start..(start + self.size).min(self.length)
    }

    /// Writes a segment's header to `out`, which has [`Cut::headers`] bytes.
    pub fn write_header(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let Some(original) = packet.get(..self.headers) else {
            return;
        };
        out.copy_from_slice(original);
        let payload = self.payload(index);
        let total = self.headers + payload.len();
        let transport_length = short(total - self.transport);
        let (ip, transport) = out.split_at_mut(self.transport);
        if self.v4 {
            cut_v4(ip, short(total), short(index));
        } else {
            put(ip, 4, short(total - 40).to_be_bytes());
        }
        let check = if self.udp {
            put(transport, 4, transport_length.to_be_bytes());
            UDP_CHECK
        } else {
            cut_tcp(
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

/// Length of the IP header, without IPv6's extensions.
fn ip_header(packet: &[u8], v4: bool) -> Option<usize> {
    if !v4 {
        return Some(40);
    }
    let length = usize::from(packet.first()? & 0xf) * 4;
    (length >= 20).then_some(length)
}

/// Segments number themselves on from the packet's identification (`inet_gso_segment`).
fn cut_v4(ip: &mut [u8], total: u16, index: u16) {
    let id = be16(ip, 4).unwrap_or_default().wrapping_add(index);
    put(ip, 2, total.to_be_bytes());
    put(ip, 4, id.to_be_bytes());
    write_v4_checksum(ip);
}

/// Sets the checksum of an IPv4 header.
pub fn write_v4_checksum(header: &mut [u8]) {
    put(header, 10, [0, 0]);
    let check = !crate::checksum::fold(sum(header));
    put(header, 10, check.to_ne_bytes());
}

/// FIN and PSH are the last segment's, CWR the first's.
fn cut_tcp(tcp: &mut [u8], offset: usize, first: bool, last: bool) {
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

/// Lengths and numbers of segments, which all stem from a packet whose length fitted in 16 bits.
fn short(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Completes the checksum of a packet that is sent as it is.
///
/// # Errors
/// The header does not fit the packet.
pub fn complete(vnet: &VirtioNetHdr, packet: &mut [u8]) -> Result<(), NotSegmentable> {
    if vnet.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let summed = packet
        .get_mut(usize::from(vnet.csum_start)..)
        .ok_or(NotSegmentable)?;
    let check = usize::from(vnet.csum_offset);
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

    fn cut(packet: &Packet) -> Vec<Vec<u8>> {
        let (vnet, bytes) = packet.uncut();
        let cut = Cut::of(&vnet, &bytes).unwrap().unwrap();
        let segment = |index| {
            let mut out = vec![0; cut.headers()];
            cut.write_header(&bytes, index, &mut out);
            out.extend_from_slice(&bytes[cut.payload(index)]);
            out
        };
        (0..cut.count()).map(segment).collect()
    }

    proptest! {
        #[test]
        fn segmentation_matches_reference_segments(packet in testing::packets()) {
            let segments = cut(&packet);
            prop_assert_eq!(&segments, &packet.segments());
            for segment in &segments {
                testing::verify(segment);
            }
        }

        #[test]
        fn packet_without_gso_only_gets_its_checksum(packet in testing::packets()) {
            let (mut vnet, mut bytes) = packet.uncut();
            vnet.gso_type = GSO_NONE;
            prop_assert_eq!(Cut::of(&vnet, &bytes), Ok(None));
            complete(&vnet, &mut bytes).unwrap();
            testing::verify(&bytes);
        }

        #[test]
        fn segmentation_of_arbitrary_header_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            (flags, kind, size) in (0u8..2, 0u8..7, 0u16..80),
            (start, offset) in (0u16..210, prop::sample::select(vec![0u16, 6, 16, 200])),
        ) {
            let mut bytes = bytes;
            let vnet = VirtioNetHdr { flags, gso_type: kind, hdr_len: 0, gso_size: size, csum_start: start, csum_offset: offset };
            if let Ok(Some(cut)) = Cut::of(&vnet, &bytes) {
                let mut out = vec![0; cut.headers()];
                let mut end = cut.headers();
                for index in 0..cut.count() {
                    cut.write_header(&bytes, index, &mut out);
                    prop_assert_eq!(cut.payload(index).start, end);
                    end = cut.payload(index).end;
                }
                prop_assert_eq!(end, bytes.len());
            }
            let _ = complete(&vnet, &mut bytes);
        }
    }

    #[test]
    fn segmentation_sets_cwr_first_and_fin_psh_last() {
        let packet = Packet {
            flags: flags::ACK | flags::FIN | flags::PSH | flags::CWR,
            ..Packet::tcp_v4(250, 100)
        };
        let flags: Vec<u8> = cut(&packet).iter().map(|segment| segment[33]).collect();
        let ack = flags::ACK;
        assert_eq!(
            flags,
            [ack | flags::CWR, ack, ack | flags::FIN | flags::PSH]
        );
    }
}
