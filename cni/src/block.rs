//! The addresses of a block: the tunnel address of the node, and the addresses for pods.

use std::net::IpAddr;

use ipnet::IpNet;

/// The node's own address in a block: the one after the network address. It is the address of tunnel links and the
/// gateway of bridged pods. No pod gets it. The address depends only on the block, so every node computes the same one.
/// `None` for a block that is too small (IPv4 /31 and /32, IPv6 /128).
#[must_use]
pub fn tunnel_address(block: IpNet) -> Option<IpAddr> {
    let number = number(block.network()).checked_add(1)?;
    let address = address(number, block.addr().is_ipv4())?;
    (number < end(block)).then_some(address)
}

/// The addresses of a block that a pod can have.
pub fn usable(block: IpNet, reserved: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    candidates(block, reserved, None)
}

/// The usable addresses of a block, from the one after `last`, wrapping around.
///
/// The first address is not usable: tunnels use it as a next hop, and in IPv6 it is the subnet-router anycast address.
/// The second is the node's ([`tunnel_address`]). In IPv4 the last is not usable, because other systems treat it as a
/// broadcast address.
pub fn candidates(
    block: IpNet,
    reserved: &[IpNet],
    last: Option<IpAddr>,
) -> impl Iterator<Item = IpAddr> {
    let first = number(block.network()).saturating_add(2);
    let end = end(block);
    let start = last
        .filter(|last| block.contains(last))
        .map_or(first, |last| number(last) + 1)
        .clamp(first, end.max(first));
    let free = move |ip: &IpAddr| !reserved.iter().any(|net| net.contains(ip));
    (start..end)
        .chain(first..start.min(end))
        .filter_map(move |number| address(number, block.addr().is_ipv4()))
        .filter(free)
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, ipv4: bool) -> Option<IpAddr> {
    if ipv4 {
        let number = u32::try_from(number).ok()?;
        Some(IpAddr::V4(number.into()))
    } else {
        Some(IpAddr::V6(number.into()))
    }
}

/// The number after the last usable address of a block.
fn end(block: IpNet) -> u128 {
    number(block.broadcast()).saturating_add(u128::from(block.addr().is_ipv6()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_address_follows_network_address() {
        let of = |block: &str| tunnel_address(block.parse().unwrap()).map(|ip| ip.to_string());
        for (block, address) in [
            ("10.0.0.64/26", Some("10.0.0.65")),
            ("10.0.0.8/30", Some("10.0.0.9")),
            ("10.0.0.8/31", None),
            ("255.255.255.255/32", None),
            ("fd00::40/122", Some("fd00::41")),
            ("fd00::8/127", Some("fd00::9")),
            ("fd00::8/128", None),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", None),
        ] {
            assert_eq!(of(block).as_deref(), address, "{block}");
        }
    }
}
