//! The kernel's network state as plain, ordered data, with the keys of the kernel.
//!
//! The actual state (`Kernel::read`) and the desired state (the agent's `desired`) have the same type, so that they can be
//! compared. Links are referred to by name and not by index, because a recreated link has another index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::InvalidName;

/// Routing table `main` (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// The network state of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// Links by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Ports of bridges by link name.
    pub ports: BTreeMap<LinkName, Port>,
    /// Addresses by link and address with prefix length.
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Addresses with special properties. Only in an actual state.
    pub special_addresses: BTreeMap<AddressKey, SpecialAddress>,
    /// Routes of table `main`.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Neighbours by link and address.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Links with a carrier (`IFF_LOWER_UP`): a TUN link only while a program has it open. Only in an actual state.
    pub carriers: BTreeSet<LinkName>,
    /// Remote tunnel endpoints of the forwarding entries of VXLAN links, by link and MAC.
    pub fdb: BTreeMap<FdbKey, IpAddr>,
    /// Whether there are other routing rules than those of a new network namespace (`ip rule`), so that table `main` alone does
    /// not determine the link of a packet. Only in an actual state.
    pub policy_routing: bool,
}

/// How the kernel sends a packet to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedRoute {
    /// The link by which the packet leaves.
    pub link: LinkName,
    /// The source address that the kernel selects for a socket that is not bound to an address.
    pub source: Option<IpAddr>,
}

/// A link's name: 1 to 15 bytes without `/` or white space (`dev_valid_name` in net/core/dev.c).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let printable = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || !printable {
            return Err(InvalidName(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for LinkName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        name.parse()
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The IPv6 link-local address that the kernel derives from an Ethernet address (RFC 4291, appendix A; `addrconf_ifid_eui48`).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        let interface = [pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f)];
        let [first, second, third, fourth] = interface;
        Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, third, fourth)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let parsed: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok())
            .collect();
        let bytes = parsed.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| InvalidName(text.to_owned()))
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// One link. `kind` has the attributes that cannot be changed on an existing link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The driver and its parameters.
    pub kind: LinkKind,
    /// Ethernet address, if the link has one.
    pub mac: Option<Mac>,
    /// Size of the largest network-layer packet, in bytes.
    pub mtu: u32,
    /// Whether the link is administratively up (`IFF_UP`).
    pub up: bool,
}

/// The driver of a link, with the parameters that are fixed at creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel without flooding: learning off, no default destination (RFC 7348).
    Vxlan(Vxlan),
    /// IP in IP (RFC 2003) without a remote endpoint: the next hop of the route is the endpoint.
    Ipip {
        /// Outer source address.
        local: Ipv4Addr,
    },
    /// A TUN link, created by the program that reads from it.
    Tun,
    /// One end of a veth pair.
    Veth,
    /// An Ethernet bridge. A new one does not learn from frames to reserved group addresses.
    Bridge,
    /// Any other driver, by `IFLA_INFO_KIND`; empty for hardware.
    Other(String),
}

impl LinkKind {
    /// Whether packets leave by this link encapsulated.
    #[must_use]
    pub const fn is_tunnel(&self) -> bool {
        match self {
            Self::Vxlan(_) | Self::Ipip { .. } | Self::Tun => true,
            Self::Veth | Self::Bridge | Self::Other(_) => false,
        }
    }
}

/// The attachment of a link to a bridge (`IFLA_MASTER`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The bridge. For foreign links, it can be a bond or a VRF.
    pub master: LinkName,
    /// Whether the bridge sends a frame out of the port on which it arrived (`IFLA_BRPORT_MODE`). A pod that connects to a
    /// Service whose endpoint it is needs this.
    pub hairpin: bool,
}

/// Parameters of a VXLAN link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Whether the link learns remote endpoints from traffic; links of netweft do not.
    pub learning: bool,
}

/// The kernel's key of an address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressKey {
    /// The link that has the address.
    pub link: LinkName,
    /// The address and its prefix length.
    pub net: IpNet,
}

/// Attributes of an address beyond its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Whether the scope is `RT_SCOPE_LINK` instead of global.
    pub link_scope: bool,
}

/// Why an address is special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialAddress {
    /// IPv4: the link has another, primary address of the same subnet (`IFA_F_SECONDARY`).
    Secondary,
    /// IPv6: the address is temporary (RFC 8981), deprecated (RFC 4862), tentative, or failed duplicate address detection
    /// (`IFA_F_TEMPORARY`, `IFA_F_DEPRECATED`, `IFA_F_TENTATIVE`, `IFA_F_DADFAILED`).
    Unstable,
}

/// The kernel's key of a route (`fib_table_insert`: table, destination, TOS 0, priority).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table.
    pub table: u32,
    /// Destination, strictly masked.
    pub dst: IpNet,
    /// Metric (`RTA_PRIORITY`); unset is 0 in IPv4 and 1024 in IPv6.
    pub metric: u32,
}

/// The target of a route, and the mark of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What the kernel does with a packet.
    pub kind: RouteKind,
    /// The program that created the route (`rtm_protocol`).
    pub protocol: u8,
    /// Next hop; `None` for a destination on the link itself.
    pub via: Option<IpAddr>,
    /// Outgoing link; `None` for a blackhole.
    pub dev: Option<LinkName>,
    /// `RTNH_F_ONLINK`: the next hop is on the link, whatever the other routes are.
    pub onlink: bool,
    /// Preferred source address of locally generated packets.
    pub source: Option<IpAddr>,
    /// Route MTU (`RTAX_MTU`; locked in IPv6); `None`: that of the link.
    pub mtu: Option<u32>,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Forward (`RTN_UNICAST`).
    Unicast,
    /// Drop silently (`RTN_BLACKHOLE`).
    Blackhole,
    /// Any other type; never of netweft.
    Other(u8),
}

/// The kernel's key of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The link of the neighbour.
    pub link: LinkName,
    /// The address of the neighbour.
    pub ip: IpAddr,
}

/// A neighbour's link-layer address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Ethernet address; `None` while unresolved.
    pub mac: Option<Mac>,
    /// `NUD_PERMANENT`: configured, never resolved or aged.
    pub permanent: bool,
}

/// The kernel's key of a forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The VXLAN link.
    pub link: LinkName,
    /// Destination Ethernet address.
    pub mac: Mac,
}
