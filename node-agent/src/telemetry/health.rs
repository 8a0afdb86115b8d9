//! The health of the agent: for `/livez`, `/readyz`, and the status that is published while its main loop is stalled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netweft_common::heartbeat::Heartbeat;

/// The time limit of one round of the main loop. Slow steps have shorter limits of their own.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long a ready agent may fail to program its node before it becomes unready. Temporary failures end earlier.
const FAILURE_LIMIT: Duration = Duration::from_secs(300);

/// The state that the main loop writes and background tasks read.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    heartbeat: Heartbeat,
    /// Time of the last success; `None` before the node accepts pods.
    last_success: Mutex<Option<Instant>>,
    failure_limit: Duration,
}

/// Why the agent is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// The node does not accept pods yet.
    Starting,
    /// Every reconcile has failed for this time.
    Failing(Duration),
    /// The main loop has been stalled for this time.
    Stalled(Duration),
}

impl Health {
    /// The health before the first reconcile.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(STALL_LIMIT, FAILURE_LIMIT)
    }

    /// The health with other limits.
    #[must_use]
    pub fn with_limits(stall_limit: Duration, failure_limit: Duration) -> Self {
        Self(Arc::new(Inner {
            heartbeat: Heartbeat::new(stall_limit),
            last_success: Mutex::new(None),
            failure_limit,
        }))
    }

    /// Records that the main loop runs.
    pub fn beat(&self) {
        self.0.heartbeat.beat();
    }

    /// The age of the last heartbeat, if it is above the limit.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        self.0.heartbeat.stalled()
    }

    /// The time limit of one round of the main loop.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.0.heartbeat.limit()
    }

    /// Records that the node accepts pods.
    pub fn accepts_pods(&self) {
        self.last_success().get_or_insert_with(Instant::now);
    }

    /// Records a reconcile without a failure whose cause is on this node.
    pub fn succeeded(&self) {
        if let Some(last) = self.last_success().as_mut() {
            *last = Instant::now();
        }
    }

    /// Why the agent is not ready; `None` if it is. Only causes on this node count, never another node, a BGP session or the API
    /// server: the rollout of the DaemonSet stops when many agents are unready.
    #[must_use]
    pub fn unready(&self) -> Option<Unready> {
        if let Some(since) = self.stalled() {
            return Some(Unready::Stalled(since));
        }
        let Some(last) = *self.last_success() else {
            return Some(Unready::Starting);
        };
        let since = last.elapsed();
        (since > self.0.failure_limit).then_some(Unready::Failing(since))
    }

    fn last_success(&self) -> MutexGuard<'_, Option<Instant>> {
        let last_success = self.0.last_success.lock();
        last_success.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}
