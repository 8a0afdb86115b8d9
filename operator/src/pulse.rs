//! [`Pulse`]: whether the loop still comes round.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// When something that should happen again and again happened last.
#[derive(Debug)]
pub struct Pulse {
    limit: Duration,
    last: Mutex<Option<Instant>>,
}

impl Pulse {
    /// It has not begun yet. Once it has, more than `limit` between two beats is too long.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: Mutex::new(None),
        }
    }

    /// It happened.
    pub fn beat(&self) {
        *self.last() = Some(Instant::now());
    }

    /// For how long it has not happened, if that is too long.
    #[must_use]
    pub fn overdue(&self) -> Option<Duration> {
        let since = (*self.last())?.elapsed();
        (since > self.limit).then_some(since)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // Nothing panics while it holds the lock, and the value is whole at all times.
        self.last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
