//! Packets for tests, and the verification of packets. This module uses no code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::checksum::tests::reference_sum;
use crate::packet::flags;
use crate::virtio_net_hdr::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VirtioNetHdr};

/// The fields of a packet. `size` is the payload of each segment in bytes.
#[derive(Clone, Debug)]
pub struct Packet {
    pub udp: bool,
    pub from: IpAddr,
    pub to: IpAddr,
    pub ports: [u16; 2],
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub ip_options: Vec<u8>,
    pub traffic_class: u8,
    pub hop_limit: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub payload: Vec<u8>,
    pub size: usize,
}

impl Packet {
    pub fn tcp_v4(payload: usize, size: usize) -> Self {
        Self {
            udp: false,
            from: Ipv4Addr::new(10, 244, 0, 2).into(),
            to: Ipv4Addr::new(10, 244, 1, 2).into(),
            ports: [40000, 80],
            seq: 1000,
            ack: 2000,
            flags: flags::ACK,
            window: 500,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ip_options: Vec::new(),
            traffic_class: 0,
            hop_limit: 63,
            id: 7,
            dont_fragment: true,
            payload: (0..payload).map(|at| (at * 31 % 251) as u8).collect(),
            size,
        }
    }

    pub fn tcp_v6(payload: usize, size: usize) -> Self {
        Self {
            from: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(),
            to: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 2).into(),
            ..Self::tcp_v4(payload, size)
        }
    }

    /// The transport header without a checksum, and `payload`.
    fn transport(&self, offset: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .ports
            .iter()
            .flat_map(|port| port.to_be_bytes())
            .collect();
        if self.udp {
            bytes.extend((8 + payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.seq.wrapping_add(offset as u32).to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([((20 + self.options.len()) as u8) << 2, flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.options);
        }
        bytes.extend(payload);
        bytes
    }

    /// The IP header, and a transport packet.
    fn ip(&self, index: usize, transport: &[u8]) -> Vec<u8> {
        let protocol = if self.udp { 17 } else { 6 };
        let mut bytes = Vec::new();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + self.ip_options.len();
                bytes.extend([0x40 | (header / 4) as u8, self.traffic_class]);
                bytes.extend(((header + transport.len()) as u16).to_be_bytes());
                bytes.extend(self.id.wrapping_add(index as u16).to_be_bytes());
                bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
                bytes.extend([self.hop_limit, protocol, 0, 0]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend(&self.ip_options);
                let check = !reference_sum(&bytes);
                bytes[10..12].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend([
                    0x60 | self.traffic_class >> 4,
                    self.traffic_class << 4,
                    0,
                    9,
                ]);
                bytes.extend((transport.len() as u16).to_be_bytes());
                bytes.extend([protocol, self.hop_limit]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
            }
            _ => panic!("the addresses are of two families"),
        }
        bytes.extend(transport);
        bytes
    }

    fn pseudo_header(&self, transport: usize) -> Vec<u8> {
        pseudo_header(self.from, self.to, if self.udp { 17 } else { 6 }, transport)
    }

    /// The packet without segmentation, with a complete checksum.
    pub fn with_checksum(&self) -> Vec<u8> {
        self.segment(0, 0, self.flags, &self.payload)
    }

    /// A segment with a complete checksum.
    fn segment(&self, index: usize, offset: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut transport = self.transport(offset, flags, payload);
        let mut summed = self.pseudo_header(transport.len());
        summed.extend(&transport);
        let at = self.check_at();
        let check = match !reference_sum(&summed) {
            0 => 0xffff,
            check => check,
        };
        transport[at..at + 2].copy_from_slice(&check.to_be_bytes());
        self.ip(index, &transport)
    }

    const fn check_at(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    /// The GSO packet with a partial checksum, as the kernel passes it to the reader of a TUN link.
    pub fn unsegmented(&self) -> (VirtioNetHdr, Vec<u8>) {
        let mut transport = self.transport(0, self.flags, &self.payload);
        let partial = reference_sum(&self.pseudo_header(transport.len()));
        let at = self.check_at();
        transport[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let bytes = self.ip(0, &transport);
        let vnet_hdr = VirtioNetHdr {
            flags: NEEDS_CSUM,
            gso_type: match (self.udp, self.from) {
                (true, _) => GSO_UDP_L4,
                (false, IpAddr::V4(_)) => GSO_TCPV4,
                (false, IpAddr::V6(_)) => GSO_TCPV6,
            },
            hdr_len: 0,
            gso_size: self.size as u16,
            csum_start: (bytes.len() - transport.len()) as u16,
            csum_offset: at as u16,
        };
        (vnet_hdr, bytes)
    }
}

/// The reference implementation of segmentation.
pub trait Segmented {
    fn segments(&self) -> Vec<Vec<u8>>;
}

impl Segmented for Packet {
    fn segments(&self) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = self.payload.chunks(self.size).collect();
        let mut segments = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut flags = self.flags;
            if index > 0 {
                flags &= !flags::CWR;
            }
            if index + 1 < chunks.len() {
                flags &= !(flags::FIN | flags::PSH);
            }
            segments.push(self.segment(index, index * self.size, flags, chunk));
        }
        segments
    }
}

fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, transport: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((transport as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// Panics unless every checksum and length of a packet is valid.
pub fn verify(packet: &[u8]) {
    let (start, protocol, from, to) = if packet[0] >> 4 == 4 {
        let start = usize::from(packet[0] & 0xf) * 4;
        assert_eq!(
            reference_sum(&packet[..start]),
            0xffff,
            "the checksum of the IPv4 header"
        );
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            packet.len()
        );
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (start, packet[9], address(12), address(16))
    } else {
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
            packet.len()
        );
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (40, packet[6], address(8), address(24))
    };
    let transport = &packet[start..];
    let mut summed = pseudo_header(from, to, protocol, transport.len());
    summed.extend(transport);
    assert_eq!(
        reference_sum(&summed),
        0xffff,
        "the checksum of the transport header"
    );
}

prop_compose! {
    /// TCP and UDP packets of both families.
    pub fn packets()(
        (udp, v4) in any::<(bool, bool)>(),
        (size, payload) in (1usize..1500).prop_flat_map(|size| (Just(size), 1..(size * 40).min(60000))),
        (seq, ack, ports, window) in any::<(u32, u32, [u16; 2], u16)>(),
        (traffic_class, hop_limit, id, dont_fragment) in any::<(u8, u8, u16, bool)>(),
        kind in 0..4u8,
        options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        ip_options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        (push, seed) in any::<(bool, u8)>(),
    ) -> Packet {
        let base = if v4 { Packet::tcp_v4(payload, size) } else { Packet::tcp_v6(payload, size) };
        let more = [0, flags::FIN, flags::ECE, flags::CWR][usize::from(kind)];
        Packet {
            udp, ports, seq, ack, window, traffic_class, hop_limit, id, dont_fragment,
            flags: flags::ACK | more | if push { flags::PSH } else { 0 },
            options: options.concat(),
            ip_options: if v4 { ip_options.concat() } else { Vec::new() },
            payload: base.payload.iter().map(|byte| byte ^ seed).collect(),
            ..base
        }
    }
}
