//! A thing in the kernel as far as a notice tells it apart.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{LinkName, Mac};
use crate::op::Op;

/// What was touched. `Display` names it in the words of `ip(8)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectRef {
    /// A link, or what it is a port of.
    Link(LinkName),
    /// An address with its prefix length, on whatever link.
    Address(IpNet),
    /// A route by its destination, in whatever table.
    Route(IpNet),
    /// A neighbour by its address, on whatever link.
    Neighbour(IpAddr),
    /// A forwarding entry, on whatever link.
    Fdb(Mac),
    /// The nft table of a name, of whatever family, with all that is in it.
    Table(String),
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Address(net) => write!(f, "address {net}"),
            Self::Route(dst) => write!(f, "route {dst}"),
            Self::Neighbour(ip) => write!(f, "neighbour {ip}"),
            Self::Fdb(mac) => write!(f, "fdb entry {mac}"),
            Self::Table(name) => write!(f, "nft table {name}"),
        }
    }
}

impl Op {
    /// What the operation is about.
    #[must_use]
    pub fn object(&self) -> ObjectRef {
        match self {
            Self::LinkAdd { name, .. }
            | Self::LinkRecreate { name, .. }
            | Self::LinkChange { name, .. }
            | Self::LinkDelete { name } => ObjectRef::Link(name.clone()),
            Self::PortReplace { link, .. } | Self::PortDelete { link } => {
                ObjectRef::Link(link.clone())
            }
            Self::AddressAdd { key, .. }
            | Self::AddressReplace { key, .. }
            | Self::AddressDelete { key } => ObjectRef::Address(key.net),
            Self::RouteAdd { key, .. }
            | Self::RouteReplace { key, .. }
            | Self::RouteDelete { key, .. } => ObjectRef::Route(key.dst),
            Self::NeighbourReplace { key, .. } | Self::NeighbourDelete { key } => {
                ObjectRef::Neighbour(key.ip)
            }
            Self::FdbReplace { key, .. } | Self::FdbDelete { key, .. } => ObjectRef::Fdb(key.mac),
        }
    }
}
