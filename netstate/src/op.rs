//! One change to the kernel's network state, as data.

use std::fmt;
use std::net::IpAddr;

use crate::model::{
    Address, AddressKey, FdbKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey, Port,
    Route, RouteKey, RouteKind,
};

/// One change. `Display` uses the terms of `ip(8)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create a link with its Ethernet address and MTU, and set it up if `link.up`.
    LinkAdd {
        /// Name of the link.
        name: LinkName,
        /// The link.
        link: Link,
    },
    /// Delete a link and create it again, because an attribute differs that cannot be changed on an existing link. The
    /// kernel deletes all objects on the link, so operations that restore them follow.
    LinkRecreate {
        /// Name of the link.
        name: LinkName,
        /// The desired link.
        link: Link,
        /// The difference, as a text for logs.
        reason: String,
    },
    /// Change an existing link. `None` keeps an attribute.
    LinkChange {
        /// Name of the link.
        name: LinkName,
        /// New MTU in bytes.
        mtu: Option<u32>,
        /// New Ethernet address. The kernel deletes all neighbours of the link with the old one (`neigh_changeaddr`).
        mac: Option<Mac>,
        /// New administrative state.
        up: Option<bool>,
    },
    /// Delete a link, if it exists.
    LinkDelete {
        /// Name of the link.
        name: LinkName,
    },
    /// Attach a link to a bridge, or change the attachment.
    PortReplace {
        /// The link.
        link: LinkName,
        /// The attachment.
        port: Port,
    },
    /// Detach a link from its bridge, if it has one.
    PortDelete {
        /// The link.
        link: LinkName,
    },
    /// Add an address, if it does not exist.
    AddressAdd {
        /// Link and address.
        key: AddressKey,
        /// Attributes of the address.
        address: Address,
    },
    /// Delete and add an address whose attributes differ: the kernel does not change them in place (`inet_rtm_newaddr`).
    AddressReplace {
        /// Link and address.
        key: AddressKey,
        /// Attributes of the address.
        address: Address,
    },
    /// Delete an address, if it exists.
    AddressDelete {
        /// Link and address.
        key: AddressKey,
    },
    /// Add a route with a new key. Fails with `EEXIST` if another program has added one meanwhile.
    RouteAdd {
        /// Key of the route.
        key: RouteKey,
        /// Target of the route.
        route: Route,
    },
    /// Replace the route with the same key atomically.
    RouteReplace {
        /// Key of the route.
        key: RouteKey,
        /// Target of the route.
        route: Route,
    },
    /// Delete the route with this key, protocol, kind, next hop and link, if it exists.
    RouteDelete {
        /// Key of the route.
        key: RouteKey,
        /// Target of the route.
        route: Route,
    },
    /// Add or replace a neighbour.
    NeighbourReplace {
        /// Link and address.
        key: NeighbourKey,
        /// Link-layer address of the neighbour.
        neighbour: Neighbour,
    },
    /// Delete a neighbour, if it exists.
    NeighbourDelete {
        /// Link and address.
        key: NeighbourKey,
    },
    /// Add or replace a forwarding entry.
    FdbReplace {
        /// Link and Ethernet address.
        key: FdbKey,
        /// The remote tunnel endpoint.
        remote: IpAddr,
    },
    /// Delete a forwarding entry, if it exists.
    FdbDelete {
        /// Link and Ethernet address.
        key: FdbKey,
        /// The remote tunnel endpoint.
        remote: IpAddr,
    },
}

