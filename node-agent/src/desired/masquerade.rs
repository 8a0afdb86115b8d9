//! The nft table: packets of pods that leave the pools take the node's address. In an overlay other nodes' addresses are outside,
//! for nobody there may see a pod's; where pods' packets travel plainly, nodes are no more outside than pods.
//!
//! What the node itself sends into a tunnel from an address that is not the tunnel's takes the tunnel's address. The kernel
//! chooses the source of a packet to a ClusterIP by the route to the ClusterIP, and kube-proxy changes the destination later. The
//! answer to another source would leave the pod's node beside the tunnel, where a strict reverse path filter or the network drops it.
//!
//! A nat chain sees the first packet of a connection only; established traffic passes no rule here. Where no pool asks for
//! masquerading and there is no tunnel there is no table, so that such a node needs no kernel that has one.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::{PodInterface, Transport};
use netweft_netstate::model::LinkName;

use crate::inputs::{Inputs, Pool};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The whole table as `nft -f` takes it: removed and made anew in one transaction, so that no packet meets a table
/// that is half there. (Adding it first makes the removal legal where there was none.) Empty if no rule would be in it.
pub fn render<'a>(inputs: &Inputs, tunnels: impl IntoIterator<Item = &'a LinkName>) -> String {
    let pools = &inputs.pools;
    let mut tunnels = tunnels.into_iter().peekable();
    if !pools.values().any(|pool| pool.nat_outgoing) && tunnels.peek().is_none() {
        return String::new();
    }
    let mut text =
        String::from("add table inet netweft\ndelete table inet netweft\ntable inet netweft {\n");
    for family in [Family::V4, Family::V6] {
        let ranges: Vec<IpNet> = pools
            .values()
            .map(|pool| pool.cidr)
            .filter(|cidr| family.holds(cidr))
            .collect();
        text += &set(family.set_name(), family, &ranges);
        let nodes: Vec<IpNet> = nodes(inputs).into_iter().map(IpNet::from).collect();
        let nodes: Vec<IpNet> = nodes.into_iter().filter(|net| family.holds(net)).collect();
        if !nodes.is_empty() {
            text += &set(family.nodes_name(), family, &nodes);
        }
    }
    text +=
        "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n";
    let nodes = nodes(inputs);
    for (name, pool) in pools.iter().filter(|(_, pool)| pool.nat_outgoing) {
        let family = Family::of(&pool.cidr);
        let spared =
            is_plain(inputs, name) && nodes.iter().any(|node| family.holds(&IpNet::from(*node)));
        text += &rule(pool, spared);
    }
    for tunnel in tunnels {
        let carried = [Family::V4, Family::V6].into_iter();
        for family in carried.filter(|family| pools.values().any(|pool| family.holds(&pool.cidr))) {
            text += &from_the_node(tunnel, family);
        }
    }
    text += "\t}\n}\n";
    text
}

/// What does not work on a kernel that cannot have the table; `None` if no pod here would need it.
pub fn missed(inputs: &Inputs) -> Option<Problem> {
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    fn holds(self, net: &IpNet) -> bool {
        Self::of(net) == self
    }

    fn set_name(self) -> &'static str {
        match self {
            Self::V4 => "pools_v4",
            Self::V6 => "pools_v6",
        }
    }

    fn nodes_name(self) -> &'static str {
        match self {
            Self::V4 => "nodes_v4",
            Self::V6 => "nodes_v6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// Whether packets of a pool's pods travel without encapsulation.
fn is_plain(inputs: &Inputs, pool: &str) -> bool {
    let transport = inputs.mode_of(pool).and_then(|mode| mode.transport.get());
    matches!(transport, Some(Transport::Direct | Transport::Bgp))
}

/// The addresses of all nodes; none unless a pool needs them.
fn nodes(inputs: &Inputs) -> BTreeSet<IpAddr> {
    if !inputs.pools.keys().any(|name| is_plain(inputs, name)) {
        return BTreeSet::new();
    }
    let others = inputs
        .remote
        .iter()
        .flat_map(|block| block.addresses.iter());
    inputs.addresses.iter().chain(others).collect()
}

fn set(name: &str, family: Family, ranges: &[IpNet]) -> String {
    let mut text = format!(
        "\tset {name} {{\n\t\ttype {}\n\t\tflags interval\n",
        family.address_type()
    );
    if !ranges.is_empty() {
        // Pools that overlap are refused elsewhere; one that slipped in must not make the whole table fail.
        let _ = writeln!(
            text,
            "\t\tauto-merge\n\t\telements = {{ {} }}",
            list(ranges)
        );
    }
    text += "\t}\n";
    text
}

fn rule(pool: &Pool, nodes_spared: bool) -> String {
    let family = Family::of(&pool.cidr);
    let header = family.header();
    let mut text = String::from("\t\t");
    if pool.pod_interface == PodInterface::Bridge {
        // What goes from port to port leaves nothing, though groups are outside the pools (`br_nf_post_routing`).
        let _ = write!(text, "oifname != \"{}\" ", link_names::BRIDGE);
    }
    let _ = write!(
        text,
        "{header} saddr {} {header} daddr != @{}",
        pool.cidr,
        family.set_name()
    );
    let mut exclude: Vec<IpNet> = pool
        .nat_exclude
        .iter()
        .copied()
        .filter(|net| family.holds(net))
        .collect();
    exclude = IpNet::aggregate(&exclude);
    if !exclude.is_empty() {
        let _ = write!(text, " {header} daddr != {{ {} }}", list(&exclude));
    }
    if nodes_spared {
        let _ = write!(text, " {header} daddr != @{}", family.nodes_name());
    }
    text += " masquerade fully-random\n";
    text
}

fn from_the_node(tunnel: &LinkName, family: Family) -> String {
    format!(
        "\t\toifname \"{tunnel}\" {} saddr != @{} fib saddr type local masquerade fully-random\n",
        family.header(),
        family.set_name()
    )
}

fn list(nets: &[IpNet]) -> String {
    nets.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
