//! Delays before failed requests and watches are repeated.
//!
//! The limit of a delay doubles with each consecutive failure, up to a maximum. A delay is random between half of the limit
//! and the limit, so that many programs do not repeat their requests at the same time.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::ExponentialBackoff;

/// Limits of the first delay and of each delay of a watch. The default of kube grows to 30 s. An outage of the API server
/// costs two delays, because the watch usually has to list the objects again: a node would add the routes to a new node a
/// minute late.
const WATCH: (Duration, Duration) = (Duration::from_millis(1600), Duration::from_secs(4));
/// Age at which a watch resets its backoff, with or without events.
const HEALTHY: Duration = Duration::from_secs(120);

/// The backoff of a watch.
pub type WatchBackoff = ResetTimerBackoff<ExponentialBackoff>;

/// A backoff without a maximum number of attempts. `first` limits the delay after the first failure, `maximum` each delay.
#[must_use]
pub fn exponential(first: Duration, maximum: Duration) -> ExponentialBackoff {
    // The jitter of the library adds at most the delay itself.
    ExponentialBuilder::new()
        .with_min_delay(first / 2)
        .with_max_delay(maximum / 2)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .into()
}

/// The backoff of a new watch.
#[must_use]
pub fn of_watch() -> WatchBackoff {
    ResetTimerBackoff::new(exponential(WATCH.0, WATCH.1), HEALTHY)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kube::runtime::utils::Backoff;

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const MAXIMUM: Duration = Duration::from_secs(30);

    #[test]
    fn backoff_limit_doubles_up_to_maximum_and_resets() {
        let mut backoff = exponential(FIRST, MAXIMUM);
        for limit in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let limit = Duration::from_millis(limit);
            let delay = backoff.next().unwrap();
            assert!((limit / 2..=limit).contains(&delay), "{delay:?} {limit:?}");
        }
        backoff.reset();
        assert!(backoff.next().unwrap() <= FIRST);
    }

    /// The library uses a constant seed without its feature `std`.
    #[test]
    fn backoff_delays_of_concurrent_programs_differ() {
        let delay = || exponential(FIRST, MAXIMUM).next().unwrap();
        let delays: BTreeSet<Duration> = (0..1000).map(|_| delay()).collect();
        assert!(delays.len() > 900, "{}", delays.len());
        let spread = *delays.last().unwrap() - *delays.first().unwrap();
        assert!(spread > FIRST * 2 / 5, "{spread:?}");
    }

    #[test]
    fn watch_backoff_during_long_outage_is_bounded_and_jittered() {
        let delays: Vec<Duration> = of_watch().take(200).collect();
        assert_eq!(delays.len(), 200, "the backoff never ends");
        assert!(delays.iter().all(|delay| *delay <= WATCH.1));
        assert!(delays.iter().sum::<Duration>() > Duration::from_secs(300));
        assert_ne!(delays[198], delays[199]);
    }
}
