//! The MTU of pods and of routes: the MTU of the links less the encapsulation, or `spec.mtu` of the NetworkMode.

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeMode, Transport};
use netweft_udp_relay::config::{OVERHEAD_V4, OVERHEAD_V6};

use crate::inputs::host_facts::{Egress, HostFacts};
use crate::inputs::{Inputs, RemoteBlock};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The smallest MTU of an IPv6 link (RFC 8200, section 5).
const MIN_IPV6_MTU: u32 = 1280;

/// The MTU of pods for `mode` in bytes; `None` while its egress link is unknown.
#[must_use]
pub fn pod_mtu(inputs: &Inputs, facts: &HostFacts, mode: &NodeMode) -> Option<u32> {
    if mode.mtu != 0 {
        return Some(mode.mtu);
    }
    let link_mtu = match mode.transport.get()? {
        Transport::Direct | Transport::Bgp => link_mtu(facts)?,
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => {
            facts.egress.get(&inputs.tunnel_endpoint(mode)?)?.mtu
        }
    };
    Some(link_mtu.saturating_sub(overhead(mode)?))
}

/// The MTU of packets to a block, in bytes. It is smaller if the link of the other node is.
#[must_use]
pub fn pod_mtu_to(
    inputs: &Inputs,
    facts: &HostFacts,
    mode: &NodeMode,
    block: &RemoteBlock,
) -> Option<u32> {
    let own = pod_mtu(inputs, facts, mode)?;
    let remote_link = block.link_mtu.unwrap_or(u32::MAX);
    Some(own.min(remote_link.saturating_sub(overhead(mode)?)))
}

/// The smallest MTU of all modes. New pods get it, so that a packet of a pod fits every datapath.
pub fn smallest_pod_mtu(inputs: &Inputs, facts: &HostFacts) -> Option<u32> {
    let modes = inputs.modes.iter();
    modes.filter_map(|mode| pod_mtu(inputs, facts, mode)).min()
}

/// The smallest MTU of the links with the node's addresses, in bytes.
pub fn link_mtu(facts: &HostFacts) -> Option<u32> {
    facts.egress.values().map(|egress| egress.mtu).min()
}

/// Whether `mtu` is enough for the family of `net`. The kernel disables IPv6 on a link with a smaller MTU than
/// [`MIN_IPV6_MTU`].
pub fn is_sufficient(net: IpNet, mtu: u32) -> bool {
    net.addr().is_ipv4() || mtu >= MIN_IPV6_MTU
}

/// Bytes that the encapsulation of `mode` adds to a packet.
fn overhead(mode: &NodeMode) -> Option<u32> {
    let is_ipv4 = mode.outer_family == IpFamily::Ipv4;
    Some(match mode.transport.get()? {
        // Outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5).
        Transport::Vxlan(_) if is_ipv4 => 50,
        Transport::Vxlan(_) => 70,
        // Outer IP header (RFC 2003, section 3).
        Transport::Ipip => 20,
        Transport::Udp(_) if is_ipv4 => OVERHEAD_V4,
        Transport::Udp(_) => OVERHEAD_V6,
        Transport::Direct | Transport::Bgp => 0,
    })
}

/// The problem of a `spec.mtu` that is too large for the link of the node. The mode is programmed nevertheless: small packets
/// pass, and large ones where fragments pass.
pub fn too_large(inputs: &Inputs, facts: &HostFacts, mode: &NodeMode) -> Option<Problem> {
    let Egress { link, mtu, .. } = match mode.transport.get()? {
        Transport::Direct | Transport::Bgp => {
            facts.egress.values().min_by_key(|egress| egress.mtu)?
        }
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => {
            facts.egress.get(&inputs.tunnel_endpoint(mode)?)?
        }
    };
    let overhead = overhead(mode)?;
    let available = mtu.saturating_sub(overhead);
    (mode.mtu > available).then(|| {
        Problem::from(Cause::MtuTooLarge {
            mode: mode.name.clone(),
            mtu: mode.mtu,
            link: link.clone(),
            link_mtu: *mtu,
            overhead,
        })
    })
}

/// The problems of the IPv6 pools of `mode`, if its MTU is too small for IPv6.
pub fn too_small<'a>(
    inputs: &'a Inputs,
    mode: &'a NodeMode,
    mtu: u32,
) -> impl Iterator<Item = Problem> + 'a {
    let pools = mode.all_pools();
    let pools = pools.filter_map(|name| Some((name, inputs.pools.get(name)?)));
    let left_out = pools.filter(move |(_, pool)| !is_sufficient(pool.cidr, mtu));
    left_out.map(move |(name, _)| {
        Problem::from(Cause::MtuTooSmallForIpv6 {
            pool: name.clone(),
            mode: mode.name.clone(),
            mtu,
        })
    })
}
