//! `struct virtio_net_hdr`, the header before every packet on a TUN link with `IFF_VNET_HDR`.
//!
//! The header describes the offloads of a packet: checksum and segmentation. Its numbers are in host byte order
//! (`tun_is_little_endian`).

/// Length of the header in bytes, the default of the kernel (`TUNSETVNETHDRSZ`).
pub const LEN: usize = 10;

/// The checksum is partial: it must be completed from `csum_start` on. The field has the sum of the pseudo header.
pub const NEEDS_CSUM: u8 = 1;
/// No segmentation.
pub const GSO_NONE: u8 = 0;
/// Segmentation of TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Segmentation of TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Segmentation of UDP of both families into datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// Flag of the TCP types: only the first segment has CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `VIRTIO_NET_HDR_F_…`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_…`.
    pub gso_type: u8,
    /// Length of all headers in bytes, a hint.
    pub hdr_len: u16,
    /// Bytes of payload of each segment.
    pub gso_size: u16,
    /// Offset of the first summed byte in the packet.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioNetHdr {
    /// Splits a frame from a link into header and packet; `None` if the frame is shorter than the header.
    pub fn split(frame: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (header, packet) = frame.split_first_chunk_mut::<LEN>()?;
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *header;
        let header = Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        };
        Some((header, packet))
    }

    /// The bytes of the header, as the link expects them.
    pub fn to_bytes(self) -> [u8; LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_header_reads_back_as_written() {
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: 2,
            hdr_len: 0x0304,
            gso_size: 0x0506,
            csum_start: 0x0708,
            csum_offset: 0x090a,
        };
        let mut frame = header.to_bytes().to_vec();
        frame.push(7);
        assert_eq!(
            VirtioNetHdr::split(&mut frame),
            Some((header, &mut [7][..]))
        );
        assert_eq!(VirtioNetHdr::split(&mut [0; LEN - 1]), None);
    }
}
