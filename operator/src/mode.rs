//! [`Mode`]: a NetworkMode whose values have been checked, one mode at a time.

use ipnet::IpNet;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    self as crds, EncapsulateWhen, Encapsulation, IpFamily, NetworkModeSpec, NodeAddressSource,
    NodeAddressWord, NodeMode, Overlay, Transport,
};

/// A way between nodes that can be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Its name.
    pub name: String,
    /// How packets are sent and received.
    pub transport: Transport,
    /// Whether peers on the same link are sent to without encapsulation.
    pub encapsulate_when: EncapsulateWhen,
    /// Bytes of the largest packet of a pod; 0: measured.
    pub mtu: u32,
    /// Which of a node's addresses the others send to.
    pub address: AddressSource,
}

/// Which of a node's addresses the others send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// The first `InternalIP` of each family.
    InternalIp,
    /// The first address in this range.
    Cidr(IpNet),
}

impl Mode {
    /// What a node has to do for this mode; for which pools is added by the caller.
    #[must_use]
    pub fn node_mode(&self, outer_family: IpFamily) -> NodeMode {
        NodeMode {
            name: self.name.clone(),
            pools: Vec::new(),
            accept: vec![self.transport],
            send: self.transport,
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
        underlay: _, // belongs to mode underlay
        mtu,
        node_address,
    } = spec;
    let (transport, encapsulate_when) = match mode {
        crds::Mode::Overlay => match overlay {
            Some(overlay) => check_overlay(overlay)?,
            None => {
                return invalid(
                    "spec.overlay is missing; mode overlay takes for example overlay: {encapsulation: vxlan}",
                );
            }
        },
        crds::Mode::HostGw => return not_yet("spec.mode", "host-gw", "overlay"),
        crds::Mode::Underlay => return not_yet("spec.mode", "underlay", "overlay"),
    };
    Ok(Mode {
        name: name.to_owned(),
        transport,
        encapsulate_when,
        mtu: *mtu,
        address: check_address(node_address)?,
    })
}

fn check_overlay(overlay: &Overlay) -> Result<(Transport, EncapsulateWhen), Verdict> {
    let Overlay {
        encapsulation,
        encapsulate_when,
        vxlan,
        udp: _, // belongs to encapsulation udp
    } = overlay;
    let field = "spec.overlay.encapsulation";
    let transport = match encapsulation {
        Encapsulation::Vxlan => Transport::vxlan(vxlan.unwrap_or_default()),
        Encapsulation::Ipip => return not_yet(field, "ipip", "vxlan"),
        Encapsulation::Udp => return not_yet(field, "udp", "vxlan"),
    };
    match encapsulate_when {
        EncapsulateWhen::Always => Ok((transport, *encapsulate_when)),
        EncapsulateWhen::CrossSubnet => {
            not_yet("spec.overlay.encapsulateWhen", "cross-subnet", "always")
        }
    }
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
