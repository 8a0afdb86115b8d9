//! [`AssignmentOrder`]: the order in which blocks are assigned.
//!
//! A leader assigns never used blocks first, then released ones, the longest released first. It has a time only for
//! releases that it has observed: for a new leader all free blocks are equal. The blocks of one plan are created concurrently,
//! so the order of two events proves nothing. But a block is a proof if it was free before an assignment, should have
//! been assigned first, and is still free when the cluster has converged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::input::InvariantConfig;

/// The free blocks from the view of the leader.
pub struct AssignmentOrder {
    pools: BTreeMap<String, Pool>,
    observation_interval: Duration,
}

#[derive(Default)]
struct Pool {
    free: BTreeSet<IpNet>,
    released: BTreeMap<IpNet, Instant>,
    /// Released blocks that were assigned again since the last check, with the time of the release.
    reassigned: Vec<(IpNet, Instant)>,
}

impl AssignmentOrder {
    /// No block is assigned.
    pub fn new(config: &InvariantConfig) -> Self {
        let pools = config.blocks.iter().map(|(name, blocks)| {
            let free = blocks.clone();
            let pool = Pool {
                free,
                ..Pool::default()
            };
            (name.clone(), pool)
        });
        Self {
            pools: pools.collect(),
            observation_interval: config.observation_interval,
        }
    }

    /// A new leader has observed no releases.
    pub fn reset(&mut self) {
        for pool in self.pools.values_mut() {
            pool.released.clear();
            pool.reassigned.clear();
        }
    }

    /// A block was assigned.
    pub fn assigned(&mut self, pool: &str, block: IpNet) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.free.remove(&block);
            let released = pool.released.remove(&block);
            pool.reassigned.extend(released.map(|at| (block, at)));
        }
    }

    /// A block was released.
    pub fn released(&mut self, pool: &str, block: IpNet, at: Instant) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.free.insert(block);
            pool.released.insert(block, at);
        }
    }

    /// Numbers of free blocks of a pool: never used, and released, as observed by the leader.
    pub fn free_blocks(&self, pool: &str) -> (usize, usize) {
        self.pools.get(pool).map_or((0, 0), |pool| {
            (pool.free.len() - pool.released.len(), pool.released.len())
        })
    }

    /// Violations of the order since the last check.
    pub fn check(&mut self) -> Vec<String> {
        let mut violations = Vec::new();
        for Pool {
            free,
            released,
            reassigned,
        } in self.pools.values_mut()
        {
            for (block, at) in reassigned.drain(..) {
                let mut unused = free.iter().filter(|block| !released.contains_key(*block));
                if let Some(unused) = unused.next() {
                    let violation =
                        format!("{block} was assigned again before {unused}, which was never used");
                    violations.push(violation);
                }
                // Releases within one observation of the leader have no order.
                let longer =
                    |(_, earlier): &(&IpNet, &Instant)| **earlier + self.observation_interval < at;
                if let Some((longer, _)) = released.iter().find(longer) {
                    let violation = format!(
                        "{block} was assigned again before {longer}, which was released earlier"
                    );
                    violations.push(violation);
                }
            }
        }
        violations
    }
}
