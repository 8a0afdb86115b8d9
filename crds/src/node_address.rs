//! Selectors of node addresses: those of users in a NetworkMode, and those that the operator passes to the agents.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ip_family::IpFamily;
use crate::{cel, schema};

/// Maximum number of addresses that an agent reports.
pub const MAX_FOUND: usize = 16;

/// Selector of the node address: one for all families, or one for each family. A family without a selector uses the Node's
/// `InternalIP`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.from), has(self.cidr), has(self.interface), has(self.reaches)].filter(given, given).size() == (has(self.ipv4) || has(self.ipv6) ? 0 : 1)").message("spec.nodeAddress takes exactly one of from, cidr, interface and reaches, for example {interface: eth1}, or instead ipv4 and ipv6 with one of these each, for example {ipv4: {interface: eth1}, ipv6: {from: internal-ip}}"))]
#[x_kube(validation = Rule::new("!has(self.ipv4) || !has(self.ipv4.cidr) || !isCIDR(self.ipv4.cidr) || cidr(self.ipv4.cidr).ip().family() == 4").message("spec.nodeAddress.ipv4.cidr must be an IPv4 range, for example 10.0.0.0/8"))]
#[x_kube(validation = Rule::new("!has(self.ipv6) || !has(self.ipv6.cidr) || !isCIDR(self.ipv6.cidr) || cidr(self.ipv6.cidr).ip().family() == 6").message("spec.nodeAddress.ipv6.cidr must be an IPv6 range, for example fd00::/16"))]
#[x_kube(validation = Rule::new("!has(self.ipv4) || !has(self.ipv4.reaches) || !isIP(self.ipv4.reaches) || ip(self.ipv4.reaches).family() == 4").message("spec.nodeAddress.ipv4.reaches must be an IPv4 address, for example 10.1.0.1"))]
#[x_kube(validation = Rule::new("!has(self.ipv6) || !has(self.ipv6.reaches) || !isIP(self.ipv6.reaches) || ip(self.ipv6.reaches).family() == 6").message("spec.nodeAddress.ipv6.reaches must be an IPv6 address, for example 2001:db8::1"))]
pub struct NodeAddressSource {
    /// internal-ip: the address of type InternalIP in the status of the Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeAddressType>,
    /// Range that contains the node address, on any link. The other IP family uses the InternalIP of the Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_cidr")]
    #[x_kube(validation = cel::cidr("spec.nodeAddress.cidr", "10.0.0.0/8"))]
    pub cidr: Option<IpNet>,
    /// Name of the link with the node address; * matches any characters and ? one character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = cel::link_pattern("spec.nodeAddress.interface"))]
    pub interface: Option<String>,
    /// Destination address: the node address is the source address that the node's kernel selects for this destination (`ip route get`). The
    /// other IP family uses the InternalIP of the Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = cel::host("spec.nodeAddress.reaches"))]
    #[x_kube(validation = cel::global("spec.nodeAddress.reaches"))]
    pub reaches: Option<IpAddr>,
    /// Selector of the IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NodeAddressSelector>,
    /// Selector of the IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NodeAddressSelector>,
}

/// Selector of the node address of one family; exactly one member is set.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.from), has(self.cidr), has(self.interface), has(self.reaches)].filter(given, given).size() == 1").message("spec.nodeAddress.ipv4 and spec.nodeAddress.ipv6 each take exactly one of from, cidr, interface and reaches, for example {interface: eth1}"))]
pub struct NodeAddressSelector {
    /// internal-ip: the address of type InternalIP in the status of the Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeAddressType>,
    /// Range that contains the node address, on any link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_cidr")]
    #[x_kube(validation = cel::cidr("cidr of spec.nodeAddress", "10.0.0.0/8"))]
    pub cidr: Option<IpNet>,
    /// Name of the link with the node address; * matches any characters and ? one character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = cel::link_pattern("interface of spec.nodeAddress"))]
    pub interface: Option<String>,
    /// Destination address: the node address is the source address that the node's kernel selects for this destination (`ip route get`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    #[x_kube(validation = cel::host("reaches of spec.nodeAddress"))]
    #[x_kube(validation = cel::global("reaches of spec.nodeAddress"))]
    pub reaches: Option<IpAddr>,
}

impl Default for NodeAddressSource {
    fn default() -> Self {
        Self {
            from: Some(NodeAddressType::InternalIp),
            cidr: None,
            interface: None,
            reaches: None,
            ipv4: None,
            ipv6: None,
        }
    }
}

/// Types of addresses in the status of a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeAddressType {
    /// `status.addresses` of type `InternalIP`.
    InternalIp,
}

/// Selectors that only the node itself can resolve. A family without a selector uses the Node's `InternalIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressSelectors {
    /// Selector of the IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<AddressSelector>,
    /// Selector of the IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AddressSelector>,
}

