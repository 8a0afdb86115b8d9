//! The tunnel address: the node's own address ([`block::tunnel_address`]) in its oldest block of each pool.
//!
//! It is the preferred source of packets that the node sends into the tunnel, so that replies return through the tunnel whatever
//! `rp_filter` is. No pod gets the tunnel address of any block in any mode, so that it is free when the mode changes or the
//! oldest block is withdrawn. A pod that has one from an earlier version keeps it; the node then uses that of the next block.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_cni::block;

use crate::inputs::{Inputs, OwnBlock};
use crate::pods::PodState;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The tunnel address of each pool with a block on this node whose tunnel address is free.
pub fn tunnel_addresses(inputs: &Inputs) -> BTreeMap<&str, IpAddr> {
    let mut addresses = BTreeMap::new();
    let blocks = inputs.blocks.iter();
    for block in blocks.filter(|block| inputs.pools.contains_key(&block.pool)) {
        let address = block::tunnel_address(block.cidr);
        if let Some(address) = address.filter(|address| inputs.pods.is_free(address)) {
            addresses.entry(block.pool.as_str()).or_insert(address);
        }
    }
    addresses
}

/// Notes about tunnel addresses that pods have, if the pool has no other tunnel address on this node.
pub fn taken(inputs: &Inputs) -> Vec<Problem> {
    let found = tunnel_addresses(inputs);
    let blocks = inputs.blocks.iter();
    let without = blocks.filter(|block| !found.contains_key(block.pool.as_str()));
    let note = |block: &OwnBlock| {
        let address = block::tunnel_address(block.cidr)?;
        let OwnBlock { cidr, pool } = block;
        let is_taken = inputs.pods.addresses.contains(&address);
        let cause = Cause::TunnelAddressTaken {
            address,
            block: *cidr,
            pool: pool.clone(),
        };
        is_taken.then(|| Problem::from(cause))
    };
    without.filter_map(note).collect()
}

/// The node's own addresses in a block: the gateways of pods, even if the pool is no longer bridged, and the tunnel address. The
/// plugin excludes the tunnel address itself, but a plugin of an earlier version, which may run during an update, does not.
pub fn own_addresses(inputs: &Inputs, block: &OwnBlock) -> impl Iterator<Item = IpAddr> {
    let PodState {
        gateways,
        offered_gateways,
        ..
    } = &inputs.pods;
    let gateways = [gateways, offered_gateways].into_iter();
    let gateways = gateways.filter_map(move |gateways| gateways.get(&block.cidr).copied());
    gateways.chain(block::tunnel_address(block.cidr))
}
