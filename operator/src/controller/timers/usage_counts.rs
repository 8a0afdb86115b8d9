//! [`Counts`]: when this leader last wrote how much of each pool is in use.
//!
//! Each pod that starts changes the counts, and each write of them reaches every watch of the pools. So a status in which nothing else
//! is new waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::plan::model::cluster_state::Plan;

/// The least time between two writes of a pool's status in which only the counts are new.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// When statuses of pools were written, by name.
#[derive(Debug, Default)]
pub struct Counts {
    written: BTreeMap<String, Instant>,
}

impl Counts {
    /// Clears the state when another operator leads.
    pub fn clear(&mut self) {
        self.written.clear();
    }

    /// The pools whose counts have to wait at `now`.
    pub fn lately(&mut self, now: Instant) -> BTreeSet<String> {
        self.written
            .retain(|_, at| now.saturating_duration_since(*at) < MIN_INTERVAL);
        self.written.keys().cloned().collect()
    }

    /// `plan` is carried out at `now`.
    pub fn note(&mut self, plan: &Plan, now: Instant) {
        let written = plan.pool_statuses.iter();
        self.written
            .extend(written.map(|change| (change.name.clone(), now)));
    }

    /// How long until counts that wait may be written; `None`: none wait.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = self
            .written
            .values()
            .map(|at| MIN_INTERVAL.saturating_sub(now.saturating_duration_since(*at)));
        left.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;

    /// Fifty pods start each second, for a minute: of the writes of the pool's status, counted by the second.
    #[test]
    fn pool_usage_counts_are_written_every_ten_seconds() {
        let (mut cluster, mut counts) = (cluster(3), Counts::default());
        cluster.settle();
        cluster.agents_report(0);
        cluster.settle();
        let start = Instant::now();
        let mut writes = Vec::new();
        for tenth in 0..600_u32 {
            let now = start + Duration::from_millis(100) * tenth;
            cluster.agents_report(i64::from(tenth % 40));
            cluster.counted_lately = counts.lately(now);
            let plan = cluster.step();
            counts.note(&plan, now);
            if !plan.pool_statuses.is_empty() {
                writes.push(tenth);
            }
            assert!(plan.networks.update.is_empty() && plan.mode_statuses.is_empty());
        }
        assert_eq!(writes, [1, 101, 201, 301, 401, 501]);
        assert_eq!(
            counts.next(start + Duration::from_secs(59)),
            Some(Duration::from_millis(1100))
        );
    }

    #[test]
    fn other_pool_status_changes_are_written_at_once() {
        let (mut cluster, mut counts) = (cluster(1), Counts::default());
        let now = Instant::now();
        counts.note(&cluster.step(), now);
        cluster.settle();
        cluster.agents_report(7);
        cluster.counted_lately = counts.lately(now);
        assert!(cluster.plan().pool_statuses.is_empty());
        cluster.pools[0].spec.disabled = true;
        let plan = cluster.plan();
        let usage = plan.pool_statuses[0].status.usage.unwrap();
        assert_eq!(usage.addresses.used, 7);
        // A new leader knows of no write, and counts.
        counts.clear();
        assert_eq!((counts.lately(now).len(), counts.next(now)), (0, None));
    }
}
