//! The nft table: packets of pods that leave the pools take the node's address.
//!
//! A nat chain sees the first packet of a connection only; established traffic passes no rule here.

use std::collections::BTreeMap;
use std::fmt::Write;

use ipnet::IpNet;

use crate::inputs::Pool;

/// The whole table as `nft -f` takes it: removed and made anew in one transaction, so that no packet meets a table
/// that is half there. (Adding it first makes the removal legal where there was none.)
pub fn render(pools: &BTreeMap<String, Pool>) -> String {
    let mut text =
        String::from("add table inet netweft\ndelete table inet netweft\ntable inet netweft {\n");
    for family in [Family::V4, Family::V6] {
        let ranges: Vec<IpNet> = pools
            .values()
            .map(|pool| pool.cidr)
            .filter(|cidr| family.holds(cidr))
            .collect();
        text += &set(family, &ranges);
    }
    text +=
        "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n";
    for pool in pools.values().filter(|pool| pool.nat_outgoing) {
        text += &rule(pool);
    }
    text += "\t}\n}\n";
    text
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

fn set(family: Family, ranges: &[IpNet]) -> String {
    let mut text = format!(
        "\tset {} {{\n\t\ttype {}\n\t\tflags interval\n",
        family.set_name(),
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

fn rule(pool: &Pool) -> String {
    let family = Family::of(&pool.cidr);
    let header = family.header();
    let mut text = format!(
        "\t\t{header} saddr {} {header} daddr != @{}",
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
    text += " masquerade fully-random\n";
    text
}

fn list(nets: &[IpNet]) -> String {
    nets.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
