//! The reconcile loop of the leader. A change in a watch, a timer or a change of leadership starts a reconcile:
//!
//! 1. [`snapshot`] copies all watched objects, and [`timers`] add what has elapsed: together the cluster state.
//! 2. [`plan`](crate::plan) computes all writes. It is pure and total.
//! 3. [`apply`] writes them in order. A failed write starts the next reconcile after a backoff.
//! 4. [`events`] and metrics report what has changed.

pub mod api_request;
pub mod api_request_error;
pub mod apply;
pub mod crds;
pub mod events;
pub mod pod_owners;
pub mod reconcile_trigger;
pub mod secret_watches;
pub mod snapshot;
pub mod timers;
pub mod watches;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use netweft_crds::NodeSubnet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error_span, info, warn};

use crate::controller::api_request::request;
use crate::controller::apply::Writer;
use crate::controller::pod_owners::PodOwnerLookup;
use crate::controller::reconcile_trigger::ReconcileTrigger;
use crate::controller::secret_watches::SecretWatches;
use crate::controller::snapshot::{Context, Settings, Snapshot};
use crate::controller::timers::Timers;
use crate::controller::watches::{Guarded, Stores};
use crate::plan;
use crate::plan::conditions::remaining_pods;
use crate::plan::model::cluster_state::ClusterState;
use crate::telemetry::metrics::Metrics;
use kube::runtime::utils::Backoff;
use netweft_client::backoff;
use netweft_common::heartbeat::Heartbeat;

/// Changes within this time are handled by one plan.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Time to wait for created objects to appear in the watch.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of the heartbeat without any change.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// First and longest delay before failed writes are retried.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The reconcile loop and its dependencies.
pub struct Controller {
    /// For the consistent read of a new leader.
    pub client: Client,
    /// The local copies, complete.
    pub stores: Stores,
    /// Copies of the Secrets that BGPPeers name.
    pub secrets: SecretWatches,
    /// Owners of the pods that keep pools from being drained.
    pub pod_owners: PodOwnerLookup,
    /// Triggers of the next reconcile.
    pub trigger: Arc<ReconcileTrigger>,
    /// Whether this operator is the leader.
    pub is_leader: watch::Receiver<bool>,
    /// Applies plans.
    pub writer: Writer,
    /// Shows that the main loop runs.
    pub heartbeat: Arc<Heartbeat>,
    /// Metrics of the operator.
    pub metrics: Arc<Metrics>,
    /// State between two plans.
    pub timers: Timers,
    /// The settings of the operator's flags.
    pub settings: Settings,
}

