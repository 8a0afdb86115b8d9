//! Assignment of blocks to nodes.
//!
//! Each block demand (`demand`) is met from the first of its pools with a free block. Nodes keep their blocks. Never
//! used blocks are assigned first, in ascending order, then released blocks, the longest released first: caches and
//! connections of the previous owner get time to expire. If no block is free, blocks of deleted Nodes are reclaimed,
//! the longest orphaned first. A node owns a block because the creation of its NodeSubnet succeeded, so an assignment
//! from an outdated state is harmless. This module releases nothing (see `node_subnets`).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::plan::ipam::blocks::Blocks;
use crate::plan::ipam::demand::{BlockDemand, Purpose};
use crate::plan::validate::ip_pool::Pool;

/// A block of a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Name of the pool.
    pub pool: String,
    /// The block.
    pub cidr: IpNet,
}

/// The blocks in use.
#[derive(Clone, Debug, Default)]
pub struct CurrentBlocks {
    /// Blocks by node, including those of deleted Nodes.
    pub held: BTreeMap<String, BTreeSet<Block>>,
    /// Blocks with an unknown owner, and addresses that do not belong to pods.
    pub foreign: BTreeSet<IpNet>,
    /// Released blocks, the longest released first.
    pub released: Vec<IpNet>,
    /// Blocks of deleted Nodes that can be reclaimed, the longest orphaned first.
    pub orphans: Vec<Block>,
}

/// Blocks to create, and unmet demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// New blocks by node.
    pub create: Vec<(String, Block)>,
    /// Blocks of deleted Nodes to reclaim for demands that no free block can meet.
    pub reclaim: BTreeSet<IpNet>,
    /// Nodes without a block, by the pools that could have served them and have no free block.
    pub exhausted: BTreeMap<String, BTreeSet<String>>,
    /// Nodes with few free addresses, by the pools that could have served them and have no free block.
    pub low_capacity: BTreeMap<String, BTreeSet<String>>,
    /// Free blocks by pool, after this assignment.
    pub free: BTreeMap<String, u128>,
}

/// Meets the demands in their order while blocks are free. `pools` are in the order of preference.
#[must_use]
pub fn assign<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    demands: &[BlockDemand],
    current: &CurrentBlocks,
) -> Assignment {
    let mut assignment = Assignment::default();
    let mut occupied: Vec<IpNet> = current.foreign.iter().copied().collect();
    occupied.extend(current.held.values().flatten().map(|block| block.cidr));
    let mut unmet: Vec<&BlockDemand> = demands.iter().collect();
    let mut new_blocks = NewBlocks::default();
    for pool in pools {
        let blocks = Blocks::new(pool.cidr, pool.block_prefix, &pool.reserved, &occupied);
        let mut free = free_in_release_order(&blocks, &current.released);
        let mut left = blocks.free_count();
        unmet.retain(|demand| {
            if new_blocks.meets(demand) {
                return false;
            }
            if !demand.pools.contains(&pool.name) {
                return true;
            }
            let Some(cidr) = free.next() else {
                return true;
            };
            left = left.saturating_sub(1);
            // Overlapping pools are refused earlier. If they got here, they still would not share a block.
            occupied.push(cidr);
            new_blocks.insert(demand, pool);
            let pool = pool.name.clone();
            assignment
                .create
                .push((demand.node.clone(), Block { pool, cidr }));
            false
        });
        assignment.free.insert(pool.name.clone(), left);
    }
    for demand in unmet.into_iter().filter(|demand| !new_blocks.meets(demand)) {
        let unserved = match demand.purpose {
            Purpose::Initial => &mut assignment.exhausted,
            Purpose::LowCapacity => &mut assignment.low_capacity,
            Purpose::Spillover => continue,
        };
        let mut orphans = current.orphans.iter();
        let reclaim = &mut assignment.reclaim;
        let orphan =
            orphans.find(|it| demand.pools.contains(&it.pool) && !reclaim.contains(&it.cidr));
        if let Some(orphan) = orphan {
            // The next plan, in which the block is free, meets the demand.
            reclaim.insert(orphan.cidr);
            continue;
        }
        for pool in &demand.pools {
            let nodes = unserved.entry(pool.clone()).or_default();
            nodes.insert(demand.node.clone());
        }
    }
    assignment
}

/// New blocks by node and pool.
#[derive(Default)]
struct NewBlocks<'a>(BTreeSet<(&'a str, &'a str)>);

impl<'a> NewBlocks<'a> {
    fn insert(&mut self, demand: &'a BlockDemand, pool: &'a Pool) {
        self.0.insert((&demand.node, &pool.name));
    }

    /// Whether a block that was assigned for another demand satisfies this one.
    fn meets(&self, demand: &BlockDemand) -> bool {
        let mut pools = demand.pools.iter();
        demand.purpose == Purpose::Initial
            && pools.any(|pool| self.0.contains(&(demand.node.as_str(), pool.as_str())))
    }
}

/// Free blocks in the order of their use.
fn free_in_release_order(blocks: &Blocks, released: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let never_used = blocks.free().filter(|block| !released.contains(block));
    let given_back = released
        .iter()
        .copied()
        .filter(|block| blocks.is_free(block));
    never_used.chain(given_back)
}
