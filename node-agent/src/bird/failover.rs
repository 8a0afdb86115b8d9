//! When backup routes replace the routes of BIRD. Pure: the caller passes the time.
//!
//! A BIRD that starts leaves the routes in the kernel unchanged until its peers have sent their routes. It does not wait for
//! peers that start at the same time (RFC 4724, section 4.1): it removes their routes from the kernel, and adds them again when
//! these peers advertise them. That takes milliseconds if all are ready, and otherwise as long as the slowest peer needs.

use std::time::{Duration, Instant};

use crate::bird::Observation;
use crate::desired::bird::BackupRoutes;

/// How long after a connection to BIRD its routes may still change: twice the time that BIRD waits for its peers, and the time
/// of a start.
const RECOVERY: Duration = Duration::from_secs(60);

/// Follows the restarts of BIRD.
#[derive(Debug)]
pub struct Failover {
    connection: Option<u64>,
    until: Instant,
}

impl Failover {
    /// The state at the start of the agent. An earlier agent may have added backup routes.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            connection: None,
            until: now + RECOVERY,
        }
    }

    /// What to do with the backup routes now.
    pub fn update(&mut self, observation: &Observation, now: Instant) -> BackupRoutes {
        let is_restarted = self
            .connection
            .is_some_and(|connection| connection != observation.connection);
        self.connection = (observation.connection > 0).then_some(observation.connection);
        if observation.unavailable || is_restarted {
            self.until = now + RECOVERY;
            BackupRoutes::Create
        } else if self.until > now {
            BackupRoutes::Keep
        } else {
            BackupRoutes::Remove
        }
    }

    /// How long until the backup routes are removed.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(connection: u64) -> Observation {
        Observation {
            connection,
            ..Observation::default()
        }
    }

    #[test]
    fn backup_routes_are_created_without_bird_and_kept_after() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut failover = Failover::new(start);
        assert_eq!(failover.update(&connected(0), at(0)), BackupRoutes::Keep);
        assert_eq!(
            failover.update(&connected(1), at(1)),
            BackupRoutes::Keep,
            "the first BIRD"
        );
        assert_eq!(failover.update(&connected(1), at(60)), BackupRoutes::Remove);
        let unavailable = Observation {
            unavailable: true,
            ..connected(1)
        };
        assert_eq!(failover.update(&unavailable, at(100)), BackupRoutes::Create);
        assert_eq!(failover.update(&unavailable, at(900)), BackupRoutes::Create);
        assert_eq!(
            failover.update(&connected(2), at(901)),
            BackupRoutes::Create
        );
        assert_eq!(failover.update(&connected(2), at(902)), BackupRoutes::Keep);
        assert_eq!(failover.remaining(at(902)), Duration::from_secs(59));
        assert_eq!(
            failover.update(&connected(2), at(961)),
            BackupRoutes::Remove
        );
        assert_eq!(
            failover.update(&connected(3), at(970)),
            BackupRoutes::Create,
            "a fast restart"
        );
    }

    #[test]
    fn agent_start_without_bird_creates_backup_routes() {
        let start = Instant::now();
        let unavailable = Observation {
            unavailable: true,
            ..Observation::default()
        };
        let mut failover = Failover::new(start);
        assert_eq!(failover.update(&unavailable, start), BackupRoutes::Create);
    }
}
