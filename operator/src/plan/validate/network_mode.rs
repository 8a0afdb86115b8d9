//! [`Mode`]: a validated NetworkMode. Each NetworkMode is validated on its own.

use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    self as crds, AddressSelector, AddressSelectors, EncapsulateWhen, Encapsulation, IpFamily,
    NetworkModeSpec, NodeAddressSelector, NodeAddressSource, NodeAddressType, NodeMode, Overlay,
    Rollout, Transport,
};

use crate::plan::bgp::underlay;
use crate::plan::bgp::underlay::Underlay;

/// A datapath between nodes that agents can program.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    /// Its name.
    pub name: String,
    /// How packets are sent and received.
    pub transport: Transport,
    /// Whether packets to peers on the same link are encapsulated.
    pub encapsulate_when: EncapsulateWhen,
    /// MTU of pods in bytes; 0: derived from the links.
    pub mtu: u32,
    /// Selectors of the node addresses that peers send to, by family.
    pub address: AddressSelectors,
    /// BGP parameters, in mode underlay.
    pub underlay: Option<Underlay>,
    /// Parameters of a rollout of this mode.
    pub rollout: Rollout,
}

impl Mode {
    /// Whether packets to pods of this family can use this datapath.
    #[must_use]
    pub fn carries(&self, family: IpFamily) -> bool {
        family == IpFamily::Ipv4 || self.transport != Transport::Ipip
    }

    /// Family of the node address that packets to pods of family `inner` are sent to: a next hop has the family of the
    /// packets, a tunnel the family of all tunnels of the mode.
    #[must_use]
    pub fn node_family(&self, inner: IpFamily, outer: IpFamily) -> IpFamily {
        if self.has_tunnels() { outer } else { inner }
    }

    /// Whether packets are encapsulated, always or in some cases.
    #[must_use]
    pub fn has_tunnels(&self) -> bool {
        match self.transport {
            Transport::Direct | Transport::Bgp => false,
            Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => true,
        }
    }

    /// The datapath of a node in this mode, without pools.
    #[must_use]
    pub fn node_mode(&self, outer_family: IpFamily) -> NodeMode {
        NodeMode {
            name: self.name.clone(),
            pools: Vec::new(),
            standby_pools: Vec::new(),
            transport: self.transport.into(),
            outer_family,
            encapsulate_when: self.encapsulate_when,
            mtu: self.mtu,
            probe: self.rollout.probe,
        }
    }
}

/// Validates a NetworkMode without looking at other objects.
///
/// # Errors
/// The error and the remedy.
pub fn check(name: &str, spec: &NetworkModeSpec) -> Result<Mode, Verdict> {
    let NetworkModeSpec {
        mode,
        overlay,
        underlay,
        mtu,
        node_address,
        rollout,
    } = spec;
    let (transport, encapsulate_when) = match mode {
        crds::Mode::Overlay => match overlay {
            Some(overlay) => check_overlay(overlay),
            None => {
                return invalid(
                    "spec.overlay is missing; mode overlay takes for example overlay: {encapsulation: vxlan}",
                );
            }
        },
        crds::Mode::HostGw => (Transport::Direct, EncapsulateWhen::default()),
        crds::Mode::Underlay => (Transport::Bgp, EncapsulateWhen::default()),
    };
    let underlay = match transport {
        Transport::Bgp => Some(underlay::check(&underlay.clone().unwrap_or_default())?),
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) | Transport::Direct => None,
    };
    Ok(Mode {
        name: name.to_owned(),
        transport,
        encapsulate_when,
        mtu: *mtu,
        address: check_address(node_address)?,
        underlay,
        rollout: rollout.clone(),
    })
}

fn check_overlay(overlay: &Overlay) -> (Transport, EncapsulateWhen) {
    let Overlay {
        encapsulation,
        encapsulate_when,
        vxlan,
        udp,
    } = overlay;
    let transport = match encapsulation {
        Encapsulation::Vxlan => Transport::Vxlan(vxlan.unwrap_or_default()),
        Encapsulation::Ipip => Transport::Ipip,
        Encapsulation::Udp => Transport::Udp(udp.unwrap_or_default()),
    };
    (transport, *encapsulate_when)
}

fn check_address(source: &NodeAddressSource) -> Result<AddressSelectors, Verdict> {
    let NodeAddressSource {
        from,
        cidr,
        interface,
        reaches,
        ipv4,
        ipv6,
    } = source.clone();
    let both = NodeAddressSelector {
        from,
        cidr,
        interface,
        reaches,
    };
    if ipv4.is_none() && ipv6.is_none() {
        return for_each_family(&both);
    }
    if both != NodeAddressSelector::default() {
        return invalid(ONE_SELECTOR);
    }
    let checked = |selector: Option<NodeAddressSelector>, family| match selector {
        None => Ok(None),
        Some(selector) => check_selector(selector, family),
    };
    Ok(AddressSelectors {
        ipv4: checked(ipv4, IpFamily::Ipv4)?,
        ipv6: checked(ipv6, IpFamily::Ipv6)?,
    })
}

/// A selector for both families. A range or a destination has a family, and selects no address of the other.
fn for_each_family(both: &NodeAddressSelector) -> Result<AddressSelectors, Verdict> {
    let own = both.cidr.map(|range| range.addr()).or(both.reaches);
    let checked = |family| match own {
        Some(own) if IpFamily::of(own) != family => Ok(None),
        Some(_) | None => check_selector(both.clone(), family),
    };
    Ok(AddressSelectors {
        ipv4: checked(IpFamily::Ipv4)?,
        ipv6: checked(IpFamily::Ipv6)?,
    })
}

const ONE_SELECTOR: &str = "spec.nodeAddress takes exactly one of from, cidr, interface and reaches, for example {interface: eth1}, or instead ipv4 and ipv6 with one of these each, for example {ipv4: {interface: eth1}, ipv6: {from: internal-ip}}";

/// Validates a selector. `None`: the InternalIP of the Node's status.
fn check_selector(
    selector: NodeAddressSelector,
    family: IpFamily,
) -> Result<Option<AddressSelector>, Verdict> {
    let NodeAddressSelector {
        from,
        cidr,
        interface,
        reaches,
    } = selector;
    let fields = [
        from.is_some(),
        cidr.is_some(),
        interface.is_some(),
        reaches.is_some(),
    ];
    if fields.into_iter().filter(|is_set| *is_set).count() != 1 {
        return invalid(ONE_SELECTOR);
    }
    let of = cidr.map(|range| range.addr()).or(reaches).map(IpFamily::of);
    if of.is_some_and(|of| of != family) {
        return invalid(&format!(
            "cidr and reaches of spec.nodeAddress.{} must be {family} too",
            family.to_string().to_lowercase()
        ));
    }
    Ok(match from {
        Some(NodeAddressType::InternalIp) => None,
        None => Some(AddressSelector {
            cidr: cidr.map(|range| range.trunc()),
            interface,
            reaches,
        }),
    })
}

fn invalid<T>(message: &str) -> Result<T, Verdict> {
    Err(Verdict::stalled(Reason::Invalid, message))
}
