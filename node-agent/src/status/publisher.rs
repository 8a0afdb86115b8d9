//! The task that publishes the status, so that the main loop does not wait for the API server.
//!
//! ```text
//!   Reconciler ──set──▶ the newest status ──changed? minimum interval over?──▶ StatusSink
//!   Health ──stalled?──▶ the last status with Ready False
//! ```

#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::ExponentialBackoff;
use netweft_client::backoff;
use netweft_common::heartbeat::HEARTBEAT_INTERVAL;
use netweft_crds::NodeNetworkStatus;
use netweft_crds::condition::{Reason, Verdict};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::reconcile::RETRY;
use crate::status::sink::StatusSink;
use crate::status::{same, same_except_frequent};
use crate::telemetry::failure_log::FailureLog;
use crate::telemetry::health::Health;
use netweft_common::error_chain;

/// Minimum interval between two writes that differ only in frequent changes (BGP sessions, external changes of the kernel), which
/// come by the hundred.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// The status to publish, and the NodeNetwork that it belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Publication {
    /// Whether the NodeNetwork exists.
    exists: bool,
    /// UID of the NodeNetwork: a Node that is deleted and created again has another NodeNetwork.
    uid: Option<String>,
    /// The status to publish; none before the first reconcile.
    status: Option<NodeNetworkStatus>,
    /// The last status that the API server sent.
    observed: Option<NodeNetworkStatus>,
    /// Number of requests to write the status again.
    invalidations: u64,
}

/// The handle by which the reconciler sets the status.
pub struct StatusHandle {
    current: watch::Sender<Publication>,
}

impl StatusHandle {
    /// The current status of a NodeNetwork: the one that was set last, else the one of the API server.
    pub fn last(
        &self,
        uid: Option<&str>,
        observed: Option<&NodeNetworkStatus>,
    ) -> Option<NodeNetworkStatus> {
        let current = self.current.borrow();
        let set = current
            .status
            .as_ref()
            .filter(|_| current.uid.as_deref() == uid);
        set.or(observed).cloned()
    }

    /// Selects the NodeNetwork, which has the status `observed`. Nothing is written before a status is set, unless the main loop
    /// stalls.
    pub fn attach(&self, uid: Option<&str>, observed: Option<&NodeNetworkStatus>) {
        self.current.send_if_modified(|current| {
            if !current.exists || current.uid.as_deref() != uid {
                *current = Publication {
                    exists: true,
                    uid: uid.map(str::to_owned),
                    status: None,
                    observed: observed.cloned(),
                    invalidations: current.invalidations,
                };
            }
            false
        });
    }

    /// Sets the status to publish.
    pub fn set(
        &self,
        uid: Option<&str>,
        observed: Option<&NodeNetworkStatus>,
        status: NodeNetworkStatus,
    ) {
        self.current.send_if_modified(|current| {
            let new = Publication {
                exists: true,
                uid: uid.map(str::to_owned),
                status: Some(status),
                observed: observed.cloned(),
                invalidations: current.invalidations,
            };
            let changed = *current != new;
            *current = new;
            changed
        });
    }

    /// Writes the status again at the next step, so that a status that another client has changed is corrected, and counts are current.
    pub fn invalidate(&self) {
        self.current
            .send_modify(|current| current.invalidations += 1);
    }
}

/// The publisher and its sink.
pub struct StatusPublisher {
    node: String,
    sink: StatusSink,
    health: Health,
    current: watch::Receiver<Publication>,
    /// The last written status, and the time of the write.
    written: Option<(Publication, Instant)>,
    retry: ExponentialBackoff,
    stalls: FailureLog,
    write_failures: FailureLog,
}

impl StatusPublisher {
    /// A publisher for `node` before its first write, and its handle.
    pub fn new(node: String, sink: StatusSink, health: Health) -> (StatusHandle, Self) {
        let (sender, current) = watch::channel(Publication::default());
        let publisher = Self {
            node,
            sink,
            health,
            current,
            written: None,
            retry: backoff::exponential(RETRY.0, RETRY.1),
            stalls: FailureLog::default(),
            write_failures: FailureLog::default(),
        };
        (StatusHandle { current: sender }, publisher)
    }

