//! Who changes what is ours again and again, and how long to wait before it is put right once more. Pure: the clock is the
//! caller's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// What has been left alone for so long is no longer fought over.
const RESET_AFTER: Duration = Duration::from_secs(60);
/// So many times in a row a thing is put right at once.
const MAX_IMMEDIATE_REPAIRS: u32 = 20;
/// So many times it is put right at [`PACE`], which is a minute of it; after that ever more slowly.
const PACED: u32 = 600;
/// Time between two repairs of one thing that is fought over: a tenth of what a repair may take still feels like at once.
const PACE: Duration = Duration::from_millis(100);
/// The longest time between two.
const SLOWEST: Duration = Duration::from_secs(10);

/// What has been put right lately, by its name.
#[derive(Debug, Default)]
pub struct Contentions(BTreeMap<String, Contention>);

#[derive(Debug)]
struct Contention {
    times: u32,
    last: Instant,
    by: Option<String>,
}

impl Contention {
    fn pause(&self) -> Duration {
        match self.times {
            ..MAX_IMMEDIATE_REPAIRS => Duration::ZERO,
            MAX_IMMEDIATE_REPAIRS..PACED => PACE,
            PACED.. => PACE
                .saturating_mul(1 << (self.times - PACED).min(10))
                .min(SLOWEST),
        }
    }
}

impl Contentions {
    /// Forgets what has been quiet.
    pub fn observe(&mut self, now: Instant) {
        self.0
            .retain(|_, contention| now.saturating_duration_since(contention.last) < RESET_AFTER);
    }

    /// `what` has just been put right, and `by` had changed it, as far as that is known.
    pub fn note(&mut self, what: &str, by: Option<&str>, now: Instant) {
        let contention = self.0.entry(what.to_owned()).or_insert(Contention {
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

    /// How long `what` has to wait before it is put right again; `None`: not at all.
    #[must_use]
    pub fn wait(&self, what: &str, now: Instant) -> Option<Duration> {
        let contention = self.0.get(what)?;
        let due = contention.last + contention.pause();
        (due > now).then(|| due - now)
    }

    /// What is fought over.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let contentions = self
            .0
            .iter()
            .filter(|(_, contention)| contention.times >= MAX_IMMEDIATE_REPAIRS);
        contentions.map(|(what, contention)| {
            let by = contention.by.as_deref().unwrap_or("an unknown program");
            Problem::from(Cause::ChangedRepeatedly {
                object: what.clone(),
                by: by.to_owned(),
                times: contention.times,
            })
        })
    }

    /// When the first of them will be over if nothing more happens.
    #[must_use]
    pub fn over(&self, now: Instant) -> Option<Duration> {
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

    const WHAT: &str = "route 10.244.1.0/26";

    fn contended(times: u32) -> (Contentions, Instant) {
        let now = Instant::now();
        let contention = Contention {
            times,
            last: now,
            by: Some("process 42 (ip)".to_owned()),
        };
        (Contentions([(WHAT.to_owned(), contention)].into()), now)
    }

    #[test]
    fn contention_backoff_starts_late_and_grows() {
        let wait = |times| {
            let (contentions, now) = contended(times);
            contentions.wait(WHAT, now)
        };
        assert_eq!(wait(0), None);
        assert_eq!(wait(MAX_IMMEDIATE_REPAIRS - 1), None);
        assert_eq!(wait(MAX_IMMEDIATE_REPAIRS), Some(PACE));
        assert_eq!(wait(PACED - 1), Some(PACE));
        assert_eq!(wait(PACED + 1), Some(PACE * 2));
        assert_eq!(wait(u32::MAX), Some(SLOWEST));
        let (contentions, now) = contended(MAX_IMMEDIATE_REPAIRS);
        assert_eq!(contentions.wait(WHAT, now + PACE), None);
        assert_eq!(contentions.wait("link nw-ipip", now), None);
    }

    #[test]
    fn contention_names_last_process_and_ends_when_quiet() {
        let (mut contentions, now) = contended(MAX_IMMEDIATE_REPAIRS - 1);
        assert_eq!(contentions.problems().next(), None);
        contentions.note(WHAT, None, now);
        let [problem] = contentions
            .problems()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert_eq!(problem.subject, WHAT);
        let sentence = problem.message;
        assert!(sentence.contains(WHAT), "{sentence}");
        assert!(
            sentence.contains("process 42 (ip)") && sentence.contains("20 times"),
            "{sentence}"
        );
        assert_eq!(contentions.over(now), Some(RESET_AFTER));
        contentions.observe(now + RESET_AFTER / 2);
        assert_eq!(contentions.problems().count(), 1);
        contentions.observe(now + RESET_AFTER);
        assert_eq!(contentions.problems().next(), None);
        assert_eq!(contentions.over(now), None);
    }
}