impl Op {
    /// The link that this operation needs; `None` for blackholes.
    ///
    /// After a failed operation on a link, the other operations on the link can be skipped.
    #[must_use]
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Self::LinkAdd { name, .. }
            | Self::LinkRecreate { name, .. }
            | Self::LinkChange { name, .. }
            | Self::LinkDelete { name } => Some(name),
            Self::PortReplace { link, .. } | Self::PortDelete { link } => Some(link),
            Self::AddressAdd { key, .. }
            | Self::AddressReplace { key, .. }
            | Self::AddressDelete { key } => Some(&key.link),
            Self::RouteAdd { route, .. }
            | Self::RouteReplace { route, .. }
            | Self::RouteDelete { route, .. } => route.dev.as_ref(),
            Self::NeighbourReplace { key, .. } | Self::NeighbourDelete { key } => Some(&key.link),
            Self::FdbReplace { key, .. } | Self::FdbDelete { key, .. } => Some(&key.link),
        }
    }

    /// Whether this is a deletion, which has succeeded when the object is absent.
    #[must_use]
    pub const fn is_delete(&self) -> bool {
        matches!(
            self,
            Self::LinkDelete { .. }
                | Self::PortDelete { .. }
                | Self::AddressDelete { .. }
                | Self::RouteDelete { .. }
                | Self::NeighbourDelete { .. }
                | Self::FdbDelete { .. }
        )
    }

    /// The kind of operation, from a fixed set: usable as a metric label.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::LinkAdd { .. } => "link_add",
            Self::LinkRecreate { .. } => "link_recreate",
            Self::LinkChange { .. } => "link_change",
            Self::LinkDelete { .. } => "link_delete",
            Self::PortReplace { .. } => "port_replace",
            Self::PortDelete { .. } => "port_delete",
            Self::AddressAdd { .. } => "address_add",
            Self::AddressReplace { .. } => "address_replace",
            Self::AddressDelete { .. } => "address_delete",
            Self::RouteAdd { .. } => "route_add",
            Self::RouteReplace { .. } => "route_replace",
            Self::RouteDelete { .. } => "route_delete",
            Self::NeighbourReplace { .. } => "neighbour_replace",
            Self::NeighbourDelete { .. } => "neighbour_delete",
            Self::FdbReplace { .. } => "fdb_replace",
            Self::FdbDelete { .. } => "fdb_delete",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkAdd { name, link } => write!(f, "add link {name} {link}"),
            Self::LinkRecreate { name, reason, .. } => write!(f, "recreate link {name}: {reason}"),
            Self::LinkChange { name, mtu, mac, up } => {
                write!(f, "set link {name}")?;
                optional(f, "mtu", mtu.as_ref())?;
                optional(f, "mac", mac.as_ref())?;
                f.write_str(match up {
                    Some(true) => " up",
                    Some(false) => " down",
                    None => "",
                })
            }
            Self::LinkDelete { name } => write!(f, "delete link {name}"),
            Self::PortReplace { link, port } => write!(f, "set link {link}{port}"),
            Self::PortDelete { link } => write!(f, "set link {link} nomaster"),
            Self::AddressAdd { key, .. } => write!(f, "add address {} dev {}", key.net, key.link),
            Self::AddressReplace { key, .. } => {
                write!(f, "replace address {} dev {}", key.net, key.link)
            }
            Self::AddressDelete { key } => write!(f, "delete address {} dev {}", key.net, key.link),
            Self::RouteAdd { key, route } => write!(f, "add route {key}{route}"),
            Self::RouteReplace { key, route } => write!(f, "replace route {key}{route}"),
            Self::RouteDelete { key, route } => write!(f, "delete route {key}{route}"),
            Self::NeighbourReplace { key, neighbour } => {
                write!(f, "set neighbour {} dev {}", key.ip, key.link)?;
                optional(f, "mac", neighbour.mac.as_ref())
            }
            Self::NeighbourDelete { key } => {
                write!(f, "delete neighbour {} dev {}", key.ip, key.link)
            }
            Self::FdbReplace { key, remote } => {
                write!(f, "set fdb entry {} dst {remote} dev {}", key.mac, key.link)
            }
            Self::FdbDelete { key, remote } => write!(
                f,
                "delete fdb entry {} dst {remote} dev {}",
                key.mac, key.link
            ),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        optional(f, "mac", self.mac.as_ref())?;
        write!(
            f,
            " mtu {} {}",
            self.mtu,
            if self.up { "up" } else { "down" }
        )
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(vxlan) => {
                write!(f, "vxlan vni {} port {}", vxlan.vni, vxlan.port)?;
                optional(f, "local", vxlan.local.as_ref())
            }
            Self::Ipip { local } => write!(f, "ipip local {local}"),
            Self::Tun => f.write_str("tun"),
            Self::Veth => f.write_str("veth"),
            Self::Bridge => f.write_str("bridge"),
            Self::Other(kind) if kind.is_empty() => f.write_str("hardware"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// With a leading space, to follow the link's name.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hairpin = if self.hairpin { "on" } else { "off" };
        write!(f, " master {} hairpin {hairpin}", self.master)
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)
    }
}

/// The target as `ip route` prints it, with a leading space, to follow the destination.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str(" blackhole")?,
            RouteKind::Other(kind) => write!(f, " type {kind}")?,
        }
        optional(f, "via", self.via.as_ref())?;
        optional(f, "dev", self.dev.as_ref())?;
        if self.onlink {
            f.write_str(" onlink")?;
        }
        optional(f, "src", self.source.as_ref())?;
        optional(f, "mtu", self.mtu.as_ref())
    }
}

fn optional(
    f: &mut fmt::Formatter<'_>,
    keyword: &str,
    value: Option<&impl fmt::Display>,
) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {keyword} {value}"))
}
