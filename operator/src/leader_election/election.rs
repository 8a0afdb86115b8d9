//! The decision about the Lease, from its observed state and the time of the observation. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use tokio::time::Instant;

/// Attempts to acquire or renew the Lease within its duration.
const ATTEMPTS_PER_LEASE: u32 = 5;

/// The state of one candidate.
#[derive(Debug)]
pub struct Election {
    identity: String,
    lease_duration: Duration,
    /// The resource version observed last, and the time of its first observation. Every renewal changes the version.
    observed: Option<(Option<String>, Instant)>,
    /// Start of the last successful acquisition or renewal.
    renewed_at: Option<Instant>,
    /// The Lease as last read or written.
    lease: Option<Lease>,
}

/// The next step of a candidate.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Another candidate holds the Lease.
    Wait,
    /// The Lease does not exist.
    Create(LeaseSpec),
    /// This candidate holds the Lease, or the Lease has no holder, or it has expired.
    Update(Box<Lease>),
}

impl Election {
    /// A candidate with this identity.
    pub fn new(identity: String, lease_duration: Duration) -> Self {
        Self {
            identity,
            lease_duration,
            observed: None,
            renewed_at: None,
            lease: None,
        }
    }

    /// Whether this candidate is the leader. Its leadership ends when a third of the lease duration is left.
    pub fn is_leader(&self, now: Instant) -> bool {
        self.leadership_end().is_some_and(|end| now < end)
    }

    /// End of the leadership without another renewal.
    fn leadership_end(&self) -> Option<Instant> {
        self.renewed_at
            .map(|renewed_at| renewed_at + self.lease_duration * 2 / 3)
    }

    /// Deadline of a request that is sent at `now`.
    pub fn request_deadline(&self, now: Instant) -> Instant {
        let end = self.leadership_end().filter(|end| *end > now);
        end.unwrap_or(now + self.lease_duration)
    }

    /// Time of the next attempt.
    pub fn next_attempt(&self, now: Instant) -> Instant {
        self.request_deadline(now)
            .min(now + self.lease_duration / ATTEMPTS_PER_LEASE)
    }

    /// The step that follows from the Lease as read at `now`.
    pub fn step(&mut self, found: Option<&Lease>, now: Instant) -> Step {
        self.lease = found.cloned();
        let Some(lease) = found else {
            self.observed = None;
            self.renewed_at = None;
            return Step::Create(self.held_spec(&LeaseSpec::default()));
        };
        let version = lease.metadata.resource_version.clone();
        let since = match &self.observed {
            Some((before, since)) if *before == version => *since,
            _ => now,
        };
        self.observed = Some((version.clone(), since));
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity {
            self.renewed_at = None;
            // The holder's own duration counts: operators may run with different flags.
            let seconds = spec.lease_duration_seconds.map(u64::try_from);
            let lease_duration = match seconds {
                Some(Ok(seconds)) => Duration::from_secs(seconds),
                Some(Err(_)) | None => self.lease_duration,
            };
            if !holder.is_empty() && now < since + lease_duration {
                return Step::Wait;
            }
        }
        Step::Update(Box::new(Lease {
            metadata: ObjectMeta {
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(self.held_spec(&spec)),
        }))
    }

    /// Records a successful write whose request started at `started`.
    pub fn acquired(&mut self, written: &Lease, started: Instant) {
        self.lease = Some(written.clone());
        self.renewed_at = Some(started);
    }

    /// The Lease without a holder, if this candidate holds it.
    pub fn release(&self) -> Option<Lease> {
        let lease = self.lease.as_ref().filter(|_| self.renewed_at.is_some())?;
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

    /// The spec of the Lease with this candidate as holder. The times are only informational.
    fn held_spec(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_holder = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lease_duration.as_secs()).ok(),
            acquire_time: if is_holder {
                before.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if is_holder {
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

    const LEASE_DURATION: Duration = Duration::from_secs(15);

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
            let mut election = Election::new("this".into(), LEASE_DURATION);
            for attempt in 0..10 {
                let now = second(start, u64::from(attempt) * 14);
                let step = election.step(Some(&lease("other", attempt, renewed)), now);
                assert_eq!(step, Step::Wait, "{renewed} {attempt}");
                assert!(!election.is_leader(now));
            }
        }
    }

    #[test]
    fn expired_lease_is_taken_after_its_full_duration() {
        let start = Instant::now();
        let today = Timestamp::now().as_second();
        for renewed in [0, today, today + 48 * 3600] {
            let mut election = Election::new("this".into(), LEASE_DURATION);
            let mut step = |seconds| {
                let found = lease("other", 1, renewed);
                election.step(Some(&found), second(start, seconds))
            };
            assert_eq!(step(0), Step::Wait);
            assert_eq!(step(14), Step::Wait);
            assert!(matches!(step(15), Step::Update(_)), "{renewed}");
        }
    }

    #[test]
    fn leader_without_renewal_steps_down_before_lease_expires() {
        let start = Instant::now();
        let mut election = Election::new("this".into(), LEASE_DURATION);
        assert!(matches!(election.step(None, start), Step::Create(_)));
        assert!(!election.is_leader(start));
        election.acquired(&lease("this", 1, 0), start);
        assert!(election.is_leader(second(start, 9)));
        assert!(!election.is_leader(second(start, 10)));
        // The holder was stopped for a long time, and no other candidate has acquired the Lease.
        let step = election.step(Some(&lease("this", 1, 0)), second(start, 60));
        assert!(matches!(step, Step::Update(_)));
        election.acquired(&lease("this", 2, 0), second(start, 60));
        assert!(election.is_leader(second(start, 61)));
        // Another candidate has acquired the Lease.
        let step = election.step(Some(&lease("other", 3, 0)), second(start, 62));
        assert_eq!(step, Step::Wait);
        assert!(!election.is_leader(second(start, 62)));
        assert_eq!(election.release(), None);
    }

    #[test]
    fn released_lease_is_taken_at_once() {
        let start = Instant::now();
        let mut election = Election::new("this".into(), LEASE_DURATION);
        election.acquired(&lease("this", 1, 0), start);
        let released = election.release().unwrap();
        assert_eq!(released.metadata.resource_version.as_deref(), Some("1"));
        let mut other = Election::new("other".into(), LEASE_DURATION);
        let step = other.step(Some(&released), start);
        let Step::Update(lease) = step else {
            panic!("{step:?}");
        };
        let spec = lease.spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("other"));
        assert_eq!(spec.lease_transitions, Some(1));
    }
}
