//! Objects that another program changes after each repair, and the delay of the next repair. Pure: the caller passes the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// A contention ends when the object has not been repaired for this time.
const RESET_AFTER: Duration = Duration::from_secs(60);
/// Number of repairs in a row without a delay.
const MAX_IMMEDIATE_REPAIRS: u32 = 20;
/// Number of repairs in a row with [`MIN_DELAY`], which take a minute. After that the delay grows.
const MAX_MIN_DELAY_REPAIRS: u32 = 600;
/// The first delay. It is small compared with the time in which a repair has to take place.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Recently repaired objects by name.
#[derive(Debug, Default)]
pub struct Contentions(BTreeMap<String, Contention>);

#[derive(Debug)]
struct Contention {
    /// Repairs in a row.
    times: u32,
    /// Time of the last repair.
    last: Instant,
    /// The process that changed the object last, if known.
    by: Option<String>,
}

impl Contention {
    fn delay(&self) -> Duration {
        match self.times {
            ..MAX_IMMEDIATE_REPAIRS => Duration::ZERO,
            MAX_IMMEDIATE_REPAIRS..MAX_MIN_DELAY_REPAIRS => MIN_DELAY,
            MAX_MIN_DELAY_REPAIRS.. => MIN_DELAY
                .saturating_mul(1 << (self.times - MAX_MIN_DELAY_REPAIRS).min(10))
                .min(MAX_DELAY),
        }
    }
}

impl Contentions {
    /// Drops the contentions that have ended.
    pub fn expire(&mut self, now: Instant) {
        self.0
            .retain(|_, contention| now.saturating_duration_since(contention.last) < RESET_AFTER);
    }

    /// Records a repair of an object that the process `by` has changed.
    pub fn add_repair(&mut self, object: &str, by: Option<&str>, now: Instant) {
        let contention = self.0.entry(object.to_owned()).or_insert(Contention {
            times: 0,
            last: now,
            by: None,
        });
        contention.times = contention.times.saturating_add(1);
        contention.last = now;
        if by.is_some() {
            contention.by = by.map(str::to_owned);
        }
    }

    /// The remaining delay of the next repair of an object; `None`: it can be repaired now.
    #[must_use]
    pub fn delay(&self, object: &str, now: Instant) -> Option<Duration> {
        let contention = self.0.get(object)?;
        let due = contention.last + contention.delay();
        (due > now).then(|| due - now)
    }

    /// The problems of objects that are changed after each repair.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let contentions = self
            .0
            .iter()
            .filter(|(_, contention)| contention.times >= MAX_IMMEDIATE_REPAIRS);
        contentions.map(|(object, contention)| {
            let by = contention.by.as_deref().unwrap_or("an unknown program");
            Problem::from(Cause::ChangedRepeatedly {
                object: object.clone(),
                by: by.to_owned(),
                times: contention.times,
            })
        })
    }

    /// How long until the first contention ends, without further repairs.
    #[must_use]
    pub fn next_end(&self, now: Instant) -> Option<Duration> {
        let contentions = self
            .0
            .values()
            .filter(|contention| contention.times >= MAX_IMMEDIATE_REPAIRS);
        contentions
            .map(|contention| (contention.last + RESET_AFTER).saturating_duration_since(now))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "route 10.244.1.0/26";

    fn contended(times: u32) -> (Contentions, Instant) {
        let now = Instant::now();
        let contention = Contention {
            times,
            last: now,
            by: Some("process 42 (ip)".to_owned()),
        };
        (Contentions([(OBJECT.to_owned(), contention)].into()), now)
    }

    #[test]
    fn contention_backoff_starts_late_and_grows() {
        let delay = |times| {
            let (contentions, now) = contended(times);
            contentions.delay(OBJECT, now)
        };
        assert_eq!(delay(0), None);
        assert_eq!(delay(MAX_IMMEDIATE_REPAIRS - 1), None);
        assert_eq!(delay(MAX_IMMEDIATE_REPAIRS), Some(MIN_DELAY));
        assert_eq!(delay(MAX_MIN_DELAY_REPAIRS - 1), Some(MIN_DELAY));
        assert_eq!(delay(MAX_MIN_DELAY_REPAIRS + 1), Some(MIN_DELAY * 2));
        assert_eq!(delay(u32::MAX), Some(MAX_DELAY));
        let (contentions, now) = contended(MAX_IMMEDIATE_REPAIRS);
        assert_eq!(contentions.delay(OBJECT, now + MIN_DELAY), None);
        assert_eq!(contentions.delay("link nw-ipip", now), None);
    }

    #[test]
    fn contention_names_last_process_and_ends_when_quiet() {
        let (mut contentions, now) = contended(MAX_IMMEDIATE_REPAIRS - 1);
        assert_eq!(contentions.problems().next(), None);
        contentions.add_repair(OBJECT, None, now);
        let [problem] = contentions
            .problems()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert_eq!(problem.subject, OBJECT);
        let message = problem.message;
        assert!(message.contains(OBJECT), "{message}");
        assert!(
            message.contains("process 42 (ip)") && message.contains("20 times"),
            "{message}"
        );
        assert_eq!(contentions.next_end(now), Some(RESET_AFTER));
        contentions.expire(now + RESET_AFTER / 2);
        assert_eq!(contentions.problems().count(), 1);
        contentions.expire(now + RESET_AFTER);
        assert_eq!(contentions.problems().next(), None);
        assert_eq!(contentions.next_end(now), None);
    }
}
