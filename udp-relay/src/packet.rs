//! Parsing of the inner packets, limited to the fields that the relay needs.

use std::net::IpAddr;
use std::ops::Range;

use crate::counters::DropReason;

/// Protocol number of TCP.
pub const TCP: u8 = 6;

/// TCP's flags (RFC 9293, section 3.1).
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// The receiver should deliver the data to the application at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
    /// Congestion was experienced (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// The 16-bit number in network byte order at offset `at`.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// The 32-bit number in network byte order at offset `at`.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// Writes `new` at offset `at`. If `bytes` is too short, nothing is written.
pub fn put<const N: usize>(bytes: &mut [u8], at: usize, new: [u8; N]) {
    if let Some(old) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *old = new;
    }
}

/// Checks that `packet` is one complete IP packet, not longer than the MTU in bytes.
///
/// # Errors
/// The reason to drop it.
pub fn check(packet: &[u8], mtu: usize) -> Result<(), DropReason> {
    let first = packet.first().ok_or(DropReason::Empty)?;
    let stated_length = match first >> 4 {
        4 => {
            let header = usize::from(first & 0xf) * 4;
            if header < 20 {
                return Err(DropReason::Malformed);
            }
            if packet.len() < header {
                return Err(DropReason::Truncated);
            }
            be16(packet, 2).map(usize::from)
        }
        6 if packet.len() < 40 => return Err(DropReason::Truncated),
        6 => be16(packet, 4).map(|payload| usize::from(payload) + 40),
        _ => return Err(DropReason::NotIp),
    };
    match stated_length {
        Some(stated) if stated > packet.len() => Err(DropReason::Truncated),
        Some(stated) if stated < packet.len() => Err(DropReason::Malformed),
        _ if packet.len() > mtu => Err(DropReason::TooBig),
        _ => Ok(()),
    }
}

/// The destination address of a packet.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => {
            let bytes: &[u8; 4] = packet.get(16..20)?.first_chunk()?;
            Some(IpAddr::from(*bytes))
        }
        6 => {
            let bytes: &[u8; 16] = packet.get(24..40)?.first_chunk()?;
            Some(IpAddr::from(*bytes))
        }
        _ => None,
    }
}

/// The TCP header of a packet that is no fragment and has no IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Whether the packet is IPv4.
    pub v4: bool,
    /// The range of the TCP header in the packet. The IP header ends at its start.
    pub header: Range<usize>,
    /// The flags.
    pub flags: u8,
    /// The sequence number.
    pub seq: u32,
}

impl Tcp {
    /// Parses a packet that [`check`] has accepted; `None` for a fragment, another protocol, or an invalid TCP header.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let v4 = first >> 4 == 4;
        let (start, protocol) = if v4 {
            // The flag "more fragments", or a fragment offset.
            if be16(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            (usize::from(first & 0xf) * 4, *packet.get(9)?)
        } else {
            (40, *packet.get(6)?)
        };
        let length = usize::from(packet.get(start + 12)? >> 4) * 4;
        let header = start..start + length;
        (protocol == TCP && length >= 20 && header.end <= packet.len()).then_some(())?;
        Some(Self {
            v4,
            flags: *packet.get(start + 13)?,
            seq: be32(packet, start + 4)?,
            header,
        })
    }
}

/// Whether a packet is a fragment.
pub fn is_fragment(packet: &[u8]) -> bool {
    const V6_FRAGMENT: u8 = 44;
    match packet.first().map(|first| first >> 4) {
        Some(4) => be16(packet, 6).is_none_or(|field| field & 0x3fff != 0),
        _ => packet.get(6) == Some(&V6_FRAGMENT),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(total: u16, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x45;
        put(&mut packet, 2, total.to_be_bytes());
        packet
    }

    fn v6(payload: u16, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x60;
        put(&mut packet, 4, payload.to_be_bytes());
        packet
    }

    #[test]
    fn malformed_packets_map_to_drop_reasons() {
        for (packet, reason) in [
            (vec![], DropReason::Empty),
            (vec![0x75; 40], DropReason::NotIp),
            (vec![0x44; 40], DropReason::Malformed),
            (v4(20, 19), DropReason::Truncated),
            (vec![0x4f; 59], DropReason::Truncated),
            (v4(21, 20), DropReason::Truncated),
            (v4(20, 21), DropReason::Malformed),
            (v4(101, 101), DropReason::TooBig),
            (v6(0, 39), DropReason::Truncated),
            (v6(1, 40), DropReason::Truncated),
            (v6(0, 41), DropReason::Malformed),
            (v6(61, 101), DropReason::TooBig),
        ] {
            assert_eq!(check(&packet, 100), Err(reason), "{packet:x?}");
        }
        assert_eq!(check(&v4(100, 100), 100), Ok(()));
        assert_eq!(check(&v6(60, 100), 100), Ok(()));
    }

    #[test]
    fn ip_fragment_is_not_parsed_as_tcp() {
        let mut packet = v4(40, 40);
        packet[9] = TCP;
        packet[32] = 0x50;
        assert!(Tcp::parse(&packet).is_some());
        packet[6] = 0x40;
        assert!(Tcp::parse(&packet).is_some(), "not to be fragmented");
        packet[6] = 0x20;
        assert!(Tcp::parse(&packet).is_none());
        assert!(is_fragment(&packet));
    }

    proptest! {
        #[test]
        fn packet_parsing_of_arbitrary_bytes_never_panics(packet in prop::collection::vec(any::<u8>(), 0..120), version in 0u8..16) {
            let mut packet = packet;
            if let Some(first) = packet.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            let _ = (check(&packet, 100), destination(&packet), is_fragment(&packet));
            if let Some(tcp) = Tcp::parse(&packet) {
                prop_assert!(tcp.header.end <= packet.len() && tcp.header.len() >= 20);
            }
        }
    }
}
