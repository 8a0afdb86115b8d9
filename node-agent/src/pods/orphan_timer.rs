//! How long orphan candidates have been candidates. Pure: the caller passes the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::pods::reclaim::OrphanCandidate;

/// How long an object has to be a candidate in every survey before it is reclaimed.
///
/// The grace period is not the only protection. The lock on a record shows an ADD in progress, however long it takes, and a DEL
/// deletes the link first and the record last. The grace period covers a wrong reading of the kernel, a runtime that moves a
/// link, and an administrator who restores a record. A leak occupies an address for this time.
pub const GRACE: Duration = Duration::from_secs(5);

/// The candidates, each with the time of its first survey.
#[derive(Debug, Default)]
pub struct OrphanTimer(BTreeMap<OrphanCandidate, Instant>);

impl OrphanTimer {
    /// Replaces the candidates by those of `now`, and returns the ones whose grace period is over.
    pub fn update(
        &mut self,
        now: Instant,
        candidates: BTreeSet<OrphanCandidate>,
    ) -> BTreeSet<OrphanCandidate> {
        let with_time = |candidate| {
            let since = self.0.get(&candidate).copied().unwrap_or(now);
            (candidate, since)
        };
        self.0 = candidates.into_iter().map(with_time).collect();
        let due = self
            .0
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= GRACE);
        due.map(|(candidate, _)| candidate.clone()).collect()
    }

    /// How long until the next grace period ends; `None` if none is running.
    #[must_use]
    pub fn next_due(&self, now: Instant) -> Option<Duration> {
        let remaining = |since: &Instant| GRACE.checked_sub(now.saturating_duration_since(*since));
        let remaining = self.0.values().filter_map(remaining);
        remaining.filter(|remaining| !remaining.is_zero()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> BTreeSet<OrphanCandidate> {
        [OrphanCandidate::Link("nw0123456789a".parse().unwrap())].into()
    }

    #[test]
    fn orphan_is_due_only_after_grace_period() {
        let (mut orphans, start) = (OrphanTimer::default(), Instant::now());
        assert_eq!(orphans.next_due(start), None);
        assert!(orphans.update(start, one()).is_empty());
        assert!(orphans.update(start + GRACE / 2, one()).is_empty());
        assert_eq!(orphans.next_due(start + GRACE / 2), Some(GRACE / 2));
        assert_eq!(orphans.update(start + GRACE, one()), one());
        assert_eq!(orphans.next_due(start + GRACE), None);
    }

    #[test]
    fn orphan_seen_alive_restarts_grace_period() {
        let (mut orphans, start) = (OrphanTimer::default(), Instant::now());
        orphans.update(start, one());
        orphans.update(start + GRACE / 2, BTreeSet::new());
        assert!(orphans.update(start + GRACE, one()).is_empty());
        assert!(orphans.update(start + GRACE * 3 / 2, one()).is_empty());
        assert_eq!(orphans.update(start + GRACE * 2, one()), one());
    }
}
