//! What has been suspect for how long. Pure: the clock is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::pods::reclaim::OrphanCandidate;

/// How long something has to be suspect, in every look from the first to the last, before it is taken away.
///
/// It protects nobody alone. An ADD is known by the lock on its record, however long it takes, and a DEL removes the link
/// first and the record at the end, so both are seen for what they are. The pause covers what neither shows: one reading of
/// the kernel that was wrong, a runtime that moves a link, an administrator who puts a record back. A leak costs one address
/// for this long.
pub const GRACE: Duration = Duration::from_secs(5);

/// The suspects, and since when.
#[derive(Debug, Default)]
pub struct OrphanTimer(BTreeMap<OrphanCandidate, Instant>);

impl OrphanTimer {
    /// Records what is suspect `now`, forgets the rest, and returns what has been suspect for [`GRACE`].
    pub fn observe(
        &mut self,
        now: Instant,
        suspects: BTreeSet<OrphanCandidate>,
    ) -> BTreeSet<OrphanCandidate> {
        let since = |suspect| {
            let first = self.0.get(&suspect).copied().unwrap_or(now);
            (suspect, first)
        };
        self.0 = suspects.into_iter().map(since).collect();
        let old = self
            .0
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= GRACE);
        old.map(|(suspect, _)| suspect.clone()).collect()
    }

    /// How long until the next of them has been suspect long enough; `None` if all have.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Duration> {
        let left = |since: &Instant| GRACE.checked_sub(now.saturating_duration_since(*since));
        let left = self.0.values().filter_map(left);
        left.filter(|left| !left.is_zero()).min()
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
        assert_eq!(orphans.due(start), None);
        assert!(orphans.observe(start, one()).is_empty());
        assert!(orphans.observe(start + GRACE / 2, one()).is_empty());
        assert_eq!(orphans.due(start + GRACE / 2), Some(GRACE / 2));
        assert_eq!(orphans.observe(start + GRACE, one()), one());
        assert_eq!(orphans.due(start + GRACE), None);
    }

    #[test]
    fn orphan_seen_alive_restarts_grace_period() {
        let (mut orphans, start) = (OrphanTimer::default(), Instant::now());
        orphans.observe(start, one());
        orphans.observe(start + GRACE / 2, BTreeSet::new());
        assert!(orphans.observe(start + GRACE, one()).is_empty());
        assert!(orphans.observe(start + GRACE * 3 / 2, one()).is_empty());
        assert_eq!(orphans.observe(start + GRACE * 2, one()), one());
    }
}
