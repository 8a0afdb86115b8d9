//! [`Mode`]: a NetworkMode whose values have been checked, one mode at a time.

use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    self as crds, EncapsulateWhen, Encapsulation, IpFamily, NetworkModeSpec, NodeAddressSource,
    NodeAddressWord, NodeMode, Overlay, Rollout, Way,
};

use crate::bgp::underlay::{self, Underlay};

/// A way between nodes that can be programmed.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    /// Its name.
    pub name: String,
    /// How packets are sent and received.
    pub way: Way,
    /// Whether peers on the same link are sent to without encapsulation.
    pub encapsulate_when: EncapsulateWhen,
    /// Bytes of the largest packet of a pod; 0: measured.
    pub mtu: u32,
    /// Which of a node's addresses the others send to.
    pub address: AddressSource,
    /// How nodes speak BGP, in a mode whose way it is.
    pub underlay: Option<Underlay>,
    /// How a change to this mode is carried out.
    pub rollout: Rollout,
}

/// Which of a node's addresses the others send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// The first `InternalIP` of each family.
    InternalIp,
    /// The first address in this range.
    Cidr(IpNet),
}

impl AddressSource {
    /// Whether it can choose this address, if a Node states it.
    #[must_use]
    pub fn takes(self, address: IpAddr) -> bool {
        match self {
            Self::InternalIp => true,
            Self::Cidr(range) => range.contains(&address),
        }
    }
}

impl Mode {
    /// Whether packets to pods of this family can travel this way.
    #[must_use]
    pub fn carries(&self, family: IpFamily) -> bool {
        family == IpFamily::Ipv4 || self.way != Way::Ipip
    }

    /// Family of the node address that packets to pods of family `inner` are sent to: a next hop has their own family, the
    /// far end of a tunnel that of all the mode's tunnels.
    #[must_use]
    pub fn node_family(&self, inner: IpFamily, outer: IpFamily) -> IpFamily {
        if self.has_tunnels() { outer } else { inner }
    }

    /// Whether packets travel, or can travel, in packets between nodes' addresses.
    #[must_use]
    pub fn has_tunnels(&self) -> bool {
        match self.way {
            Way::Direct | Way::Bgp => false,
            Way::Vxlan(_) | Way::Ipip | Way::Udp(_) => true,
        }
    }

    /// What a node has to do for this mode; for which pools is added by the caller.
    #[must_use]
    pub fn node_mode(&self, outer_family: IpFamily) -> NodeMode {
        NodeMode {
            name: self.name.clone(),
            pools: Vec::new(),
            standby: Vec::new(),
            accept: vec![self.way.into()],
            send: self.way.into(),
            outer_family,
            encapsulate_when: self.encapsulate_when,
            mtu: self.mtu,
        }
    }
}

/// Checks what can be checked without looking at other objects.
///
/// # Errors
/// What is wrong, and what to write instead.
pub fn check(name: &str, spec: &NetworkModeSpec) -> Result<Mode, Verdict> {
    let NetworkModeSpec {
        mode,
        overlay,
        underlay,
        mtu,
        node_address,
        rollout,
    } = spec;
    let (way, encapsulate_when) = match mode {
        crds::Mode::Overlay => match overlay {
            Some(overlay) => check_overlay(overlay),
            None => {
                return invalid(
                    "spec.overlay is missing; mode overlay takes for example overlay: {encapsulation: vxlan}",
                );
            }
        },
        crds::Mode::HostGw => (Way::Direct, EncapsulateWhen::default()),
        crds::Mode::Underlay => (Way::Bgp, EncapsulateWhen::default()),
    };
    let underlay = match way {
        Way::Bgp => Some(underlay::check(&underlay.clone().unwrap_or_default())?),
        Way::Vxlan(_) | Way::Ipip | Way::Udp(_) | Way::Direct => None,
    };
    Ok(Mode {
        name: name.to_owned(),
        way,
        encapsulate_when,
        mtu: *mtu,
        address: check_address(node_address)?,
        underlay,
        rollout: rollout.clone(),
    })
}

fn check_overlay(overlay: &Overlay) -> (Way, EncapsulateWhen) {
    let Overlay {
        encapsulation,
        encapsulate_when,
        vxlan,
        udp,
    } = overlay;
    let way = match encapsulation {
        Encapsulation::Vxlan => Way::Vxlan(vxlan.unwrap_or_default()),
        Encapsulation::Ipip => Way::Ipip,
        Encapsulation::Udp => Way::Udp(udp.unwrap_or_default()),
    };
    (way, *encapsulate_when)
}

fn check_address(source: &NodeAddressSource) -> Result<AddressSource, Verdict> {
    let NodeAddressSource {
        from,
        cidr,
        interface,
    } = source;
    match (from, cidr, interface) {
        (Some(NodeAddressWord::InternalIp), None, None) => Ok(AddressSource::InternalIp),
        (None, Some(range), None) => Ok(AddressSource::Cidr(range.trunc())),
        (None, None, Some(link)) => not_yet(
            "spec.nodeAddress.interface",
            link,
            "spec.nodeAddress {from: internal-ip} or {cidr: 10.0.0.0/8}",
        ),
        (_, _, _) => invalid(
            "spec.nodeAddress takes exactly one of from, cidr and interface, for example {from: internal-ip}",
        ),
    }
}

fn not_yet<T>(field: &str, value: &str, instead: &str) -> Result<T, Verdict> {
    Err(Verdict::stalled(
        Reason::NotYetSupported,
        format!("{field} {value} is not supported yet; use {instead}"),
    ))
}

fn invalid<T>(message: &str) -> Result<T, Verdict> {
    Err(Verdict::stalled(Reason::Invalid, message))
}
