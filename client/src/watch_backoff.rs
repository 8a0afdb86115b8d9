//! How long a broken watch waits before it is started again.

use std::time::{Duration, Instant};

use kube::runtime::utils;
use netweft_common::backoff::Backoff;

/// Limit of the first delay.
const FIRST: Duration = Duration::from_millis(1600);
/// The library's own backoff grows to half a minute, and an outage of the API server costs two delays: the first answer after
/// it is as a rule that the watch has to list again. For so long a node would not hear of a neighbour that joins.
const MAXIMUM: Duration = Duration::from_secs(4);
/// A watch that has lived for so long does not count earlier failures, whether it had events or not.
const HEALTHY: Duration = Duration::from_secs(120);

/// The backoff of a watch.
#[derive(Clone, Debug)]
pub struct WatchBackoff {
    backoff: Backoff,
    last: Option<Instant>,
}

impl WatchBackoff {
    fn next_delay(&mut self, now: Instant) -> Duration {
        let last = self.last.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) > HEALTHY) {
            self.backoff.reset();
        }
        self.backoff.next_delay()
    }
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(FIRST, MAXIMUM),
            last: None,
        }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_delay(Instant::now()))
    }
}

impl utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_backoff_during_long_outage_is_bounded_and_jittered() {
        let delays: Vec<Duration> = WatchBackoff::default().take(200).collect();
        assert_eq!(delays.len(), 200, "it never gives up");
        assert!(delays.iter().all(|delay| *delay <= MAXIMUM));
        assert!(delays.iter().sum::<Duration>() > Duration::from_secs(300));
        assert_ne!(delays[198], delays[199]);
    }

    #[test]
    fn watch_backoff_forgets_failures_of_long_ago() {
        let (mut backoff, start) = (WatchBackoff::default(), Instant::now());
        for _ in 0..5 {
            backoff.next_delay(start);
        }
        assert!(backoff.next_delay(start + HEALTHY) > FIRST);
        assert!(backoff.next_delay(start + HEALTHY * 3) <= FIRST);
    }
}
