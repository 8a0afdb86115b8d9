//! [`Reuse`]: in which order blocks are given away again.
//!
//! A leader gives away what nobody has had, and then what was given back the longest ago, of what it has seen itself: to a
//! new leader all free blocks are alike. Within one plan blocks are created side by side, so the order of two events says
//! nothing. But what was free before a block was given, should have gone first, and is free still when all is at rest,
//! says enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::words::Rules;

/// What the present leader knows of free blocks.
pub struct Reuse {
    pools: BTreeMap<String, Pool>,
    look: Duration,
}

#[derive(Default)]
struct Pool {
    free: BTreeSet<IpNet>,
    freed: BTreeMap<IpNet, Instant>,
    /// Given away again since all was at rest, and when they had been freed.
    again: Vec<(IpNet, Instant)>,
}

impl Reuse {
    /// Nothing has been given.
    pub fn new(rules: &Rules) -> Self {
        let pools = rules.blocks.iter().map(|(name, blocks)| {
            let free = blocks.clone();
            let pool = Pool {
                free,
                ..Pool::default()
            };
            (name.clone(), pool)
        });
        Self {
            pools: pools.collect(),
            look: rules.look,
        }
    }

    /// Another leader begins, who knows of none that it was used.
    pub fn leads_anew(&mut self) {
        for pool in self.pools.values_mut() {
            pool.freed.clear();
            pool.again.clear();
        }
    }

    /// A block was given away.
    pub fn given(&mut self, pool: &str, block: IpNet) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.free.remove(&block);
            let freed = pool.freed.remove(&block);
            pool.again.extend(freed.map(|at| (block, at)));
        }
    }

    /// A block was given back.
    pub fn freed(&mut self, pool: &str, block: IpNet, at: Instant) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.free.insert(block);
            pool.freed.insert(block, at);
        }
    }

    /// Free blocks of a pool: never used, and freed, as far as the leader knows.
    pub fn free(&self, pool: &str) -> (usize, usize) {
        self.pools.get(pool).map_or((0, 0), |pool| {
            (pool.free.len() - pool.freed.len(), pool.freed.len())
        })
    }

    /// What should have been given away before what was.
    pub fn at_rest(&mut self) -> Vec<String> {
        let mut breaches = Vec::new();
        for Pool { free, freed, again } in self.pools.values_mut() {
            for (block, at) in again.drain(..) {
                let mut unused = free.iter().filter(|block| !freed.contains_key(*block));
                if let Some(unused) = unused.next() {
                    let breach =
                        format!("{block} was given again before {unused}, which was never used");
                    breaches.push(breach);
                }
                // What one look of the leader finds freed has no order.
                let longer = |(_, earlier): &(&IpNet, &Instant)| **earlier + self.look < at;
                if let Some((longer, _)) = freed.iter().find(longer) {
                    let breach = format!(
                        "{block} was given again before {longer}, which was free for longer"
                    );
                    breaches.push(breach);
                }
            }
        }
        breaches
    }
}
