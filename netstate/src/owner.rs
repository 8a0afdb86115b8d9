//! The owner of a kernel object, from the object alone: the programs store no list of their objects, which a restart could
//! lose.
//!
//! The name of a link and the protocol of a route are the mark of the owner. Ports, addresses, neighbours and forwarding
//! entries have no mark: their owner is that of their link. All other objects are foreign and never changed.

use netweft_common::link_names;

use crate::model::{AddressKey, FdbKey, LinkName, Neighbour, NeighbourKey, Route};

/// Route protocol (`rtm_protocol`) of the node agent.
pub const PROTOCOL_AGENT: u8 = 78;
/// Route protocol (`rtm_protocol`) of the CNI plugin.
pub const PROTOCOL_PLUGIN: u8 = 79;
/// Metric of the routes of agent and plugin. It is explicit, because the default is 0 in IPv4 and 1024 in IPv6.
pub const METRIC: u32 = 20;

/// Whether a link of this name belongs to a program of netweft.
#[must_use]
pub fn is_netweft_link(name: &LinkName) -> bool {
    Owner::agent().owns_link(name) || Owner::plugin().owns_link(name)
}

/// A program of netweft that owns kernel objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(Program);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Agent,
    Plugin,
}

impl Owner {
    /// The node agent: links `nw-*` with all addresses, permanent neighbours and forwarding entries on them, and routes
    /// of [`PROTOCOL_AGENT`].
    #[must_use]
    pub const fn agent() -> Self {
        Self(Program::Agent)
    }

    /// The CNI plugin: links `nw` + 11 lowercase hexadecimal digits, their attachments to bridges, the permanent neighbours
    /// on them, and routes of [`PROTOCOL_PLUGIN`]. The host's end of a pod link has no address of netweft.
    #[must_use]
    pub const fn plugin() -> Self {
        Self(Program::Plugin)
    }

    /// The protocol of this owner's routes.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self.0 {
            Program::Agent => PROTOCOL_AGENT,
            Program::Plugin => PROTOCOL_PLUGIN,
        }
    }

    /// Whether this owner has links of this name.
    #[must_use]
    pub fn owns_link(&self, name: &LinkName) -> bool {
        match self.0 {
            Program::Agent => name.as_str().starts_with(link_names::AGENT_PREFIX),
            Program::Plugin => link_names::is_of_pod(name.as_str()),
        }
    }

    /// Whether this owner determines the bridge of this link.
    #[must_use]
    pub fn owns_port(&self, link: &LinkName) -> bool {
        self.owns_link(link)
    }

    /// Whether this owner has the address with this key.
    #[must_use]
    pub fn owns_address(&self, key: &AddressKey) -> bool {
        self.0 == Program::Agent && self.owns_link(&key.link)
    }

    /// Whether this owner has this route.
    #[must_use]
    pub fn owns_route(&self, route: &Route) -> bool {
        route.protocol == self.protocol()
    }

    /// Whether this owner has this neighbour. Neighbours that are not permanent belong to the kernel, on all links.
    #[must_use]
    pub fn owns_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) -> bool {
        neighbour.permanent && self.owns_link(&key.link)
    }

    /// Whether this owner has the forwarding entry with this key.
    #[must_use]
    pub fn owns_fdb(&self, key: &FdbKey) -> bool {
        self.0 == Program::Agent && self.owns_link(&key.link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owns(owner: Owner, name: &str) -> bool {
        owner.owns_link(&name.parse().unwrap())
    }

    #[test]
    fn agent_and_plugin_link_names_are_disjoint() {
        for name in ["nw-vx4096", "nw-br0", "nw0123456789a", "nw-123456789a"] {
            assert!(
                !(owns(Owner::agent(), name) && owns(Owner::plugin(), name)),
                "{name}"
            );
        }
        assert!(owns(Owner::agent(), "nw-vx4096"));
        assert!(owns(Owner::plugin(), "nw0123456789a"));
    }

    #[test]
    fn foreign_link_names_have_no_owner() {
        for name in [
            "eth0",
            "nwfoo",
            "nw0123456789A",
            "nw0123456789",
            "nw0123456789ab",
            "cali0123456789a",
        ] {
            assert!(
                !owns(Owner::agent(), name) && !owns(Owner::plugin(), name),
                "{name}"
            );
        }
    }

    #[test]
    fn resolved_neighbours_are_owned_by_kernel() {
        let key = NeighbourKey {
            link: "nw-vx4096".parse().unwrap(),
            ip: "10.0.0.1".parse().unwrap(),
        };
        assert!(!Owner::agent().owns_neighbour(
            &key,
            &Neighbour {
                mac: None,
                permanent: false
            }
        ));
        assert!(Owner::agent().owns_neighbour(
            &key,
            &Neighbour {
                mac: None,
                permanent: true
            }
        ));
    }
}
