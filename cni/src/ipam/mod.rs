//! Allocation of addresses to pods. Pure: the caller reads the allocated addresses before, and records the new ones after.
//!
//! Within a block the search starts after the address that was allocated last and wraps around. A released address is
//! therefore reused as late as possible, when connections and neighbour entries of its last pod have expired.

mod error;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::block::candidates;
use crate::node::{NodeConfig, PoolConfig};

pub use error::{AllocationError, Shortage};
pub use pools::{POOLS_ANNOTATION, PodRequest, pools_for};

/// An address for a pod, with the block and the pool that it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation<'a> {
    /// The address.
    pub ip: IpAddr,
    /// The block of the address.
    pub block: IpNet,
    /// The pool of the block.
    pub pool: &'a PoolConfig,
}

/// Allocates one address of each family that this node has for a pod: both or none in dual stack. Pools are tried in
/// order, and so are their blocks. `cursors` has the address that was allocated last, by block.
///
/// # Errors
/// [`AllocationError`] if a family has no free address, or if no family has a pool.
pub fn allocate<'a>(
    node: &'a NodeConfig,
    pod_request: PodRequest<'_>,
    allocated: &BTreeSet<IpAddr>,
    cursors: &BTreeMap<IpNet, IpAddr>,
) -> Result<Vec<Allocation<'a>>, AllocationError> {
    let namespace = pod_request.namespace;
    let exists = |names: &BTreeSet<String>| namespace.is_some_and(|name| names.contains(name));
    if !node.namespaces.as_ref().is_none_or(exists) {
        return Err(AllocationError::UnknownNamespace(
            namespace.map(str::to_owned),
        ));
    }
    let (mut allocations, mut shortages) = (Vec::new(), Vec::new());
    for (ipv4, pools) in pools::by_family(node, pod_request)? {
        let mut enabled = pools.iter().copied().filter(|pool| !pool.disabled);
        match enabled.find_map(|pool| free_address(pool, ipv4, allocated, cursors)) {
            Some(allocation) => allocations.push(allocation),
            None => shortages.push(Shortage::new(&pools)),
        }
    }
    if !shortages.is_empty() {
        Err(AllocationError::NoAddress(shortages))
    } else if allocations.is_empty() {
        Err(AllocationError::NoPool(namespace.map(str::to_owned)))
    } else {
        Ok(allocations)
    }
}

fn free_address<'a>(
    pool: &'a PoolConfig,
    ipv4: bool,
    allocated: &BTreeSet<IpAddr>,
    cursors: &BTreeMap<IpNet, IpAddr>,
) -> Option<Allocation<'a>> {
    let blocks = pool.blocks.iter();
    let mut of_family = blocks.filter(|block| block.addr().is_ipv4() == ipv4);
    of_family.find_map(|block| {
        let mut candidates = candidates(*block, &pool.reserved, cursors.get(block).copied());
        let ip = candidates.find(|ip| !allocated.contains(ip))?;
        let block = *block;
        Some(Allocation { ip, block, pool })
    })
}

#[cfg(test)]
mod tests;
