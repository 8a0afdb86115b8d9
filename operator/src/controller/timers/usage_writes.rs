//! [`UsageWriteTimes`]: when this leader last wrote the utilization of each pool.
//!
//! Each new pod changes the utilization, and each write reaches every watch of IPPools. So a status that differs only
//! in its utilization is written with a delay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::plan::model::cluster_state::Plan;

/// Minimum interval between two status writes of a pool that differ only in the utilization.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Times of the last status writes of pools, by name.
#[derive(Debug, Default)]
pub struct UsageWriteTimes {
    written: BTreeMap<String, Instant>,
}

impl UsageWriteTimes {
    /// Clears the state when another operator is the leader.
    pub fn clear(&mut self) {
        self.written.clear();
    }

    /// The pools whose utilization must not be written at `now`.
    pub fn recent(&mut self, now: Instant) -> BTreeSet<String> {
        self.written
            .retain(|_, at| now.saturating_duration_since(*at) < MIN_INTERVAL);
        self.written.keys().cloned().collect()
    }

    /// Records that `plan` is applied at `now`.
    pub fn record(&mut self, plan: &Plan, now: Instant) {
        let written = plan.pool_statuses.iter();
        self.written
            .extend(written.map(|change| (change.name.clone(), now)));
    }

    /// Time until the utilization of the next pool may be written; `None`: no pool waits.
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

    /// Fifty pods start each second for a minute. The status writes of the pool are counted.
    #[test]
    fn pool_usage_is_written_every_ten_seconds() {
        let (mut cluster, mut write_times) = (cluster(3), UsageWriteTimes::default());
        cluster.reconcile();
        cluster.agents_report(0);
        cluster.reconcile();
        let start = Instant::now();
        let mut writes = Vec::new();
        for tenth in 0..600_u32 {
            let now = start + Duration::from_millis(100) * tenth;
            cluster.agents_report(i64::from(tenth % 40));
            cluster.recent_usage_writes = write_times.recent(now);
            let plan = cluster.step();
            write_times.record(&plan, now);
            if !plan.pool_statuses.is_empty() {
                writes.push(tenth);
            }
            assert!(plan.networks.update.is_empty() && plan.mode_statuses.is_empty());
        }
        assert_eq!(writes, [1, 101, 201, 301, 401, 501]);
        assert_eq!(
            write_times.next(start + Duration::from_secs(59)),
            Some(Duration::from_millis(1100))
        );
    }

    #[test]
    fn other_pool_status_changes_are_written_at_once() {
        let (mut cluster, mut write_times) = (cluster(1), UsageWriteTimes::default());
        let now = Instant::now();
        write_times.record(&cluster.step(), now);
        cluster.reconcile();
        cluster.agents_report(7);
        cluster.recent_usage_writes = write_times.recent(now);
        assert!(cluster.plan().pool_statuses.is_empty());
        cluster.pools[0].spec.disabled = true;
        let plan = cluster.plan();
        let usage = plan.pool_statuses[0].status.usage.unwrap();
        assert_eq!(usage.addresses.used, 7);
        // A new leader has no recorded writes.
        write_times.clear();
        assert_eq!(
            (write_times.recent(now).len(), write_times.next(now)),
            (0, None)
        );
    }
}
