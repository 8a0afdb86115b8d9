//! The packets of attacks, as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use ipnet::Ipv4Net;

/// Source port of every packet.
const SOURCE_PORT: u16 = 4444;
const TTL: u8 = 64;
/// What neighbor discovery requires (RFC 4861, section 6.1).
const HOP_LIMIT_ON_LINK: u8 = 255;

/// An IP packet with a UDP datagram.
///
/// # Errors
/// The addresses are of two families.
pub fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut packet = Vec::new();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
        _ => anyhow::bail!("{from} and {to} are of two families"),
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

/// A router advertisement for a whole hour, with a prefix for addresses (RFC 4861, section 4.2).
///
/// # Errors
/// None is known.
pub fn advertisement() -> anyhow::Result<Vec<u8>> {
    let router: Ipv6Addr = "fe80::bad".parse()?;
    let everybody: Ipv6Addr = "ff02::1".parse()?;
    let prefix: Ipv6Addr = "2001:db8:bad::".parse()?;
    // Hop limit 64, no flags, 3600 s; then the two timers, the router's Ethernet address, and a prefix on the link for an hour.
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
    let builder = PacketBuilder::ipv6(router.octets(), everybody.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(134, 0, [64, 0, high, low])
        .write(&mut packet, &body)?;
    Ok(packet)
}

/// A router solicitation of an invented host, which a router remembers (RFC 4861, section 6.2.6).
///
/// # Errors
/// None is known.
pub fn solicitation(number: u16) -> anyhow::Result<Vec<u8>> {
    let [high, low] = number.to_be_bytes();
    let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xbad, number);
    let routers: Ipv6Addr = "ff02::2".parse()?;
    let builder = PacketBuilder::ipv6(from.octets(), routers.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(133, 0, [0; 4])
        .write(&mut packet, &[1, 1, 0x02, 0, 0, 0, high, low])?;
    Ok(packet)
}

/// An IPv4 packet in two fragments, of which the second has no port. The packet has no options.
///
/// # Errors
/// The packet is too short to be cut.
pub fn fragments(packet: &[u8]) -> anyhow::Result<[Vec<u8>; 2]> {
    use anyhow::Context;
    const HEADER: usize = 20;
    const CUT: usize = 32;
    let (header, rest) = packet.split_at_checked(HEADER).context("an IPv4 packet")?;
    let (first, second) = rest.split_at_checked(CUT).context("a longer packet")?;
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
    let offset = u16::try_from(CUT / 8)?;
    Ok([fragment(0, true, first)?, fragment(offset, false, second)?])
}

/// The broadcast address of a node's network in the lab.
pub fn broadcast_like(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let net = Ipv4Net::new(address, 24).ok()?;
            Some(IpAddr::V4(net.broadcast()))
        }
        IpAddr::V6(_) => None,
    }
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The destination of a frame for everybody.
pub const EVERYBODY: Mac = [0xff; 6];

/// A frame.
pub fn frame(from: Mac, to: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// The type of frames with a packet.
pub fn ether_type(packet: &[u8]) -> u16 {
    match packet.first().map(|first| first >> 4) {
        Some(6) => 0x86dd,
        _ => 0x0800,
    }
}

/// An ARP reply that nobody asked for: `address` is at `mac` (RFC 826).
pub fn arp_reply(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 0x08, 0x00, 6, 4, 0, 2];
    let address = address.octets();
    let body = [&head[..], &mac, &address, &EVERYBODY, &address].concat();
    frame(mac, EVERYBODY, 0x0806, &body)
}

/// A neighbor advertisement that nobody asked for: `target` is at `mac` (RFC 4861, section 4.4). The sender is honest.
///
/// # Errors
/// None is known.
pub fn neighbor_advertisement(
    mac: Mac,
    sender: Ipv6Addr,
    target: Ipv6Addr,
) -> anyhow::Result<Vec<u8>> {
    const OVERRIDE: u8 = 0x20;
    let everybody: Ipv6Addr = "ff02::1".parse()?;
    let body = [&target.octets()[..], &[2, 1], &mac].concat();
    let builder = PacketBuilder::ipv6(sender.octets(), everybody.octets(), HOP_LIMIT_ON_LINK);
    let mut packet = Vec::new();
    builder
        .icmpv6_raw(136, 0, [OVERRIDE, 0, 0, 0])
        .write(&mut packet, &body)?;
    Ok(frame(mac, [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &packet))
}

/// An Ethernet address as `ip` prints it.
pub fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
