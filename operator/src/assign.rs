//! `assign`: which node gets which block.
//!
//! A node that has no block of a pool gets the lowest free one; what a node has, it keeps. The API server has the last
//! word: a block is owned because creating its NodeSubnet succeeded, so an assignment made from an old picture does
//! no harm. Nothing is taken away here; blocks go when their node has gone (`subnets`).

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
}

/// What is to be created, and what could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// New blocks by node.
    pub create: Vec<(String, Block)>,
    /// Nodes, by pool, for which no block was left.
    pub exhausted: BTreeMap<String, BTreeSet<String>>,
    /// Free blocks by pool, after this assignment.
    pub free: BTreeMap<String, u128>,
}

/// Assigns a block of each pool to each node that may draw from it and has none.
///
/// `pools` come in the order of their rights, `nodes` are the pools each node may draw from.
#[must_use]
pub fn assign<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    nodes: &BTreeMap<String, BTreeSet<String>>,
    current: &Current,
) -> Assignment {
    let mut assignment = Assignment::default();
    let mut occupied: Vec<IpNet> = current.foreign.iter().copied().collect();
    occupied.extend(current.held.values().flatten().map(|block| block.cidr));
    for pool in pools {
        let blocks = Blocks::new(pool.cidr, pool.block_prefix, &pool.reserved, &occupied);
        let (created, exhausted) = assign_pool(pool, &blocks, nodes, current);
        let used = u128::try_from(created.len()).unwrap_or(u128::MAX);
        let free = blocks.free_count().saturating_sub(used);
        // Pools that overlap are refused before they come here; should they come, they still share no block.
        occupied.extend(created.iter().map(|(_, block)| block.cidr));
        assignment.create.extend(created);
        assignment.free.insert(pool.name.clone(), free);
        if !exhausted.is_empty() {
            assignment.exhausted.insert(pool.name.clone(), exhausted);
        }
    }
    assignment
}

fn assign_pool(
    pool: &Pool,
    blocks: &Blocks,
    nodes: &BTreeMap<String, BTreeSet<String>>,
    current: &Current,
) -> (Vec<(String, Block)>, BTreeSet<String>) {
    let mut free = blocks.free();
    let mut created = Vec::new();
    let mut exhausted = BTreeSet::new();
    for (node, allowed) in nodes {
        if !pool.open || !allowed.contains(&pool.name) || holds(current, node, &pool.name) {
            continue;
        }
        match free.next() {
            Some(cidr) => {
                let pool = pool.name.clone();
                created.push((node.clone(), Block { pool, cidr }));
            }
            None => {
                exhausted.insert(node.clone());
            }
        }
    }
    (created, exhausted)
}

fn holds(current: &Current, node: &str, pool: &str) -> bool {
    let held = current.held.get(node);
    held.is_some_and(|blocks| blocks.iter().any(|block| block.pool == pool))
}

#[cfg(test)]
mod tests;
