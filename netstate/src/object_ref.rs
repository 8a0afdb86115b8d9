//! A reference to a kernel object, as precise as notifications are.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{LinkName, Mac};
use crate::op::Op;

/// A kernel object. `Display` uses the terms of `ip(8)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectRef {
    /// A link, or its attachment to a bridge.
    Link(LinkName),
    /// An address with its prefix length, on any link.
    Address(IpNet),
    /// A route by its destination, in any table.
    Route(IpNet),
    /// A neighbour by its address, on any link.
    Neighbour(IpAddr),
    /// A forwarding entry, on any link.
    Fdb(Mac),
    /// An nft table by name, of any family, with its content.
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
    /// The object of the operation.
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
