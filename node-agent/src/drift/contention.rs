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
pub struct Fights(BTreeMap<String, Fight>);

#[derive(Debug)]
struct Fight {
    times: u32,
    last: Instant,
    by: Option<String>,
}

impl Fight {
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

impl Fights {
    /// Forgets what has been quiet.
    pub fn observe(&mut self, now: Instant) {
        self.0
            .retain(|_, fight| now.saturating_duration_since(fight.last) < RESET_AFTER);
    }

    /// `what` has just been put right, and `by` had changed it, as far as that is known.
    pub fn note(&mut self, what: &str, by: Option<&str>, now: Instant) {
        let fight = self.0.entry(what.to_owned()).or_insert(Fight {
            times: 0,
            last: now,
            by: None,
        });
        fight.times = fight.times.saturating_add(1);
        fight.last = now;
        if by.is_some() {
            fight.by = by.map(str::to_owned);
        }
    }

    /// How long `what` has to wait before it is put right again; `None`: not at all.
    #[must_use]
    pub fn wait(&self, what: &str, now: Instant) -> Option<Duration> {
        let fight = self.0.get(what)?;
        let due = fight.last + fight.pause();
        (due > now).then(|| due - now)
    }

    /// What is fought over.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let fights = self
            .0
            .iter()
            .filter(|(_, fight)| fight.times >= MAX_IMMEDIATE_REPAIRS);
        fights.map(|(what, fight)| {
            let by = fight.by.as_deref().unwrap_or("an unknown program");
            Problem::from(Cause::ChangedRepeatedly {
                object: what.clone(),
                by: by.to_owned(),
                times: fight.times,
            })
        })
    }

    /// When the first of them will be over if nothing more happens.
    #[must_use]
    pub fn over(&self, now: Instant) -> Option<Duration> {
        let fights = self
            .0
            .values()
            .filter(|fight| fight.times >= MAX_IMMEDIATE_REPAIRS);
        fights
            .map(|fight| (fight.last + RESET_AFTER).saturating_duration_since(now))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "route 10.244.1.0/26";

    fn fought(times: u32) -> (Fights, Instant) {
        let now = Instant::now();
        let fight = Fight {
            times,
            last: now,
            by: Some("process 42 (ip)".to_owned()),
        };
        (Fights([(WHAT.to_owned(), fight)].into()), now)
    }

    #[test]
    fn contention_backoff_starts_late_and_grows() {
        let wait = |times| {
            let (fights, now) = fought(times);
            fights.wait(WHAT, now)
        };
        assert_eq!(wait(0), None);
        assert_eq!(wait(MAX_IMMEDIATE_REPAIRS - 1), None);
        assert_eq!(wait(MAX_IMMEDIATE_REPAIRS), Some(PACE));
        assert_eq!(wait(PACED - 1), Some(PACE));
        assert_eq!(wait(PACED + 1), Some(PACE * 2));
        assert_eq!(wait(u32::MAX), Some(SLOWEST));
        let (fights, now) = fought(MAX_IMMEDIATE_REPAIRS);
        assert_eq!(fights.wait(WHAT, now + PACE), None);
        assert_eq!(fights.wait("link nw-ipip", now), None);
    }

    #[test]
    fn contention_names_last_process_and_ends_when_quiet() {
        let (mut fights, now) = fought(MAX_IMMEDIATE_REPAIRS - 1);
        assert_eq!(fights.problems().next(), None);
        fights.note(WHAT, None, now);
        let [problem] = fights.problems().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(problem.subject, WHAT);
        let sentence = problem.message;
        assert!(sentence.contains(WHAT), "{sentence}");
        assert!(
            sentence.contains("process 42 (ip)") && sentence.contains("20 times"),
            "{sentence}"
        );
        assert_eq!(fights.over(now), Some(RESET_AFTER));
        fights.observe(now + RESET_AFTER / 2);
        assert_eq!(fights.problems().count(), 1);
        fights.observe(now + RESET_AFTER);
        assert_eq!(fights.problems().next(), None);
        assert_eq!(fights.over(now), None);
    }
}
