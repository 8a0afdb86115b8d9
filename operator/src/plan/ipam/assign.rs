//! `assign`: which node gets which block.
//!
//! Every block demand (`demand`) is met from the first of its pools that has a block left; what a node has, it keeps.
//! Blocks that nobody has had go first, the lowest before the others, then the one that was given back the longest ago: what is
//! left of its last owner, in caches and connections, gets time to end. Where none is left, blocks whose Node is gone are reclaimed, the
//! longest orphaned first. The API server has the last word: a block is owned
//! because creating its NodeSubnet succeeded, so an assignment made from an old picture does no harm. Nothing is taken away here
//! (`subnets`).

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

/// Who has what.
#[derive(Clone, Debug, Default)]
pub struct Current {
    /// Blocks by node, those of nodes that are gone included.
    pub held: BTreeMap<String, BTreeSet<Block>>,
    /// Blocks whose owner is not known, and addresses that are none of pods.
    pub foreign: BTreeSet<IpNet>,
    /// Blocks that were given back, the longest ago first.
    pub freed: Vec<IpNet>,
    /// Blocks of nodes that are gone which can be reclaimed, the longest orphaned first.
    pub orphans: Vec<Block>,
}

/// What is to be created, and what could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// New blocks by node.
    pub create: Vec<(String, Block)>,
    /// Blocks of nodes that are gone, to be taken for demands that nothing else can meet.
    pub reclaim: BTreeSet<IpNet>,
    /// Nodes, by pool, whose first block it could have been and for which none was left in any pool.
    pub exhausted: BTreeMap<String, BTreeSet<String>>,
    /// Nodes, by pool, that run short of addresses and for which no block was left in any pool.
    pub scarce: BTreeMap<String, BTreeSet<String>>,
    /// Free blocks by pool, after this assignment.
    pub free: BTreeMap<String, u128>,
}

/// Meets the demands, the first ones first, as far as there are blocks. `pools` come in the order of preference.
#[must_use]
pub fn assign<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    demands: &[BlockDemand],
    current: &Current,
) -> Assignment {
    let mut assignment = Assignment::default();
    let mut occupied: Vec<IpNet> = current.foreign.iter().copied().collect();
    occupied.extend(current.held.values().flatten().map(|block| block.cidr));
    let mut unmet: Vec<&BlockDemand> = demands.iter().collect();
    let mut given = Given::default();
    for pool in pools {
        let blocks = Blocks::new(pool.cidr, pool.block_prefix, &pool.reserved, &occupied);
        let mut free = rested(&blocks, &current.freed);
        let mut left = blocks.free_count();
        unmet.retain(|demand| {
            if given.meets(demand) {
                return false;
            }
            if !demand.pools.contains(&pool.name) {
                return true;
            }
            let Some(cidr) = free.next() else {
                return true;
            };
            left = left.saturating_sub(1);
            // Pools that overlap are refused before they come here; should they come, they still share no block.
            occupied.push(cidr);
            given.insert(demand, pool);
            let pool = pool.name.clone();
            assignment
                .create
                .push((demand.node.clone(), Block { pool, cidr }));
            false
        });
        assignment.free.insert(pool.name.clone(), left);
    }
    for demand in unmet.into_iter().filter(|demand| !given.meets(demand)) {
        let lacking = match demand.purpose {
            Purpose::Initial => &mut assignment.exhausted,
            Purpose::LowCapacity => &mut assignment.scarce,
            Purpose::Spillover => continue,
        };
        let mut orphans = current.orphans.iter();
        let reclaim = &mut assignment.reclaim;
        let orphan =
            orphans.find(|it| demand.pools.contains(&it.pool) && !reclaim.contains(&it.cidr));
        if let Some(orphan) = orphan {
            // The demand is met by the plan that sees the block free.
            reclaim.insert(orphan.cidr);
            continue;
        }
        for pool in &demand.pools {
            let nodes = lacking.entry(pool.clone()).or_default();
            nodes.insert(demand.node.clone());
        }
    }
    assignment
}

/// The blocks that nodes get here, by node and pool.
#[derive(Default)]
struct Given<'a>(BTreeSet<(&'a str, &'a str)>);

impl<'a> Given<'a> {
    fn insert(&mut self, demand: &'a BlockDemand, pool: &'a Pool) {
        self.0.insert((&demand.node, &pool.name));
    }

    /// Whether a block that was wanted for something else will do.
    fn meets(&self, demand: &BlockDemand) -> bool {
        let mut pools = demand.pools.iter();
        demand.purpose == Purpose::Initial
            && pools.any(|pool| self.0.contains(&(demand.node.as_str(), pool.as_str())))
    }
}

/// Free blocks in the order in which they are to be used.
fn rested(blocks: &Blocks, freed: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let never_used = blocks.free().filter(|block| !freed.contains(block));
    let given_back = freed.iter().copied().filter(|block| blocks.is_free(block));
    never_used.chain(given_back)
}
