//! The nft tables of the agent: filtering of what pods and other hosts send, and masquerading. Pure.
//!
//! ```text
//!   packet in  ─▶ prerouting (filter, raw) ─▶ conntrack ─▶ … ┬─▶ input (filter) ─▶ the node
//!                                                           └─▶ translated (nat) ─▶ postrouting (nat: masquerade) ─▶ packet out
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

use netweft_crds::{IpFamily, Transport};
use netweft_netstate::model::LinkName;

use crate::apply::nft::{TABLE, TableFamily};
pub use crate::desired::nft::masquerade::unmasqueraded;
use crate::inputs::Inputs;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The table of the family inet, as `nft -f` reads it.
pub fn render<'a>(inputs: &Inputs, tunnels: impl IntoIterator<Item = &'a LinkName>) -> String {
    let mut text = String::new();
    for family in IpFamily::ALL {
        let words = words(family);
        let pools = inputs.pools.values().map(|pool| pool.cidr);
        let pools = pools.filter(|cidr| IpFamily::of(cidr.addr()) == family);
        // The operator refuses overlapping pools. If one arrives still, it must not invalidate the whole table.
        let kind = format!(
            "type {}\n\t\tflags interval\n\t\tauto-merge",
            words.address_type
        );
        text += &set(words.pools, &kind, pools);
        let nodes = nodes(inputs, family);
        text += &set(words.nodes, &format!("type {}", words.address_type), nodes);
    }
    let ports = tunnel_ports(inputs);
    text += &filter::chains(inputs, &ports);
    text += &masquerade::chain(inputs, tunnels, &ports);
    table(TableFamily::Inet, &text)
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

/// Addresses of other nodes.
fn nodes(inputs: &Inputs, family: IpFamily) -> impl Iterator<Item = IpAddr> {
    let nodes = inputs.nodes.iter().copied();
    nodes.filter(move |address| IpFamily::of(*address) == family)
}

/// UDP ports of the tunnels of all modes in use or in standby.
fn tunnel_ports(inputs: &Inputs) -> BTreeSet<u16> {
    let transports = inputs.modes.iter().filter_map(|mode| mode.transport.get());
    let port = |transport| match transport {
        Transport::Vxlan(parameters) => Some(parameters.port),
        Transport::Udp(parameters) => Some(parameters.port),
        Transport::Ipip | Transport::Direct | Transport::Bgp => None,
    };
    transports.filter_map(port).collect()
}

/// What belongs to an IP family in the table.
struct Words {
    /// The header in expressions.
    header: &'static str,
    /// The type of addresses.
    address_type: &'static str,
    /// The set with the ranges of all IPPools.
    pools: &'static str,
    /// The set with the addresses of other nodes.
    nodes: &'static str,
}

const fn words(family: IpFamily) -> Words {
    match family {
        IpFamily::Ipv4 => Words {
            header: "ip",
            address_type: "ipv4_addr",
            pools: "pools_v4",
            nodes: "nodes_v4",
        },
        IpFamily::Ipv6 => Words {
            header: "ip6",
            address_type: "ipv6_addr",
            pools: "pools_v6",
            nodes: "nodes_v6",
        },
    }
}

/// A whole table. The first line makes the deletion legal where there is no table.
fn table(family: TableFamily, content: &str) -> String {
    let table = format!("table {} {TABLE}", family.name());
    format!("add {table}\ndelete {table}\n{table} {{\n{content}}}\n")
}

/// A set; `kind` is the type of its elements, and its flags.
fn set(name: &str, kind: &str, elements: impl Iterator<Item = impl Display>) -> String {
    let elements = list(elements);
    let mut text = format!("\tset {name} {{\n\t\t{kind}\n");
    if !elements.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\t\telements = {{ {elements} }}");
    }
    text + "\t}\n"
}

/// A chain with its rules; a base chain begins with its hook.
fn chain(name: &str, rules: impl IntoIterator<Item = String>) -> String {
    let rules = rules.into_iter().map(|rule| format!("\t\t{rule}\n"));
    format!("\tchain {name} {{\n{}\t}}\n", rules.collect::<String>())
}

fn list(elements: impl Iterator<Item = impl Display>) -> String {
    let elements: Vec<String> = elements.map(|element| element.to_string()).collect();
    elements.join(", ")
}
