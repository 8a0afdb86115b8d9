//! Names that several programs use.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

/// API group of all kinds.
pub const GROUP: &str = "netweft.io";
/// Field manager of the operator's server-side apply.
pub const OPERATOR_FIELD_MANAGER: &str = "netweft-operator";
/// Field manager of the agents' server-side apply.
pub const AGENT_FIELD_MANAGER: &str = "netweft-agent";
/// Finalizer that keeps an `IPPool` until its last `NodeSubnet` is gone.
pub const POOL_FINALIZER: &str = "netweft.io/in-use";
/// The default of `IPPool.spec.networkMode`.
pub const DEFAULT_MODE: &str = "default";
/// The Secret of the release's namespace with the BGP passwords that agents need, by BGPPeer.
pub const PASSWORDS_SECRET: &str = "netweft-bgp-passwords";

/// Name of the `NodeSubnet` that owns `cidr`: the CIDR with `.`, `:` and `/` as `-`, IPv6 written in full.
///
/// The name makes a block unique: the API server refuses a second object with the same name.
#[must_use]
pub fn node_subnet_name(cidr: &IpNet) -> String {
    let mut name = String::new();
    match cidr.network() {
        IpAddr::V4(ip) => {
            for octet in ip.octets() {
                // Writing to a String cannot fail.
                let _ = write!(name, "{octet}-");
            }
        }
        IpAddr::V6(ip) => {
            for group in ip.segments() {
                let _ = write!(name, "{group:04x}-");
            }
        }
    }
    let _ = write!(name, "{}", cidr.prefix_len());
    name
}

/// The block that the `NodeSubnet` of this name owns: the inverse of [`node_subnet_name`].
#[must_use]
pub fn node_subnet_cidr(name: &str) -> Option<IpNet> {
    let parts: Vec<&str> = name.split('-').collect();
    let (prefix, address) = parts.split_last()?;
    let separator = if address.len() == 4 { "." } else { ":" };
    let cidr: IpNet = format!("{}/{prefix}", address.join(separator))
        .parse()
        .ok()?;
    (node_subnet_name(&cidr) == name).then_some(cidr)
}

/// Ethernet address of a node's tunnel endpoint: `02` (locally administered, unicast) and 40 bits of
/// SHA-256("netweft/vtep/" + node name). Every node computes the addresses of all others, so no object has them.
#[must_use]
pub fn vtep_mac(node: &str) -> [u8; 6] {
    mac(&format!("netweft/vtep/{node}"))
}

/// Ethernet address of a node's bridge, computed like [`vtep_mac`]. A bridge without an explicit address uses the lowest
/// address of its ports, which changes when ports are attached and detached.
#[must_use]
pub fn bridge_mac(node: &str) -> [u8; 6] {
    mac(&format!("netweft/bridge/{node}"))
}

/// BGP identifier of a node without an IPv4 address: from SHA-256("netweft/router-id/" + node name + "/" + attempt). It has the
/// form of a host address, 1.0.0.0 to 223.255.255.255: RFC 6286 requires only that it is not 0, but speakers that implement
/// RFC 4271 (section 6.2) refuse others.
#[must_use]
pub fn router_id(node: &str, attempt: u32) -> Ipv4Addr {
    let digest = Sha256::digest(format!("netweft/router-id/{node}/{attempt}").as_bytes());
    let mut id = [0; 4];
    for (to, from) in id.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    let [first, second, third, fourth] = id;
    Ipv4Addr::new(first % 223 + 1, second, third, fourth)
}

fn mac(text: &str) -> [u8; 6] {
    let digest = Sha256::digest(text.as_bytes());
    let mut mac = [2u8; 6];
    for (to, from) in mac.iter_mut().skip(1).zip(digest.iter()) {
        *to = *from;
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_names_spell_out_ipv4_and_ipv6_blocks() {
        assert_eq!(
            node_subnet_name(&"10.244.3.64/26".parse().unwrap()),
            "10-244-3-64-26"
        );
        assert_eq!(
            node_subnet_name(&"fd00:10::40/122".parse().unwrap()),
            "fd00-0010-0000-0000-0000-0000-0000-0040-122"
        );
    }

    #[test]
    fn subnet_names_parse_back_to_their_blocks() {
        for cidr in ["10.244.3.64/26", "fd00:10::40/122"] {
            let cidr: IpNet = cidr.parse().unwrap();
            assert_eq!(node_subnet_cidr(&node_subnet_name(&cidr)), Some(cidr));
        }
        for invalid in [
            "",
            "-",
            "10-244-3-26",
            "10-244-3-65-26",
            "10-244-3-064-26",
            "worker-1",
        ] {
            assert_eq!(node_subnet_cidr(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn router_ids_are_stable_and_valid_unicast() {
        let id = router_id("worker-1", 0);
        assert_eq!(id, router_id("worker-1", 0));
        assert_ne!(id, router_id("worker-1", 1));
        assert_ne!(id, router_id("worker-2", 0));
        for n in 0..1000 {
            let first = router_id("worker-1", n).octets()[0];
            assert!((1..=223).contains(&first), "{first}");
        }
    }

    #[test]
    fn tunnel_macs_are_stable_unicast_and_locally_administered() {
        let mac = vtep_mac("worker-1");
        assert_eq!(mac[0], 2);
        assert_eq!(mac, vtep_mac("worker-1"));
        assert_ne!(mac, vtep_mac("worker-2"));
        assert_ne!(mac, bridge_mac("worker-1"));
    }
}
