//! Log lines about dropped packets: at most one per minute and tunnel, and none without new drops.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::counters::DropReason;
use crate::metrics::Metrics;

const INTERVAL: Duration = Duration::from_secs(60);

type Counts = [u64; DropReason::ALL.len()];

/// The counts that were logged, and the time of the next log lines.
pub struct Report {
    metrics: Metrics,
    logged: BTreeMap<String, Counts>,
    next: Instant,
}

impl Report {
    /// Without logged counts.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            logged: BTreeMap::new(),
            next: Instant::now() + INTERVAL,
        }
    }

    /// Logs new drops once per interval.
    pub fn log(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + INTERVAL;
        let counts = self.metrics.drops();
        for (link, now) in &counts {
            let before = self.logged.get(link).copied().unwrap_or_default();
            if let Some(reasons) = more(&before, now) {
                warn!(link, reasons, "dropped packets");
            }
        }
        self.logged = counts;
    }
}

/// The difference by reason, or `None` without one. A reopened tunnel counts from zero.
fn more(before: &Counts, now: &Counts) -> Option<String> {
    let all = DropReason::ALL.into_iter().zip(before.iter().zip(now));
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
        assert_eq!(
            more(&now, &before).unwrap(),
            "no_peer 5",
            "counts of a reopened tunnel"
        );
    }
}
