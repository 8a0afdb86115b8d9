//! The kinds of labs.

use std::fmt;

use clap::ValueEnum;
use serde_json::json;

use crate::lab::cluster::families::Families;

/// How packets travel between the lab's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LabMode {
    /// overlay, encapsulation vxlan.
    Vxlan,
    /// overlay, encapsulation ipip.
    Ipip,
    /// overlay, encapsulation udp.
    Udp,
    /// host-gw.
    HostGw,
    /// overlay, encapsulation vxlan, to other subnets only.
    VxlanCrossSubnet,
    /// overlay, encapsulation ipip, to other subnets only.
    IpipCrossSubnet,
    /// overlay, encapsulation udp, to other subnets only.
    UdpCrossSubnet,
    /// underlay, by a mesh of BGP.
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
    /// `spec` of a NetworkMode.
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

    /// The tunnel's link, if there is a tunnel.
    #[must_use]
    pub fn link(self) -> Option<&'static str> {
        match self {
            Self::Vxlan | Self::VxlanCrossSubnet => Some("nw-vx4096"),
            Self::Ipip | Self::IpipCrossSubnet => Some("nw-ipip"),
            Self::Udp | Self::UdpCrossSubnet => Some("nw-udp8285"),
            Self::HostGw | Self::Underlay => None,
        }
    }

    /// Whether nodes on one link send to each other without encapsulation.
    #[must_use]
    pub fn is_plain_on_link(self) -> bool {
        matches!(self, Self::HostGw | Self::Underlay) || self.crosses_subnets()
    }

    /// Whether it is about nodes behind a router.
    #[must_use]
    pub fn crosses_subnets(self) -> bool {
        match self {
            Self::VxlanCrossSubnet | Self::IpipCrossSubnet | Self::UdpCrossSubnet => true,
            Self::Vxlan | Self::Ipip | Self::Udp | Self::HostGw | Self::Underlay => false,
        }
    }

    /// Whether it is the one that every kind of pod is tried with.
    #[must_use]
    pub fn is_first(self) -> bool {
        self == Self::Vxlan
    }

    /// Whether the relay has to run on every node.
    #[must_use]
    pub fn needs_relay(self) -> bool {
        matches!(self, Self::Udp | Self::UdpCrossSubnet)
    }

    /// Whether BIRD has to run on every node.
    #[must_use]
    pub fn needs_bird(self) -> bool {
        self == Self::Underlay
    }

    /// Whether it carries these families.
    #[must_use]
    pub fn carries(self, families: Families) -> bool {
        let ipip = matches!(self, Self::Ipip | Self::IpipCrossSubnet);
        !ipip || families == Families::V4
    }
}
