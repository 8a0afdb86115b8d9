//! When backup routes serve instead of the routes of BIRD. Pure: the clock is the caller's.
//!
//! A BIRD that starts leaves the kernel's routes alone until it has heard all its peers, but does not wait for those that start as well
//! (RFC 4724, section 4.1): it takes their routes out of the kernel, and puts them back when they have told of them. That is a
//! matter of milliseconds where all are ready at once, and of as long as the slowest takes where they are not.

use crate::desired::bird::BackupRoutes;
use std::time::{Duration, Instant};

use crate::bird::Observed;

/// How long after a BIRD was met its routes may still come and go: twice what a BIRD waits for its peers, and time to start.
const RECOVERY: Duration = Duration::from_secs(60);

/// Memory of BIRDs that came and went.
#[derive(Debug)]
pub struct Failover {
    met: Option<u64>,
    until: Instant,
}

impl Failover {
    /// Of an agent that starts, before which another may have made some.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            met: None,
            until: now + RECOVERY,
        }
    }

    /// What is to be done now.
    pub fn observe(&mut self, observed: &Observed, now: Instant) -> BackupRoutes {
        let another = self.met.is_some_and(|met| met != observed.met);
        self.met = (observed.met > 0).then_some(observed.met);
        if observed.absent || another {
            self.until = now + RECOVERY;
            BackupRoutes::Create
        } else if self.until > now {
            BackupRoutes::Keep
        } else {
            BackupRoutes::Remove
        }
    }

    /// When they are to go.
    #[must_use]
    pub fn over(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(met: u64) -> Observed {
        Observed {
            met,
            ..Observed::default()
        }
    }

    #[test]
    fn backup_routes_are_created_without_bird_and_kept_after() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut restarts = Failover::new(start);
        assert_eq!(restarts.observe(&met(0), at(0)), BackupRoutes::Keep);
        assert_eq!(
            restarts.observe(&met(1), at(1)),
            BackupRoutes::Keep,
            "the first"
        );
        assert_eq!(restarts.observe(&met(1), at(60)), BackupRoutes::Remove);
        let absent = Observed {
            absent: true,
            ..met(1)
        };
        assert_eq!(restarts.observe(&absent, at(100)), BackupRoutes::Create);
        assert_eq!(restarts.observe(&absent, at(900)), BackupRoutes::Create);
        assert_eq!(restarts.observe(&met(2), at(901)), BackupRoutes::Create);
        assert_eq!(restarts.observe(&met(2), at(902)), BackupRoutes::Keep);
        assert_eq!(restarts.over(at(902)), Duration::from_secs(59));
        assert_eq!(restarts.observe(&met(2), at(961)), BackupRoutes::Remove);
        assert_eq!(
            restarts.observe(&met(3), at(970)),
            BackupRoutes::Create,
            "a fast one"
        );
    }

    #[test]
    fn agent_start_without_bird_creates_backup_routes() {
        let start = Instant::now();
        let absent = Observed {
            absent: true,
            ..Observed::default()
        };
        let mut restarts = Failover::new(start);
        assert_eq!(restarts.observe(&absent, start), BackupRoutes::Create);
    }
}
