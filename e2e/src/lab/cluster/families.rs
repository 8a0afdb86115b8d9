//! IP families of a lab, and the pool of each.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The CIDR of the IPv4 pool.
pub const POOL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
/// The CIDR of the IPv6 pool.
pub const POOL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0),
    64,
));

/// IP families of nodes and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Families {
    /// IPv4 only.
    #[value(name = "4")]
    V4,
    /// IPv6 only.
    #[value(name = "6")]
    V6,
    /// Dual-stack nodes and pods.
    #[value(name = "46")]
    Both,
}

impl Families {
    /// Whether the lab has the family of this address.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
        }
    }

    /// The CIDRs of the pools.
    pub fn pools(self) -> impl Iterator<Item = IpNet> {
        let pools = [POOL_V4, POOL_V6].into_iter();
        pools.filter(move |pool| self.has(pool.addr()))
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
            Self::Both => "IPv4 and IPv6",
        })
    }
}
