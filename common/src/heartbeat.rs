//! [`Heartbeat`]: whether a loop still runs. `/livez` fails for a stalled loop, so that the kubelet restarts the program.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval of the beats of an idle loop.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The time of the last beat of a loop.
#[derive(Debug)]
pub struct Heartbeat {
    limit: Duration,
    last: Mutex<Option<Instant>>,
}

impl Heartbeat {
    /// For a loop that has not started. After its first beat, the loop has stalled if `limit` passes without a beat.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: Mutex::new(None),
        }
    }

    /// The longest time between two beats of a loop that has not stalled.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Records that the loop has completed a round.
    pub fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The time since the last beat, if the loop has stalled.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let since = last?.elapsed();
        (since > self.limit).then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeat_stalls_only_after_first_beat() {
        let short = Heartbeat::new(Duration::ZERO);
        assert_eq!(short.stalled(), None);
        short.beat();
        std::thread::sleep(Duration::from_millis(1));
        assert!(short.stalled().is_some());
        let long = Heartbeat::new(Duration::from_secs(60));
        long.beat();
        assert_eq!(long.stalled(), None);
    }
}
