//! How long a broken watch waits before it is tried again.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;

/// The library's waits, none longer than a few seconds.
///
/// Left alone they grow to a minute, and an outage of the API server costs two of them: the first answer after it is as a
/// rule that the watch has to begin anew. For so long a node would not hear of a neighbour that joins.
#[derive(Default)]
pub struct Patience(DefaultBackoff);

impl Patience {
    const LONGEST: Duration = Duration::from_secs(4);
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0.next()?;
        if wait <= Self::LONGEST {
            return Some(wait);
        }
        // What is chance in a longer wait stays chance, so that a thousand nodes do not all come at once.
        let half = Self::LONGEST / 2;
        let chance = wait.as_nanos() % half.as_nanos();
        Some(half + Duration::from_nanos(u64::try_from(chance).unwrap_or_default()))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_backoff_during_long_outage_is_bounded_and_jittered() {
        let waits: Vec<Duration> = Patience::default().take(200).collect();
        assert_eq!(waits.len(), 200, "it never gives up");
        assert!(waits.iter().all(|wait| *wait <= Patience::LONGEST));
        assert!(waits.iter().sum::<Duration>() > Duration::from_secs(300));
        let (first, second) = (waits[198], waits[199]);
        assert_ne!(first, second, "chance is left");
    }
}
