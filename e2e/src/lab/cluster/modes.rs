//! The modes of a lab.

use std::fmt;

use clap::ValueEnum;
use serde_json::json;

use crate::lab::cluster::families::Families;

/// How packets travel between the lab's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LabMode {
    /// Overlay with vxlan.
    Vxlan,
    /// Overlay with ipip.
    Ipip,
    /// Overlay with udp.
    Udp,
    /// Host-gw.
    HostGw,
    /// Overlay with vxlan to other subnets only.
    VxlanCrossSubnet,
    /// Overlay with ipip to other subnets only.
    IpipCrossSubnet,
    /// Overlay with udp to other subnets only.
    UdpCrossSubnet,
    /// Underlay with a BGP mesh.
    Underlay,
}

impl fmt::Display for LabMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Udp => "udp",
            Self::HostGw => "host-gw",
            Self::VxlanCrossSubnet => "vxlan-cross-subnet",
            Self::IpipCrossSubnet => "ipip-cross-subnet",
            Self::UdpCrossSubnet => "udp-cross-subnet",
            Self::Underlay => "underlay",
        })
    }
}

impl LabMode {
    /// The spec of the NetworkMode.
    #[must_use]
    pub fn spec(self) -> serde_json::Value {
        let overlay = |encapsulation: &str| {
            let when = if self.crosses_subnets() {
                "cross-subnet"
            } else {
                "always"
            };
            json!({ "mode": "overlay",
                "overlay": { "encapsulation": encapsulation, "encapsulateWhen": when } })
        };
        match self {
            Self::Vxlan | Self::VxlanCrossSubnet => overlay("vxlan"),
            Self::Ipip | Self::IpipCrossSubnet => overlay("ipip"),
            Self::Udp | Self::UdpCrossSubnet => overlay("udp"),
            Self::HostGw => json!({ "mode": "host-gw" }),
            Self::Underlay => json!({ "mode": "underlay" }),
        }
    }

    /// Name of the tunnel link, if the mode has a tunnel.
    #[must_use]
    pub fn link(self) -> Option<&'static str> {
        match self {
            Self::Vxlan | Self::VxlanCrossSubnet => Some("nw-vx4096"),
            Self::Ipip | Self::IpipCrossSubnet => Some("nw-ipip"),
            Self::Udp | Self::UdpCrossSubnet => Some("nw-udp8285"),
            Self::HostGw | Self::Underlay => None,
        }
    }

    /// Whether nodes on the same link exchange packets without encapsulation.
    #[must_use]
    pub fn sends_unencapsulated_on_link(self) -> bool {
        matches!(self, Self::HostGw | Self::Underlay) || self.crosses_subnets()
    }

    /// Whether the lab has a second subnet behind a router.
    #[must_use]
    pub fn crosses_subnets(self) -> bool {
        match self {
            Self::VxlanCrossSubnet | Self::IpipCrossSubnet | Self::UdpCrossSubnet => true,
            Self::Vxlan | Self::Ipip | Self::Udp | Self::HostGw | Self::Underlay => false,
        }
    }

    /// Whether docs/kernel has a snapshot of this mode with bridge pods.
    #[must_use]
    pub fn has_bridge_snapshot(self) -> bool {
        self == Self::Vxlan
    }

    /// Whether every node needs the relay.
    #[must_use]
    pub fn needs_relay(self) -> bool {
        matches!(self, Self::Udp | Self::UdpCrossSubnet)
    }

    /// Whether every node needs BIRD.
    #[must_use]
    pub fn needs_bird(self) -> bool {
        self == Self::Underlay
    }

    /// Whether the mode supports these families.
    #[must_use]
    pub fn carries(self, families: Families) -> bool {
        let ipip = matches!(self, Self::Ipip | Self::IpipCrossSubnet);
        !ipip || families == Families::V4
    }
}
