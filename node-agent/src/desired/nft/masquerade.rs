//! Masquerading: packets of pods that leave the pools get the node's address. In an overlay the addresses of other nodes are outside,
//! because the network between nodes may not see an address of a pod; without encapsulation, nodes are reached as pods are.
//!
//! What the node itself sends into a tunnel from an address that is not the tunnel's gets the tunnel's address. The kernel
//! chooses the source of a packet to a ClusterIP by the route to the ClusterIP, and kube-proxy changes the destination later. The
//! reply to another source would leave the pod's node outside the tunnel, where a strict reverse path filter or the network drops it.
//!
//! A nat chain sees only the first packet of a connection; established traffic meets no rule here.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::{IpFamily, PodInterface, Transport};
use netweft_netstate::model::LinkName;

use crate::desired::nft::{self, list, words};
use crate::inputs::{Inputs, Pool};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The ports that masquerading selects from, without well-known ports.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// The chain; empty if it would have no rule. `ports`: UDP ports of tunnels.
pub fn chain<'a>(
    inputs: &Inputs,
    tunnels: impl IntoIterator<Item = &'a LinkName>,
    ports: &BTreeSet<u16>,
) -> String {
    let pools = &inputs.pools;
    let udp_ports = (!ports.is_empty()).then(|| largest_gap(ports));
    let masqueraded = pools.iter().filter(|(_, pool)| pool.nat_outgoing);
    let of_pools = masqueraded.flat_map(|(name, pool)| {
        let family = IpFamily::of(pool.cidr.addr());
        let nodes_excluded = is_plain(inputs, name) && nft::nodes(inputs, family).next().is_some();
        let matches = from_pool(pool, nodes_excluded);
        masquerade(&matches, udp_ports.as_ref())
    });
    let carried = |family: &IpFamily| {
        let mut pools = pools.values();
        pools.any(|pool| IpFamily::of(pool.cidr.addr()) == *family)
    };
    let into_tunnels = tunnels.into_iter().flat_map(|tunnel| {
        let families = IpFamily::ALL.into_iter().filter(carried);
        families.map(move |family| from_node(tunnel, family))
    });
    let rules: Vec<String> = of_pools.chain(into_tunnels).collect();
    if rules.is_empty() {
        return String::new();
    }
    let hook = "type nat hook postrouting priority srcnat; policy accept;".to_owned();
    nft::chain("postrouting", [hook].into_iter().chain(rules))
}

/// The rules that masquerade what `matches`. `udp_ports`: source ports of UDP flows, without those of tunnels; `None`: any. The reply of
/// another node to the port of a tunnel would be taken for an encapsulated packet.
fn masquerade(matches: &str, udp_ports: Option<&RangeInclusive<u16>>) -> Vec<String> {
    let udp = udp_ports.map(|range| {
        let (first, last) = (range.start(), range.end());
        format!("{matches} meta l4proto udp masquerade to :{first}-{last} fully-random")
    });
    let rest = format!("{matches} masquerade fully-random");
    udp.into_iter().chain([rest]).collect()
}

/// The largest range of [`PORTS`] without any of `ports`.
fn largest_gap(ports: &BTreeSet<u16>) -> RangeInclusive<u16> {
    let starts = [*PORTS.start()].into_iter();
    let starts = starts.chain(ports.iter().map(|port| port.saturating_add(1)));
    let ends = ports.iter().map(|port| port.saturating_sub(1));
    let ends = ends.chain([*PORTS.end()]);
    let gaps = starts
        .zip(ends)
        .map(|(start, end)| start.max(*PORTS.start())..=end);
    gaps.max_by_key(ExactSizeIterator::len).unwrap_or(PORTS)
}

/// The pools whose pods are not masqueraded on a kernel that cannot have the table; `None` if no pod here needs it.
pub fn unmasqueraded(inputs: &Inputs) -> Option<Problem> {
    let here = |pool: &Pool| {
        let own = inputs.blocks.iter().map(|block| block.cidr);
        own.chain(inputs.withdrawn.iter().copied())
            .any(|block| pool.cidr.contains(&block))
    };
    let names: Vec<&str> = inputs
        .pools
        .iter()
        .filter(|(_, pool)| pool.nat_outgoing && here(pool))
        .map(|(name, _)| name.as_str())
        .collect();
    if names.is_empty() {
        return None;
    }
    let pools = if names.len() == 1 {
        "IPPool"
    } else {
        "IPPools"
    };
    let pools = format!("{pools} {}", names.join(", "));
    Some(Problem::from(Cause::NftablesInetUnsupported { pools }))
}

/// Whether packets of a pool's pods travel without encapsulation.
fn is_plain(inputs: &Inputs, pool: &str) -> bool {
    let transport = inputs.mode_of(pool).and_then(|mode| mode.transport.get());
    matches!(transport, Some(Transport::Direct | Transport::Bgp))
}

/// The packets of a pool's pods that are masqueraded.
fn from_pool(pool: &Pool, nodes_excluded: bool) -> String {
    let family = IpFamily::of(pool.cidr.addr());
    let nft::Words {
        header,
        pools,
        nodes,
        ..
    } = words(family);
    let mut text = String::new();
    if pool.pod_interface == PodInterface::Bridge {
        // A packet from port to port stays on the node, although multicast groups are outside the pools (`br_nf_post_routing`).
        let _ = write!(text, "oifname != \"{}\" ", link_names::BRIDGE);
    }
    let _ = write!(
        text,
        "{header} saddr {} {header} daddr != @{pools}",
        pool.cidr
    );
    let excluded = pool.nat_exclude.iter().copied();
    let excluded: Vec<IpNet> = excluded
        .filter(|net| IpFamily::of(net.addr()) == family)
        .collect();
    let excluded = IpNet::aggregate(&excluded);
    if !excluded.is_empty() {
        let _ = write!(text, " {header} daddr != {{ {} }}", list(excluded.iter()));
    }
    if nodes_excluded {
        let _ = write!(text, " {header} daddr != @{nodes}");
    }
    text
}

fn from_node(tunnel: &LinkName, family: IpFamily) -> String {
    let nft::Words { header, pools, .. } = words(family);
    format!(
        "oifname \"{tunnel}\" {header} saddr != @{pools} fib saddr type local masquerade fully-random"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_gap_has_no_port_of_tunnel() {
        let gap = |ports: &[u16]| largest_gap(&ports.iter().copied().collect());
        assert_eq!(gap(&[]), 1024..=65535);
        assert_eq!(gap(&[4789]), 4790..=65535);
        assert_eq!(gap(&[4789, 8285]), 8286..=65535);
        assert_eq!(gap(&[65535]), 1024..=65534);
        assert_eq!(gap(&[80, 50000]), 1024..=49999);
        assert_eq!(gap(&[1024, 40000]), 1025..=39999);
    }
}
