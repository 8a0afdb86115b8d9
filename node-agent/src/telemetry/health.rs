//! What the agent knows of itself: for `/livez`, `/readyz`, and the status that is written while its main loop hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netweft_common::heartbeat::Heartbeat;

/// A look at the node that takes longer than this hangs. What may take long in it has limits of its own, which are shorter.
const STALL: Duration = Duration::from_secs(60);
/// For how long a ready agent may fail at its own node before it is not ready any more: longer than what passes by itself.
const LASTING: Duration = Duration::from_secs(300);

/// Shared by the main loop, which reports, and the background tasks, which read.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    heartbeat: Heartbeat,
    /// `None` before the node can take pods.
    worked: Mutex<Option<Instant>>,
    lasting: Duration,
}

/// Why the agent is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// The node cannot take pods yet.
    Beginning,
    /// Every look at the node has failed since then.
    Failing(Duration),
    /// The main loop hangs.
    Stalled(Duration),
}

impl Health {
    /// Of an agent that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(STALL, LASTING)
    }

    /// With other limits than those of the program.
    #[must_use]
    pub fn with_limits(stall: Duration, lasting: Duration) -> Self {
        Self(Arc::new(Inner {
            heartbeat: Heartbeat::new(stall),
            worked: Mutex::new(None),
            lasting,
        }))
    }

    /// The main loop comes round.
    pub fn beat(&self) {
        self.0.heartbeat.beat();
    }

    /// How long the main loop has not come round, if that is too long.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        self.0.heartbeat.stalled()
    }

    /// The longest time that the main loop may take for one round.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.0.heartbeat.limit()
    }

    /// The node can take pods.
    pub fn opened(&self) {
        self.worked().get_or_insert_with(Instant::now);
    }

    /// A look at the node has found no failure of the node's own, or nothing to do.
    pub fn worked_well(&self) {
        if let Some(last) = self.worked().as_mut() {
            *last = Instant::now();
        }
    }

    /// Why the agent is not ready; `None` if it is. It depends on this node alone, never on another node, a BGP session or the API
    /// server: where many agents are not ready at once, the DaemonSet's rollout stops.
    #[must_use]
    pub fn unready(&self) -> Option<Unready> {
        if let Some(since) = self.stalled() {
            return Some(Unready::Stalled(since));
        }
        let Some(last) = *self.worked() else {
            return Some(Unready::Beginning);
        };
        let since = last.elapsed();
        (since > self.0.lasting).then_some(Unready::Failing(since))
    }

    fn worked(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.worked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}