impl AddressSelectors {
    /// The selector of a family's addresses.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<&AddressSelector> {
        match family {
            IpFamily::Ipv4 => self.ipv4.as_ref(),
            IpFamily::Ipv6 => self.ipv6.as_ref(),
        }
    }

    /// The family that has a selector, if only one has.
    #[must_use]
    pub fn only_family(&self) -> Option<IpFamily> {
        match (&self.ipv4, &self.ipv6) {
            (Some(_), None) => Some(IpFamily::Ipv4),
            (None, Some(_)) => Some(IpFamily::Ipv6),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// Whether the selectors can match an address whose link and destination are not known.
    #[must_use]
    pub fn may_match(&self, address: IpAddr) -> bool {
        let selector = self.of(IpFamily::of(address));
        let range = selector.and_then(|selector| selector.cidr);
        range.is_none_or(|range| range.contains(&address))
    }
}

/// A selector of addresses on a node; exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressSelector {
    /// Range that contains the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_cidr")]
    pub cidr: Option<IpNet>,
    /// Pattern of the name of the link (see [`matches_link`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub interface: Option<String>,
    /// Destination address for which the kernel selects the address as source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub reaches: Option<IpAddr>,
}

impl AddressSelector {
    /// Whether the selector matches an address that an agent has found.
    #[must_use]
    pub fn matches(&self, found: &FoundAddress) -> bool {
        let Self {
            cidr,
            interface,
            reaches,
        } = self;
        cidr.is_none_or(|range| range.contains(&found.address))
            && interface
                .as_ref()
                .is_none_or(|pattern| matches_link(pattern, &found.interface))
            && (reaches.is_none() || *reaches == found.reaches)
    }
}

impl fmt::Display for AddressSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cidr) = self.cidr {
            write!(f, "{{cidr: {cidr}}}")
        } else if let Some(interface) = &self.interface {
            write!(f, "{{interface: {interface}}}")
        } else if let Some(reaches) = self.reaches {
            write!(f, "{{reaches: {reaches}}}")
        } else {
            f.write_str("{}")
        }
    }
}

/// An address that an agent has found on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct FoundAddress {
    /// The address.
    #[schemars(schema_with = "schema::ip")]
    pub address: IpAddr,
    /// Name of the link with the address.
    #[schemars(length(min = 1, max = 15))]
    pub interface: String,
    /// Destination address for which the kernel selects the address as source, if a selector requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub reaches: Option<IpAddr>,
}

/// Whether other nodes can send to an address: unicast, and neither loopback, link-local nor unspecified.
#[must_use]
pub fn is_routable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

/// Whether the name of a link matches a pattern: `*` matches any characters, `?` matches one.
#[must_use]
pub fn matches_link(pattern: &str, name: &str) -> bool {
    let (Some(first), rest) = split_first(pattern) else {
        return name.is_empty();
    };
    match (first, split_first(name)) {
        ('*', (Some(_), shorter)) => matches_link(rest, name) || matches_link(pattern, shorter),
        ('*', (None, _)) => matches_link(rest, name),
        (_, (None, _)) => false,
        (first, (Some(other), shorter)) => {
            (first == '?' || first == other) && matches_link(rest, shorter)
        }
    }
}

fn split_first(text: &str) -> (Option<char>, &str) {
    let mut characters = text.chars();
    (characters.next(), characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_patterns_match_like_shell_globs() {
        for (pattern, name, matches) in [
            ("eth1", "eth1", true),
            ("eth1", "eth10", false),
            ("eth10", "eth1", false),
            ("ens*", "ens7", true),
            ("ens*", "ens", true),
            ("ens*", "eth0", false),
            ("e*s?f0", "enp3s0f0", true),
            ("e*s?f0", "enp3s0f1", false),
            ("?", "", false),
            ("*", "anything", true),
            ("**.**", "eth0.100", true),
            ("eth?", "eth", false),
        ] {
            assert_eq!(matches_link(pattern, name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn selector_accepts_only_matching_found_address() {
        let found = FoundAddress {
            address: "192.0.2.7".parse().unwrap(),
            interface: "eth1".to_owned(),
            reaches: "198.51.100.1".parse().ok(),
        };
        let by = |cidr: &str, interface: &str, reaches: &str| AddressSelector {
            cidr: cidr.parse().ok(),
            interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
            reaches: reaches.parse().ok(),
        };
        for (selector, matches) in [
            (by("192.0.2.0/24", "", ""), true),
            (by("198.51.100.0/24", "", ""), false),
            (by("", "eth*", ""), true),
            (by("", "ens*", ""), false),
            (by("", "", "198.51.100.1"), true),
            (by("", "", "198.51.100.2"), false),
        ] {
            assert_eq!(selector.matches(&found), matches, "{selector}");
        }
    }
}