impl Controller {
    /// Runs until `stop` or until the leader election has ended. A plan that is being applied is completed.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut was_leader = false;
        let mut delays = backoff::exponential(RETRY.0, RETRY.1);
        let mut planning = Duration::ZERO;
        let mut trigger = "start".to_owned();
        loop {
            self.heartbeat.beat();
            // Level error, so that a filter that logs only errors still logs this span.
            let span = error_span!("reconcile", trigger);
            let failed = self
                .reconcile(&mut was_leader, &mut planning)
                .instrument(span);
            let mut retry = None;
            if failed.await {
                retry = delays.next();
            } else {
                delays.reset();
            }
            let timer = self.next_timer(retry, was_leader);
            match self.next_trigger(timer, planning, &stop).await {
                Some(next) => trigger = next,
                None => return,
            }
        }
    }

    /// Handles a change of leadership. A leader plans and applies. Returns whether a retry is needed.
    async fn reconcile(&mut self, was_leader: &mut bool, planning: &mut Duration) -> bool {
        let is_leader = *self.is_leader.borrow_and_update();
        if is_leader != *was_leader {
            self.change_leadership(is_leader).await;
            *was_leader = is_leader;
        }
        is_leader && self.plan_and_apply(planning).await
    }

    /// The first timer to end, and its name.
    fn next_timer(
        &self,
        retry: Option<Duration>,
        is_leader: bool,
    ) -> Option<(Duration, &'static str)> {
        let timer = self.timers.next(&self.progress_deadlines(), Instant::now());
        let timer = timer.filter(|_| is_leader);
        let retry = retry.map(|after| (after, "retry"));
        timer.into_iter().chain(retry).min()
    }

    /// Waits for a change, a change of leadership or the end of `timer`, and returns its name; `None`: the loop ends.
    async fn next_trigger(
        &mut self,
        timer: Option<(Duration, &'static str)>,
        planning: Duration,
        stop: &CancellationToken,
    ) -> Option<String> {
        let (after, name) = timer.unwrap_or_default();
        let end = tokio::time::Instant::now() + after;
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                result = self.is_leader.changed() => return result.is_ok().then(|| "leadership".to_owned()),
                () = self.trigger.triggered() => {
                    // Limits planning to a fifth of one CPU under constant changes.
                    tokio::time::sleep(DEBOUNCE.max(planning * 4)).await;
                    return Some(self.trigger.take());
                }
                () = tokio::time::sleep_until(end), if timer.is_some() => return Some(name.to_owned()),
                // Without any change the loop is alive, too.
                () = tokio::time::sleep(MAX_IDLE) => self.heartbeat.beat(),
            }
        }
    }

    async fn change_leadership(&mut self, is_leader: bool) {
        info!(is_leader, "leadership changed");
        self.metrics.leader.set(i64::from(is_leader));
        self.timers.clear();
        if is_leader {
            self.wait_for_predecessor_subnets().await;
        } else {
            self.pod_owners.set_pods([].iter());
            self.metrics.clear_leader_metrics();
        }
    }

    /// Makes a plan and applies it. Returns whether a retry is needed.
    async fn plan_and_apply(&mut self, planning: &mut Duration) -> bool {
        let start = Instant::now();
        let snapshot = Snapshot::take(&self.stores);
        self.secrets.set_peers(snapshot.peers());
        self.pod_owners
            .set_pods(remaining_pods::pods(snapshot.networks()));
        let elapsed = self.timers.observe(&snapshot, start);
        let cluster_state = snapshot.cluster_state(Context {
            settings: &self.settings,
            elapsed,
            secrets: self.secrets.secrets(),
            pod_owners: self.pod_owners.owners(),
            now: Timestamp::now(),
        });
        let plan = plan(&cluster_state);
        *planning = start.elapsed();
        self.metrics.plan_seconds.observe(planning.as_secs_f64());
        self.update_metrics(&cluster_state);
        if plan.is_empty() {
            debug!("plan is empty");
        }
        self.timers.usage_writes.record(&plan, start);
        let outcome = self.writer.apply(&plan).await;
        let drift_events = &mut self.timers.drift_events;
        let drift_events = drift_events.observe(snapshot.networks(), start);
        self.writer.publish_drift_events(&drift_events);
        self.wait_for_subnets(outcome.created).await;
        if !outcome.failed {
            self.metrics.last_success.set(Timestamp::now().as_second());
        }
        outcome.failed
    }

    /// The progress deadlines of all NetworkModes.
    fn progress_deadlines(&self) -> Vec<Duration> {
        let modes = self.stores.modes.state();
        let modes = modes.iter().filter_map(|mode| mode.0.as_ref().ok());
        modes
            .map(|mode| mode.spec.rollout.progress_deadline.into())
            .collect()
    }

    fn update_metrics(&self, cluster_state: &ClusterState<'_>) {
        let ClusterState {
            pools,
            modes,
            peers,
            nodes,
            subnets,
            networks,
            ..
        } = cluster_state;
        self.metrics.set_objects("IPPool", pools.len());
        self.metrics.set_pool_usage(pools.iter().copied());
        self.metrics.set_mode_progress(modes.iter().copied());
        self.metrics.set_objects("NetworkMode", modes.len());
        self.metrics.set_objects("BGPPeer", peers.len());
        self.metrics.set_objects("Node", nodes.len());
        self.metrics.set_objects("NodeSubnet", subnets.len());
        self.metrics.set_objects("NodeNetwork", networks.len());
    }

    /// Waits until the watch shows all NodeSubnets that the previous leader created. Without them this leader would
    /// assign a second block to the same node, which is harmless but wasteful.
    async fn wait_for_predecessor_subnets(&self) {
        let api: Api<Guarded<NodeSubnet>> = Api::all(self.client.clone());
        match request("list", "NodeSubnet", "", api.list(&ListParams::default())).await {
            Ok(list) => {
                let names = list.iter().map(ResourceExt::name_any).collect();
                self.wait_for_subnets(names).await;
            }
            Err(error) => warn!(
                error = error.chain(),
                "listing NodeSubnets of the previous leader failed"
            ),
        }
    }

    /// Waits until the watch shows these NodeSubnets, with a limit: another client may have deleted one.
    async fn wait_for_subnets(&self, names: BTreeSet<String>) {
        let deadline = Instant::now() + WATCH_TIMEOUT;
        let mut missing = names;
        loop {
            missing.retain(|name| self.stores.subnets.get(&ObjectRef::new(name)).is_none());
            if missing.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                warn!(
                    count = missing.len(),
                    "watch does not show created NodeSubnets"
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
