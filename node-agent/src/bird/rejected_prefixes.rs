//! Why the import filter of a session rejects a prefix.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::desired::bird::ImportPolicy;

/// The reason, as a phrase that can follow the prefix.
#[must_use]
pub fn reason(prefix: IpNet, policy: &ImportPolicy, node_addresses: &[IpAddr]) -> &'static str {
    if policy.own_blocks.iter().any(|own| own.contains(&prefix)) {
        return "this node's own";
    }
    if prefix.prefix_len() == 0 {
        return "a default route";
    }
    let mut pools = policy.pools.iter();
    let around = pools.find(|(pool, _, _)| pool.contains(&prefix));
    match around {
        Some((pool, _, _)) if *pool == prefix => "a whole pool",
        Some((_, _, longest)) if prefix.prefix_len() > *longest => "smaller than a block",
        Some(_) => "refused by spec.filters.import",
        None if node_addresses.iter().any(|node| prefix.contains(node)) => "a node's address",
        None => "outside the pools",
    }
}
