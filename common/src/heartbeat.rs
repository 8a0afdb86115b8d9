//! [`Heartbeat`]: whether a loop still runs. A program whose loop hangs has to be restarted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often an idle loop shows that it runs.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// When a loop came round last.
#[derive(Debug)]
pub struct Heartbeat {
    limit: Duration,
    last: Mutex<Option<Instant>>,
}

impl Heartbeat {
    /// The loop has not begun yet. Once it has, more than `limit` between two beats is a stall.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: Mutex::new(None),
        }
    }

    /// The time between two beats that is no stall yet.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The loop has come round.
    pub fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago the loop came round last, if it has stalled.
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
