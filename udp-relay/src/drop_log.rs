//! Dropped packets in the log: a line a minute at most for each tunnel, and none if there is nothing new.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::counters::Drop;
use crate::metrics::Metrics;

const INTERVAL: Duration = Duration::from_secs(60);

type Counts = [u64; Drop::ALL.len()];

/// What has been told.
pub struct Report {
    metrics: Metrics,
    told: BTreeMap<String, Counts>,
    next: Instant,
}

impl Report {
    /// Nothing has been told.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            told: BTreeMap::new(),
            next: Instant::now() + INTERVAL,
        }
    }

    /// Tells what is new, when it is time.
    pub fn tell(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + INTERVAL;
        let counts = self.metrics.drops();
        for (link, now) in &counts {
            let before = self.told.get(link).copied().unwrap_or_default();
            if let Some(reasons) = more(&before, now) {
                warn!(link, reasons, "dropped packets");
            }
        }
        self.told = counts;
    }
}

/// What has been added, in words. Counts begin anew with a tunnel that is opened again.
fn more(before: &Counts, now: &Counts) -> Option<String> {
    let all = Drop::ALL.into_iter().zip(before.iter().zip(now));
    let words: Vec<String> = all
        .map(|(reason, (before, now))| (reason, now.checked_sub(*before).unwrap_or(*now)))
        .filter(|(_, more)| *more > 0)
        .map(|(reason, more)| format!("{} {more}", reason.label()))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_report_lists_only_new_counts() {
        let mut before = Counts::default();
        assert_eq!(more(&before, &before), None);
        before[0] = 5;
        let mut now = before;
        now[0] = 7;
        now[4] = 1;
        assert_eq!(more(&before, &now).unwrap(), "no_peer 2, not_a_peer 1");
        assert_eq!(more(&now, &before).unwrap(), "no_peer 5", "begun anew");
    }
}
