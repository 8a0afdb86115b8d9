//! Publishing the status outside the loop that programs the kernel, which must not wait for the API server.
//!
//! ```text
//!   Reconciler ──set──▶ the newest status ──changed? minimum interval over?──▶ StatusSink
//!   Health ──stalled?──▶ Ready False with the rest of the last status
//! ```

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
use crate::status::{same, same_but_for_bursts};
use crate::telemetry::failure_log::FailureLog;
use crate::telemetry::health::Health;
use netweft_common::error_chain;

/// Minimum interval between two writes that differ only in frequent changes (BGP sessions, external changes of the kernel), which
/// come by the hundred.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// A status to publish.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    /// Whether the NodeNetwork exists.
    exists: bool,
    /// UID of the NodeNetwork: a Node that is deleted and created again has another NodeNetwork.
    uid: Option<String>,
    /// The status to publish; none before the first reconcile.
    status: Option<NodeNetworkStatus>,
    /// The last status that the API server sent.
    seen: Option<NodeNetworkStatus>,
    /// Number of requests to write the status again.
    doubts: u64,
}

/// The handle by which the reconciler sets the status.
pub struct StatusHandle {
    wanted: watch::Sender<Wanted>,
}

impl StatusHandle {
    /// The current status of a NodeNetwork: the one that was set last, else the one of the API server.
    pub fn last(
        &self,
        uid: Option<&str>,
        seen: Option<&NodeNetworkStatus>,
    ) -> Option<NodeNetworkStatus> {
        let wanted = self.wanted.borrow();
        let ours = wanted
            .status
            .as_ref()
            .filter(|_| wanted.uid.as_deref() == uid);
        ours.or(seen).cloned()
    }

    /// The main loop has read a NodeNetwork with this status. Nothing is written for the NodeNetwork before a status is set, unless the
    /// loop stalls.
    pub fn attach(&self, uid: Option<&str>, seen: Option<&NodeNetworkStatus>) {
        self.wanted.send_if_modified(|wanted| {
            if !wanted.exists || wanted.uid.as_deref() != uid {
                *wanted = Wanted {
                    exists: true,
                    uid: uid.map(str::to_owned),
                    status: None,
                    seen: seen.cloned(),
                    doubts: wanted.doubts,
                };
            }
            false
        });
    }

    /// Sets the status to publish.
    pub fn set(
        &self,
        uid: Option<&str>,
        seen: Option<&NodeNetworkStatus>,
        status: NodeNetworkStatus,
    ) {
        self.wanted.send_if_modified(|wanted| {
            let new = Wanted {
                exists: true,
                uid: uid.map(str::to_owned),
                status: Some(status),
                seen: seen.cloned(),
                doubts: wanted.doubts,
            };
            let news = *wanted != new;
            *wanted = new;
            news
        });
    }

    /// Writes the status again at the next step, so that a status that another client has changed is corrected, and counts are current.
    pub fn invalidate(&self) {
        self.wanted.send_modify(|wanted| wanted.doubts += 1);
    }
}

/// The publisher and its sink.
pub struct StatusPublisher {
    node: String,
    reporter: StatusSink,
    health: Health,
    wanted: watch::Receiver<Wanted>,
    told: Option<(Wanted, Instant)>,
    retry: ExponentialBackoff,
    stalls: FailureLog,
    untold: FailureLog,
}

impl StatusPublisher {
    /// A publisher for `node`, which has published nothing yet, and its handle.
    pub fn new(node: String, reporter: StatusSink, health: Health) -> (StatusHandle, Self) {
        let (sender, wanted) = watch::channel(Wanted::default());
        let publisher = Self {
            node,
            reporter,
            health,
            wanted,
            told: None,
            retry: backoff::exponential(RETRY.0, RETRY.1),
            stalls: FailureLog::default(),
            untold: FailureLog::default(),
        };
        (StatusHandle { wanted: sender }, publisher)
    }

