//! How long after a failure something is tried again.

use std::time::Duration;

/// After the first failure, and the longest; doubled each time in between.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Failures in a row.
#[derive(Debug, Default)]
pub struct Retry(u32);

impl Retry {
    /// It has failed once more. Returns how long to wait.
    pub fn failed(&mut self) -> Duration {
        let pause = RETRY.0.saturating_mul(1 << self.0.min(10));
        self.0 = self.0.saturating_add(1);
        pause.min(RETRY.1)
    }

    /// It has succeeded.
    pub fn succeeded(&mut self) {
        self.0 = 0;
    }
}
