//! What to do about the lease, decided from what was seen of it and when. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use tokio::time::Instant;

/// How often in the time a lease lasts everybody looks at it.
const LOOKS: u32 = 5;

/// One candidate's index.
#[derive(Debug)]
pub struct Election {
    identity: String,
    lasts: Duration,
    /// What was last seen, and since when it has been so.
    seen: Option<(Seen, Instant)>,
    /// When the renewal that holds was begun.
    renewed: Option<Instant>,
    /// As it was last read or written.
    lease: Option<Lease>,
}

/// What makes one state of a lease another than the next: every renewal has a version of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    version: Option<String>,
}

/// What is to be done about it.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// It is another's.
    Wait,
    /// There is none.
    Create(LeaseSpec),
    /// It is ours, nobody's, or has been left.
    Write(Box<Lease>),
}

impl Election {
    /// Of a candidate of this name, for a lease that lasts so long.
    pub fn new(identity: String, lasts: Duration) -> Self {
        Self {
            identity,
            lasts,
            seen: None,
            renewed: None,
            lease: None,
        }
    }

    /// Whether this one leads: a third of the lease before another may take it, it does not any more.
    pub fn leads(&self, now: Instant) -> bool {
        self.end().is_some_and(|end| now < end)
    }

    /// Until when it leads, if nothing comes of the next looks.
    fn end(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.lasts * 2 / 3)
    }

    /// Until when an answer is waited for that is asked at `now`.
    pub fn patience(&self, now: Instant) -> Instant {
        let end = self.end().filter(|end| *end > now);
        end.unwrap_or(now + self.lasts)
    }

    /// When to look again.
    pub fn next(&self, now: Instant) -> Instant {
        self.patience(now).min(now + self.lasts / LOOKS)
    }

    /// What follows from the lease as it was found at `now`.
    pub fn step(&mut self, found: Option<&Lease>, now: Instant) -> Step {
        self.lease = found.cloned();
        let Some(lease) = found else {
            self.seen = None;
            self.renewed = None;
            return Step::Create(self.claim(&LeaseSpec::default()));
        };
        let seen = Seen {
            version: lease.metadata.resource_version.clone(),
        };
        let since = match &self.seen {
            Some((before, since)) if *before == seen => *since,
            _ => now,
        };
        self.seen = Some((seen, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity {
            self.renewed = None;
            // As its holder wants it, who may have been started with another duration.
            let lasts = spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok());
            let lasts = lasts.map_or(self.lasts, Duration::from_secs);
            if !holder.is_empty() && now < since + lasts {
                return Step::Wait;
            }
        }
        Step::Write(Box::new(Lease {
            metadata: ObjectMeta {
                resource_version: lease.metadata.resource_version.clone(),
                ..ObjectMeta::default()
            },
            spec: Some(self.claim(&spec)),
        }))
    }

    /// What is written has been taken; it was begun at `begun`.
    pub fn won(&mut self, written: &Lease, begun: Instant) {
        self.lease = Some(written.clone());
        self.renewed = Some(begun);
    }

    /// The lease without us, if it is ours.
    pub fn resignation(&self) -> Option<Lease> {
        let lease = self.lease.as_ref().filter(|_| self.renewed.is_some())?;
        Some(Lease {
            metadata: ObjectMeta {
                resource_version: lease.metadata.resource_version.clone(),
                ..ObjectMeta::default()
            },
            spec: lease.spec.clone().map(|spec| LeaseSpec {
                holder_identity: Some(String::new()),
                ..spec
            }),
        })
    }

    /// The lease as ours. Its times are for people to read.
    fn claim(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lasts.as_secs()).ok(),
            acquire_time: if ours {
                before.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if ours {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(15);

    fn lease(holder: &str, version: u32, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
                ..LeaseSpec::default()
            }),
        }
    }

    fn second(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn renewed_lease_is_kept_despite_clock_skew() {
        let start = Instant::now();
        let today = Timestamp::now().as_second();
        for renewed in [0, today - 48 * 3600, today, today + 48 * 3600] {
            let mut election = Election::new("me".into(), LASTS);
            for turn in 0..10 {
                let now = second(start, u64::from(turn) * 14);
                let step = election.step(Some(&lease("other", turn, renewed)), now);
                assert_eq!(step, Step::Wait, "{renewed} {turn}");
                assert!(!election.leads(now));
            }
        }
    }

    #[test]
    fn expired_lease_is_taken_after_its_full_duration() {
        let start = Instant::now();
        let today = Timestamp::now().as_second();
        for renewed in [0, today, today + 48 * 3600] {
            let mut election = Election::new("me".into(), LASTS);
            let mut step = |seconds| {
                let found = lease("other", 1, renewed);
                election.step(Some(&found), second(start, seconds))
            };
            assert_eq!(step(0), Step::Wait);
            assert_eq!(step(14), Step::Wait);
            assert!(matches!(step(15), Step::Write(_)), "{renewed}");
        }
    }

    #[test]
    fn leader_without_renewal_steps_down_before_lease_expires() {
        let start = Instant::now();
        let mut election = Election::new("me".into(), LASTS);
        assert!(matches!(election.step(None, start), Step::Create(_)));
        assert!(!election.leads(start));
        election.won(&lease("me", 1, 0), start);
        assert!(election.leads(second(start, 9)));
        assert!(!election.leads(second(start, 10)));
        // The holder was away for long, and no other operator has taken the lease.
        let step = election.step(Some(&lease("me", 1, 0)), second(start, 60));
        assert!(matches!(step, Step::Write(_)));
        election.won(&lease("me", 2, 0), second(start, 60));
        assert!(election.leads(second(start, 61)));
        // Somebody has.
        let step = election.step(Some(&lease("other", 3, 0)), second(start, 62));
        assert_eq!(step, Step::Wait);
        assert!(!election.leads(second(start, 62)));
        assert_eq!(election.resignation(), None);
    }

    #[test]
    fn released_lease_is_taken_at_once() {
        let start = Instant::now();
        let mut election = Election::new("me".into(), LASTS);
        election.won(&lease("me", 1, 0), start);
        let back = election.resignation().unwrap();
        assert_eq!(back.metadata.resource_version.as_deref(), Some("1"));
        let mut other = Election::new("other".into(), LASTS);
        let step = other.step(Some(&back), start);
        let Step::Write(lease) = step else {
            panic!("{step:?}");
        };
        let spec = lease.spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("other"));
        assert_eq!(spec.lease_transitions, Some(1));
    }
}