    /// Publishes until the reconciler has ended.
    pub async fn run(mut self) {
        loop {
            let now = Instant::now();
            let again = self.step(now).await;
            // A stall has no notification.
            let observe = again.into_iter().chain([now + HEARTBEAT_INTERVAL]).min();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep_until(observe.unwrap_or(now)) => {}
            }
        }
    }

    /// Writes the newest status if it is a change and the minimum interval is over at `now`. Returns when to try again.
    pub async fn step(&mut self, now: Instant) -> Option<Instant> {
        let mut wanted = self.wanted.borrow_and_update().clone();
        let stalled = self.health.stalled().map(|_| stalled(self.health.limit()));
        if let Some(verdict) = &stalled {
            wanted.status = self.doubtful(&wanted, verdict);
        }
        self.stalls.are(stalled.map(|verdict| verdict.message));
        let status = wanted.status.clone()?;
        if !self.is_change(&wanted, &status) {
            debug!("status unchanged");
            self.retry.reset();
            return None;
        }
        if let Some(rested) = self.rests(&wanted, &status, now) {
            return Some(rested);
        }
        match self.reporter.write(&self.node, &status).await {
            Ok(()) => {
                self.untold.are([]);
                self.told = Some((wanted, now));
                self.retry.reset();
                None
            }
            Err(error) => {
                let advice = netweft_client::remedy(&error);
                self.untold.are([error_chain(&error) + advice]);
                self.retry.next().map(|delay| now + delay)
            }
        }
    }

    /// The last published status, but not Ready.
    fn doubtful(&self, wanted: &Wanted, verdict: &Verdict) -> Option<NodeNetworkStatus> {
        if !wanted.exists {
            return None;
        }
        let said = wanted.status.clone().or_else(|| wanted.seen.clone());
        let mut status = said.unwrap_or_default();
        let told = self.told.as_ref().map(|(told, _)| told);
        let told = told.filter(|told| told.uid == wanted.uid);
        let told = told.and_then(|told| told.status.as_ref());
        // The last published condition has the time of the transition.
        let before = &told.unwrap_or(&status).conditions;
        let conditions = verdict.conditions(status.observed_generation, before, Timestamp::now());
        status.conditions = conditions;
        Some(status)
    }

    fn is_change(&self, wanted: &Wanted, status: &NodeNetworkStatus) -> bool {
        let told = self.told.as_ref().map(|(told, _)| told);
        let believed = told.filter(|told| (&told.uid, told.doubts) == (&wanted.uid, wanted.doubts));
        match believed {
            Some(told) => !told.status.as_ref().is_some_and(|told| same(told, status)),
            // A repeated write brings counts up to date, too.
            None => !wanted
                .seen
                .as_ref()
                .is_some_and(|seen| same(seen, status) && seen.repairs == status.repairs),
        }
    }

    /// When the minimum interval ends, if it applies.
    fn rests(&self, wanted: &Wanted, status: &NodeNetworkStatus, now: Instant) -> Option<Instant> {
        let (told, at) = self.told.as_ref()?;
        let before = told.status.as_ref()?;
        let rested = *at + MIN_INTERVAL;
        let minor = told.uid == wanted.uid && same_but_for_bursts(before, status);
        (minor && rested > now).then_some(rested)
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

#[cfg(test)]
mod tests {
    use netweft_crds::{DriftStatus, RepairCounts};
    use tempfile::TempDir;

    use super::*;

    /// The limit of the loop in these tests.
    const LIMIT: Duration = Duration::from_millis(100);

    struct Fixture {
        status: StatusHandle,
        publisher: StatusPublisher,
        health: Health,
        dir: TempDir,
        now: Instant,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let health = Health::with_limits(LIMIT, Duration::MAX);
        let reporter = StatusSink::file(dir.path());
        let (status, publisher) = StatusPublisher::new("one".into(), reporter, health.clone());
        Fixture {
            status,
            publisher,
            health,
            dir,
            now: Instant::now(),
        }
    }

    impl Fixture {
        fn set(&self, status: &NodeNetworkStatus) {
            self.status.set(Some("u"), None, status.clone());
        }

        /// Whether the step wrote a status.
        async fn tells(&mut self) -> bool {
            let file = self.dir.path().join("status.yaml");
            let _ = std::fs::remove_file(&file);
            self.publisher.step(self.now).await;
            file.exists()
        }
    }

    /// Status and reason of the condition Ready, as written.
    fn ready_in(dir: &TempDir) -> (String, String) {
        let text = std::fs::read_to_string(dir.path().join("status.yaml")).unwrap();
        let status: NodeNetworkStatus = serde_saphyr::from_str(&text).unwrap();
        let mut conditions = status.conditions.into_iter();
        let ready = conditions.find(|it| it.type_ == "Ready").unwrap();
        assert_eq!(status.mtu, Some(1400), "the rest stands");
        (ready.status, ready.reason)
    }

    #[tokio::test]
    async fn stalled_loop_sets_not_ready_until_next_beat() {
        let mut it = fixture();
        let ready = Verdict::ready(Reason::Programmed, "well");
        let mut status = with_mtu(1400);
        status.conditions = ready.conditions(Some(1), &[], Timestamp::now());
        it.health.beat();
        it.set(&status);
        assert!(it.tells().await);
        assert_eq!(ready_in(&it.dir), ("True".into(), "Programmed".into()));
        tokio::time::sleep(LIMIT * 2).await;
        assert!(it.tells().await);
        assert_eq!(ready_in(&it.dir), ("False".into(), "AgentStalled".into()));
        assert!(!it.tells().await, "once");
        it.health.beat();
        assert!(it.tells().await);
        assert_eq!(ready_in(&it.dir), ("True".into(), "Programmed".into()));
    }

    #[tokio::test]
    async fn stall_in_first_round_is_reported_with_stored_status() {
        let mut it = fixture();
        it.health.beat();
        tokio::time::sleep(LIMIT * 2).await;
        assert!(!it.tells().await, "there is no object yet");
        it.status.attach(Some("u"), Some(&with_mtu(1400)));
        assert!(it.tells().await);
        assert_eq!(ready_in(&it.dir), ("False".into(), "AgentStalled".into()));
    }

    fn with_mtu(mtu: u32) -> NodeNetworkStatus {
        NodeNetworkStatus {
            mtu: Some(mtu),
            ..NodeNetworkStatus::default()
        }
    }

    #[tokio::test]
    async fn status_is_written_on_change_and_rate_limited() {
        let mut it = fixture();
        assert!(!it.tells().await, "there is nothing to tell");
        it.set(&with_mtu(1400));
        assert!(it.tells().await);
        assert!(!it.tells().await);
        let mut drifted = with_mtu(1400);
        drifted.drift = Some(DriftStatus::default());
        it.set(&drifted);
        assert!(!it.tells().await, "it was told of a moment ago");
        it.now += MIN_INTERVAL;
        assert!(it.tells().await);
        it.set(&with_mtu(1300));
        assert!(it.tells().await, "that does not rest");
    }

    #[tokio::test]
    async fn count_only_change_is_written_after_invalidation() {
        let mut it = fixture();
        it.set(&with_mtu(1400));
        assert!(it.tells().await);
        let mut counted = with_mtu(1400);
        counted.repairs = Some(RepairCounts::default());
        it.set(&counted);
        assert!(!it.tells().await);
        it.status.invalidate();
        it.now += MIN_INTERVAL;
        assert!(it.tells().await);
    }

    #[tokio::test]
    async fn stored_status_is_rewritten_only_for_new_object_uid() {
        let mut it = fixture();
        let seen = with_mtu(1400);
        it.status.set(Some("u"), Some(&seen), seen.clone());
        assert!(!it.tells().await);
        it.status.set(Some("v"), None, seen.clone());
        assert!(it.tells().await);
        assert_eq!(it.status.last(Some("v"), None), Some(seen.clone()));
        assert_eq!(it.status.last(Some("w"), None), None);
    }

    #[tokio::test]
    async fn status_write_failures_back_off() {
        let mut it = fixture();
        std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
        it.set(&with_mtu(1400));
        let pause = async |it: &mut Fixture| it.publisher.step(it.now).await.unwrap() - it.now;
        assert!(pause(&mut it).await <= RETRY.0);
        assert!((RETRY.0..=RETRY.0 * 2).contains(&pause(&mut it).await));
        for _ in 0..20 {
            assert!(pause(&mut it).await <= RETRY.1);
        }
        std::fs::remove_dir(it.dir.path().join("status.new")).unwrap();
        assert_eq!(it.publisher.step(it.now).await, None);
        it.set(&with_mtu(1300));
        std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
        assert!(pause(&mut it).await <= RETRY.0);
    }
}