    /// Publishes until the reconciler has ended.
    pub async fn run(mut self) {
        loop {
            let now = Instant::now();
            let next_attempt = self.step(now).await;
            // A stall sends no notification.
            let next_check = now + HEARTBEAT_INTERVAL;
            let next_step = next_attempt.map_or(next_check, |next| next.min(next_check));
            tokio::select! {
                changed = self.current.changed() => if changed.is_err() { return },
                () = sleep_until(next_step) => {}
            }
        }
    }

    /// Writes the newest status if it is a change and the minimum interval is over at `now`. Returns the time of the next attempt.
    pub async fn step(&mut self, now: Instant) -> Option<Instant> {
        let mut current = self.current.borrow_and_update().clone();
        let stalled = self.health.stalled().map(|_| stalled(self.health.limit()));
        if let Some(verdict) = &stalled {
            current.status = self.status_while_stalled(&current, verdict);
        }
        self.stalls.set(stalled.map(|verdict| verdict.message));
        let status = current.status.clone()?;
        if !self.is_change(&current, &status) {
            debug!("status unchanged");
            self.retry.reset();
            return None;
        }
        if let Some(end) = self.interval_end(&current, &status, now) {
            return Some(end);
        }
        match self.sink.write(&self.node, &status).await {
            Ok(()) => {
                self.write_failures.set([]);
                self.written = Some((current, now));
                self.retry.reset();
                None
            }
            Err(error) => {
                let advice = netweft_client::remedy(&error);
                self.write_failures.set([error_chain(&error) + advice]);
                self.retry.next().map(|delay| now + delay)
            }
        }
    }

    /// The last status with the condition of a stalled main loop.
    fn status_while_stalled(
        &self,
        current: &Publication,
        verdict: &Verdict,
    ) -> Option<NodeNetworkStatus> {
        if !current.exists {
            return None;
        }
        let last = current.status.clone().or_else(|| current.observed.clone());
        let mut status = last.unwrap_or_default();
        let written = self.written.as_ref().map(|(written, _)| written);
        let written = written.filter(|written| written.uid == current.uid);
        let written = written.and_then(|written| written.status.as_ref());
        // The last written condition has the time of the transition.
        let before = &written.unwrap_or(&status).conditions;
        let conditions = verdict.conditions(status.observed_generation, before, Timestamp::now());
        status.conditions = conditions;
        Some(status)
    }

    fn is_change(&self, current: &Publication, status: &NodeNetworkStatus) -> bool {
        let written = self.written.as_ref().map(|(written, _)| written);
        let valid = written.filter(|written| {
            written.uid == current.uid && written.invalidations == current.invalidations
        });
        match valid {
            Some(written) => !written.status.as_ref().is_some_and(|it| same(it, status)),
            // A repeated write also updates counts.
            None => !current.observed.as_ref().is_some_and(|observed| {
                same(observed, status) && observed.repairs == status.repairs
            }),
        }
    }

    /// The end of the minimum interval, if it applies.
    fn interval_end(
        &self,
        current: &Publication,
        status: &NodeNetworkStatus,
        now: Instant,
    ) -> Option<Instant> {
        let (written, at) = self.written.as_ref()?;
        let before = written.status.as_ref()?;
        let end = *at + MIN_INTERVAL;
        let is_limited = written.uid == current.uid && same_except_frequent(before, status);
        (is_limited && end > now).then_some(end)
    }
}

/// The condition of a node whose agent has not finished a reconcile within `limit`.
pub fn stalled(limit: Duration) -> Verdict {
    let limit = limit.as_secs();
    let message = format!(
        "the main loop of the agent has stalled for more than {limit} s, so this node follows no changes; kubelet restarts the agent. If the agent stalls again, see the log of the agent, and check whether `ip link` or `nft list ruleset` hangs on the node"
    );
    Verdict::reconciling(Reason::AgentStalled, message)
}
