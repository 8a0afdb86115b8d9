//! The address of a tunnel link: one reserved from the node's oldest block of each pool.
//!
//! It is the preferred source of what the node itself sends into the tunnel, so that answers come back through the
//! tunnel whatever rp_filter is set to. It is reserved in every mode, so that a change of mode never finds it taken.
//! Where pods are on a bridge it is the bridge's address in the block, and on both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_cni::ipam;

use super::bridge;
use crate::inputs::Inputs;

/// The tunnel address of each pool that has a block here.
pub fn tunnel_addresses(inputs: &Inputs) -> BTreeMap<&str, IpAddr> {
    let mut addresses = BTreeMap::new();
    for block in &inputs.blocks {
        let Some(pool) = inputs.pools.get(&block.pool) else {
            continue;
        };
        let bridged = bridge::gateway(inputs, block);
        if let Some(address) = bridged.or_else(|| ipam::usable(block.cidr, &pool.reserved).next()) {
            addresses.entry(block.pool.as_str()).or_insert(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use netweft_crds::{NodeAddresses, PodInterface};

    use super::*;
    use crate::inputs::{OwnBlock, Pool};

    fn inputs(blocks: &[&str], reserved: &[&str]) -> Inputs {
        let pool = Pool {
            cidr: "10.244.0.0/16".parse().unwrap(),
            block_prefix: 26,
            unannounced: false,
            nat_outgoing: true,
            nat_exclude: vec![],
            reserved: reserved
                .iter()
                .map(|range| range.parse().unwrap())
                .collect(),
            pod_interface: PodInterface::Routed,
            disabled: false,
            draining: false,
            some_nodes: false,
            namespaces: None,
        };
        let block = |cidr: &&str| OwnBlock {
            cidr: cidr.parse().unwrap(),
            pool: "p".into(),
        };
        Inputs {
            node: "n".into(),
            addresses: NodeAddresses::default(),
            modes: vec![],
            serving: vec![],
            namespaces: BTreeMap::new(),
            blocks: blocks.iter().map(block).collect(),
            withdrawn: vec![],
            remote: vec![],
            pools: BTreeMap::from([("p".to_owned(), pool)]),
            bgp: None,
            bridged: Default::default(),
            problems: vec![],
        }
    }

    fn address(blocks: &[&str], reserved: &[&str]) -> Option<String> {
        tunnel_addresses(&inputs(blocks, reserved))
            .get("p")
            .map(ToString::to_string)
    }

    #[test]
    fn it_is_the_first_usable_address_of_the_oldest_block() {
        assert_eq!(
            address(&["10.244.3.64/26", "10.244.0.0/26"], &[]).unwrap(),
            "10.244.3.65"
        );
        let reserved = ["10.244.3.64/31", "10.244.3.66/32"];
        assert_eq!(
            address(&["10.244.3.64/26"], &reserved).unwrap(),
            "10.244.3.67"
        );
    }

    #[test]
    fn a_block_that_is_wholly_reserved_has_none() {
        assert_eq!(address(&["10.244.3.64/26"], &["10.244.0.0/16"]), None);
    }
}
