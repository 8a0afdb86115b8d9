//! [`Backoff`]: how long to wait before a failed attempt is repeated.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential backoff with jitter and a maximum.
///
/// The limit of a delay doubles with each failure in a row, up to the maximum. The delay is random between half of the limit and
/// the limit, so that many programs do not repeat their attempts at the same time.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    maximum: Duration,
    failures: u32,
}

impl Backoff {
    /// `first` limits the delay after the first failure, and `maximum` each delay.
    #[must_use]
    pub const fn new(first: Duration, maximum: Duration) -> Self {
        Self {
            first,
            maximum,
            failures: 0,
        }
    }

    /// The attempt has failed. Returns how long to wait before the next.
    pub fn next_delay(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(31));
        self.failures = self.failures.saturating_add(1);
        let half = doubled.min(self.maximum) / 2;
        half + half.mul_f64(random_fraction())
    }

    /// The attempt has succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// From 0 to 1. The keys of the standard library's hash maps are random, and each is another.
fn random_fraction() -> f64 {
    let random = RandomState::new().build_hasher().finish() >> 32;
    u32::try_from(random).map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const MAXIMUM: Duration = Duration::from_secs(30);

    #[test]
    fn backoff_limit_doubles_up_to_maximum() {
        let mut backoff = Backoff::new(FIRST, MAXIMUM);
        for limit in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let (limit, delay) = (Duration::from_millis(limit), backoff.next_delay());
            assert!((limit / 2..=limit).contains(&delay), "{delay:?} {limit:?}");
        }
        backoff.failures = u32::MAX;
        assert!((MAXIMUM / 2..=MAXIMUM).contains(&backoff.next_delay()));
    }

    #[test]
    fn delays_of_programs_that_fail_together_differ() {
        let delay = || Backoff::new(FIRST, MAXIMUM).next_delay();
        let delays: BTreeSet<Duration> = (0..1000).map(|_| delay()).collect();
        assert!(delays.len() > 900, "{}", delays.len());
        let spread = *delays.last().unwrap() - *delays.first().unwrap();
        assert!(spread > FIRST * 2 / 5, "{spread:?}");
    }

    #[test]
    fn backoff_starts_again_after_reset() {
        let mut backoff = Backoff::new(FIRST, MAXIMUM);
        for _ in 0..5 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
