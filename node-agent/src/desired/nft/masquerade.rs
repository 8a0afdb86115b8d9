//! Masquerading: packets of pods that leave the pools get the node's address. In an overlay the addresses of other nodes are outside,
//! because the network between nodes may not see an address of a pod; without encapsulation, nodes are reached as pods are.
//!
//! What the node itself sends into a tunnel from an address that is not the tunnel's gets the tunnel's address. The kernel
//! chooses the source of a packet to a ClusterIP by the route to the ClusterIP, and kube-proxy changes the destination later. The
//! reply to another source would leave the pod's node outside the tunnel, where a strict reverse path filter or the network drops it.
//!
//! A nat chain sees only the first packet of a connection; established traffic meets no rule here.

use std::fmt::Write;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::{PodInterface, Transport};
use netweft_netstate::model::LinkName;

use crate::desired::nft::{self, Family, list};
use crate::inputs::{Inputs, Pool};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The chain; empty if it would have no rule.
pub fn chain<'a>(inputs: &Inputs, tunnels: impl IntoIterator<Item = &'a LinkName>) -> String {
    let pools = &inputs.pools;
    let nodes = nft::node_addresses(inputs);
    let masqueraded = pools.iter().filter(|(_, pool)| pool.nat_outgoing);
    let of_pools = masqueraded.map(|(name, pool)| {
        let family = Family::of(pool.cidr.addr());
        let nodes_excluded =
            is_plain(inputs, name) && nodes.iter().any(|node| family.contains(*node));
        from_pool(pool, nodes_excluded)
    });
    let carried = |family: &Family| {
        let mut pools = pools.values();
        pools.any(|pool| family.contains(pool.cidr.addr()))
    };
    let into_tunnels = tunnels.into_iter().flat_map(|tunnel| {
        let families = Family::BOTH.into_iter().filter(carried);
        families.map(move |family| from_node(tunnel, family))
    });
    let rules: Vec<String> = of_pools.chain(into_tunnels).collect();
    if rules.is_empty() {
        return String::new();
    }
    let hook = "type nat hook postrouting priority srcnat; policy accept;".to_owned();
    nft::chain("postrouting", [hook].into_iter().chain(rules))
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

fn from_pool(pool: &Pool, nodes_excluded: bool) -> String {
    let family = Family::of(pool.cidr.addr());
    let header = family.header();
    let mut text = String::new();
    if pool.pod_interface == PodInterface::Bridge {
        // A packet from port to port stays on the node, although multicast groups are outside the pools (`br_nf_post_routing`).
        let _ = write!(text, "oifname != \"{}\" ", link_names::BRIDGE);
    }
    let _ = write!(
        text,
        "{header} saddr {} {header} daddr != @{}",
        pool.cidr,
        family.pools_set()
    );
    let excluded = pool.nat_exclude.iter().copied();
    let excluded: Vec<IpNet> = excluded.filter(|net| family.contains(net.addr())).collect();
    let excluded = IpNet::aggregate(&excluded);
    if !excluded.is_empty() {
        let _ = write!(text, " {header} daddr != {{ {} }}", list(&excluded));
    }
    if nodes_excluded {
        let _ = write!(text, " {header} daddr != @{}", family.nodes_set());
    }
    text += " masquerade fully-random";
    text
}

fn from_node(tunnel: &LinkName, family: Family) -> String {
    format!(
        "oifname \"{tunnel}\" {} saddr != @{} fib saddr type local masquerade fully-random",
        family.header(),
        family.pools_set()
    )
}
