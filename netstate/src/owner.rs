//! What is ours: recognised from the object alone, with no memory, so that a restart changes nothing.
//!
//! Names of links and protocols of routes carry the owner. Ports, addresses, neighbours and forwarding entries have no mark
//! of their own: they belong to whoever owns the link they are on. Everything else is foreign and is never touched.

use netweft_common::link_names;

use crate::model::{AddressKey, FdbKey, LinkName, Neighbour, NeighbourKey, Route};

/// Route protocol (`rtm_protocol`) of what the node agent makes.
pub const PROTOCOL_AGENT: u8 = 78;
/// Route protocol (`rtm_protocol`) of what the CNI plugin makes.
pub const PROTOCOL_PLUGIN: u8 = 79;
/// Metric of the agent's and the plugin's routes, explicit because unset means 0 in IPv4 and 1024 in IPv6.
pub const METRIC: u32 = 20;

/// Whether a link of this name is any program's of ours.
#[must_use]
pub fn is_our_link(name: &LinkName) -> bool {
    Owner::agent().owns_link(name) || Owner::plugin().owns_link(name)
}

/// A program of ours and the kernel objects that are its own.
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

    /// The CNI plugin: links `nw` + 11 lower hex digits, what they are ports of, the permanent neighbours on them, and
    /// routes of [`PROTOCOL_PLUGIN`]. The host's end of a pod link never has an address, so addresses there are foreign.
    #[must_use]
    pub const fn plugin() -> Self {
        Self(Program::Plugin)
    }

    /// The mark on this owner's routes.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self.0 {
            Program::Agent => PROTOCOL_AGENT,
            Program::Plugin => PROTOCOL_PLUGIN,
        }
    }

    /// Whether a link of this name is ours.
    #[must_use]
    pub fn owns_link(&self, name: &LinkName) -> bool {
        match self.0 {
            Program::Agent => name.as_str().starts_with(link_names::AGENT_PREFIX),
            Program::Plugin => link_names::is_of_pod(name.as_str()),
        }
    }

    /// Whether it is ours to say of which bridge this link is a port.
    #[must_use]
    pub fn owns_port(&self, link: &LinkName) -> bool {
        self.owns_link(link)
    }

    /// Whether an address at this key is ours.
    #[must_use]
    pub fn owns_address(&self, key: &AddressKey) -> bool {
        self.0 == Program::Agent && self.owns_link(&key.link)
    }

    /// Whether this route is ours.
    #[must_use]
    pub fn owns_route(&self, route: &Route) -> bool {
        route.protocol == self.protocol()
    }

    /// Whether this neighbour is ours. Resolved (not permanent) ones are the kernel's, on our links too.
    #[must_use]
    pub fn owns_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) -> bool {
        neighbour.permanent && self.owns_link(&key.link)
    }

    /// Whether a forwarding entry at this key is ours.
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
