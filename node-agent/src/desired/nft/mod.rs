//! The nft tables of the agent: filtering of what pods and other hosts send, and masquerading. Pure.
//!
//! ```text
//!   packet in  ─▶ prerouting (filter, raw) ─▶ conntrack ─▶ … ─▶ translated (nat) ─▶ postrouting (nat: masquerade) ─▶ packet out
//!   node's own ─▶ output (raw: notrack) ───▶ …
//! ```
//!
//! One table of the family inet holds all chains and the sets that the chains share (`filter`, `masquerade`). A table of the family bridge
//! filters frames of pods on the bridge (`bridge`). The text replaces the whole table in one transaction, so that no packet meets an
//! incomplete table.

pub mod bridge;
mod filter;
mod masquerade;

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_netstate::model::LinkName;

use crate::apply::nft::TableFamily;
pub use crate::desired::nft::masquerade::unmasqueraded;
use crate::inputs::Inputs;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The table as `nft -f` reads it. (The first line makes the deletion legal where there is no table.)
pub fn render<'a>(inputs: &Inputs, tunnels: impl IntoIterator<Item = &'a LinkName>) -> String {
    let mut text =
        String::from("add table inet netweft\ndelete table inet netweft\ntable inet netweft {\n");
    let nodes = node_addresses(inputs);
    for family in Family::BOTH {
        let pools = inputs.pools.values().map(|pool| pool.cidr);
        let pools: Vec<IpNet> = pools.filter(|cidr| family.contains(cidr.addr())).collect();
        let nodes = nodes.iter().filter(|address| family.contains(**address));
        // Overlapping pools are refused by the operator; one that still arrives must not invalidate the whole table.
        text += &set(family.pools_set(), family, "interval", &pools);
        text += &set(family.nodes_set(), family, "", &nodes.collect::<Vec<_>>());
    }
    text += &filter::chains(inputs);
    text += &masquerade::chain(inputs, tunnels);
    text += "}\n";
    text
}

/// What does not work on a kernel without such tables.
pub fn unsupported(family: TableFamily, inputs: &Inputs) -> Vec<Problem> {
    match family {
        TableFamily::Inet => {
            let masquerading = unmasqueraded(inputs).into_iter();
            let filter = Problem::from(Cause::FilterUnsupported);
            masquerading.chain([filter]).collect()
        }
        TableFamily::Bridge => vec![Problem::from(Cause::BridgeFilterUnsupported)],
    }
}

/// Addresses from which other nodes send encapsulated packets. Without those of this node: an IPv6 packet with such a source that comes in
/// by a link is forged, and the kernel accepts it.
fn node_addresses(inputs: &Inputs) -> BTreeSet<IpAddr> {
    let blocks = inputs.remote.iter();
    let others = blocks.flat_map(|block| block.addresses.iter());
    let others = others.chain(inputs.peers_without_blocks.iter().copied());
    let own: BTreeSet<IpAddr> = inputs.addresses.iter().collect();
    others.filter(|address| !own.contains(address)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        Self::of(address) == self
    }

    fn pools_set(self) -> &'static str {
        match self {
            Self::V4 => "pools_v4",
            Self::V6 => "pools_v6",
        }
    }

    fn nodes_set(self) -> &'static str {
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

fn set(name: &str, family: Family, flags: &str, elements: &[impl Display]) -> String {
    let mut text = format!("\tset {name} {{\n\t\ttype {}\n", family.address_type());
    if !flags.is_empty() {
        let _ = writeln!(text, "\t\tflags {flags}\n\t\tauto-merge");
    }
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", list(elements));
    }
    text += "\t}\n";
    text
}

/// A chain with its rules; a base chain begins with its hook.
fn chain(name: &str, rules: impl IntoIterator<Item = String>) -> String {
    let rules = rules.into_iter().map(|rule| format!("\t\t{rule}\n"));
    format!("\tchain {name} {{\n{}\t}}\n", rules.collect::<String>())
}

fn list(elements: &[impl Display]) -> String {
    let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
    elements.join(", ")
}
