//! `assign`: which node gets which block.
//!
//! A node that has no block of a pool gets one, and then each that runs short of addresses; what a node has, it keeps.
//! Blocks that nobody has had go first, the lowest before the others, then the one that was given back the longest ago: what is
//! left of its last owner, in caches and connections, gets time to end. The API server has the last word: a block is owned
//! because creating its NodeSubnet succeeded, so an assignment made from an old picture does no harm. Nothing is taken away here
//! (`subnets`).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::blocks::Blocks;
use crate::pool::Pool;

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
    /// Blocks whose owner is not known.
    pub foreign: BTreeSet<IpNet>,
    /// Blocks that were given back, the longest ago first.
    pub freed: Vec<IpNet>,
}

/// Who may and who must get blocks.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The pools each node may draw from.
    pub pools: BTreeMap<String, BTreeSet<String>>,
    /// Nodes that run short of addresses, by pool.
    pub short: BTreeMap<String, BTreeSet<String>>,
}

/// What is to be created, and what could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// New blocks by node.
    pub create: Vec<(String, Block)>,
    /// Nodes, by pool, that have no block and for which none was left.
    pub exhausted: BTreeMap<String, BTreeSet<String>>,
    /// Nodes, by pool, that run short of addresses and for which no block was left.
    pub scarce: BTreeMap<String, BTreeSet<String>>,
    /// Free blocks by pool, after this assignment.
    pub free: BTreeMap<String, u128>,
}

/// Assigns a block of each pool to each node that may draw from it and has none or too few addresses.
///
/// `pools` come in the order of their rights.
#[must_use]
pub fn assign<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    needs: &Needs,
    current: &Current,
) -> Assignment {
    let mut assignment = Assignment::default();
    let mut occupied: Vec<IpNet> = current.foreign.iter().copied().collect();
    occupied.extend(current.held.values().flatten().map(|block| block.cidr));
    for pool in pools {
        let blocks = Blocks::new(pool.cidr, pool.block_prefix, &pool.reserved, &occupied);
        let mut free = rested(&blocks, &current.freed);
        let mut left = blocks.free_count();
        let mut give = |nodes: BTreeSet<&String>| {
            let mut without = BTreeSet::new();
            for node in nodes {
                let Some(cidr) = free.next() else {
                    without.insert(node.clone());
                    continue;
                };
                left = left.saturating_sub(1);
                // Pools that overlap are refused before they come here; should they come, they still share no block.
                occupied.push(cidr);
                let pool = pool.name.clone();
                let block = Block { pool, cidr };
                assignment.create.push((node.clone(), block));
            }
            without
        };
        let exhausted = give(without_block(pool, needs, current));
        let scarce = give(short(pool, needs));
        let name = || pool.name.clone();
        assignment.free.insert(name(), left);
        if !exhausted.is_empty() {
            assignment.exhausted.insert(name(), exhausted);
        }
        if !scarce.is_empty() {
            assignment.scarce.insert(name(), scarce);
        }
    }
    assignment
}

/// Free blocks in the order in which they are to be used.
fn rested(blocks: &Blocks, freed: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let never_used = blocks.free().filter(|block| !freed.contains(block));
    let given_back = freed.iter().copied().filter(|block| blocks.is_free(block));
    never_used.chain(given_back)
}

/// Nodes that have no block of the pool and are to get one.
fn without_block<'n>(pool: &Pool, needs: &'n Needs, current: &Current) -> BTreeSet<&'n String> {
    let nodes = needs.pools.iter();
    let nodes = nodes.filter(|(node, pools)| {
        pool.open && pools.contains(&pool.name) && !holds(current, node, &pool.name)
    });
    nodes.map(|(node, _)| node).collect()
}

/// Nodes that run short of the pool's addresses and are to get more.
fn short<'n>(pool: &Pool, needs: &'n Needs) -> BTreeSet<&'n String> {
    let nodes = needs.short.get(&pool.name).into_iter().flatten();
    let may = |node: &&String| {
        let pools = needs.pools.get(*node);
        pool.open && pools.is_some_and(|pools| pools.contains(&pool.name))
    };
    nodes.filter(may).collect()
}

fn holds(current: &Current, node: &str, pool: &str) -> bool {
    let held = current.held.get(node);
    held.is_some_and(|blocks| blocks.iter().any(|block| block.pool == pool))
}

#[cfg(test)]
mod tests;
