//! Names of the links that netweft creates. The owner of a link follows from the name alone (`netstate::owner`).
//!
//! | name | link | owner |
//! |---|---|---|
//! | `nw0123456789a` | end of a pod's veth pair on the node | plugin |
//! | `nw-br0` | bridge of pods | agent |
//! | `nw-own` | has the tunnel addresses of a node without tunnel links | agent |
//! | `nw-vx4096`, `nw-v1000p2118` | VXLAN, by VNI; with another port than the default, by VNI and port in hexadecimal | agent |
//! | `nw-ipip` | IPIP | agent |
//! | `nw-udp8285` | TUN, by port | relay |
//! | `nwprobe0`, `nwprobe1` | veth pair of the firewall probe | agent |

/// The prefix of all links that carry packets of pods.
pub const PREFIX: &str = "nw";
/// The prefix of the links of the agent.
pub const AGENT_PREFIX: &str = "nw-";
/// The bridge of pods.
pub const BRIDGE: &str = "nw-br0";
/// The link of the node's own addresses.
pub const OWN_ADDRESSES: &str = "nw-own";
/// The IPIP link.
pub const IPIP: &str = "nw-ipip";
/// The prefix of the links of the relay, before the port.
pub const UDP_PREFIX: &str = "nw-udp";
/// The veth pair of the firewall probe. Neither [`is_of_pod`] nor [`AGENT_PREFIX`] matches the names, so no reconcile
/// changes the links.
pub const FIREWALL_PROBE: [&str; 2] = ["nwprobe0", "nwprobe1"];
/// The common prefix of both.
pub const FIREWALL_PROBE_PREFIX: &str = "nwprobe";

/// Hexadecimal digits in the name of a pod's link. With the prefix, the name has 13 of at most 15 bytes (`IFNAMSIZ`).
const POD_DIGITS: usize = 11;

/// The name of a pod's link: the prefix and the first 11 hexadecimal digits of a hash.
#[must_use]
pub fn of_pod(hash: &str) -> String {
    format!("{PREFIX}{hash:.POD_DIGITS$}")
}

/// Whether this is the name of a pod's link.
#[must_use]
pub fn is_of_pod(name: &str) -> bool {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let hash = name.strip_prefix(PREFIX);
    hash.is_some_and(|hash| hash.len() == POD_DIGITS && hash.bytes().all(lower_hex))
}

/// The name of a VXLAN link, at most 15 bytes. A `port` other than the default of netweft is part of the name, because a
/// node has a link for each port while the port of a NetworkMode changes.
#[must_use]
pub fn of_vxlan(vni: u32, port: Option<u16>) -> String {
    match port {
        None => format!("{AGENT_PREFIX}vx{vni}"),
        Some(port) => format!("{AGENT_PREFIX}v{vni:x}p{port:x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_link_names_fit_kernel_limit() {
        const VNI: u32 = (1 << 24) - 1;
        let vxlan = [of_vxlan(VNI, None), of_vxlan(VNI, Some(u16::MAX))];
        assert_eq!(vxlan, ["nw-vx16777215", "nw-vffffffpffff"]);
        let udp = format!("{UDP_PREFIX}{}", u16::MAX);
        for name in [&vxlan[0], &vxlan[1], &udp, &of_pod(&"a".repeat(64))] {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn pod_link_is_recognized_by_prefix_and_digits() {
        assert!(is_of_pod(&of_pod("0123456789abcdef")));
        for other in [
            "nwfoo",
            "nw0123456789A",
            "nw0123456789",
            "nw0123456789ab",
            BRIDGE,
        ] {
            assert!(!is_of_pod(other), "{other}");
        }
        assert!(!FIREWALL_PROBE.into_iter().any(is_of_pod));
    }
}
