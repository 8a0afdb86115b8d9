//! The reconcile loop of the leader. A change in a watch, a timer or a change of leadership starts a reconcile:
//!
//! 1. [`snapshot`] copies all watched objects, and [`timers`] add what has elapsed: together the cluster state.
//! 2. [`plan`](crate::plan) computes all writes. It is pure and total.
//! 3. [`apply`] writes them in order. A failed write starts the next reconcile after a backoff.
//! 4. [`events`] and metrics report what has changed.

pub mod api_request;
pub mod api_request_error;
pub mod apply;
pub mod changes;
pub mod crds;
pub mod events;
pub mod pod_owners;
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
use crate::controller::changes::Changes;
use crate::controller::pod_owners::Lookup;
use crate::controller::secret_watches::Secrets;
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

/// Changes that come together are answered together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How long to wait for the watch to show what was just created.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How often the loop shows that it lives when there is nothing to do.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// First and longest delay between attempts when writes fail.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The loop and what it needs.
pub struct Controller {
    /// For the one consistent read of a new leader.
    pub client: Client,
    /// The local copies, complete.
    pub stores: Stores,
    /// Copies of the Secrets that BGPPeers name.
    pub secrets: Secrets,
    /// Who made the pods that keep pools from being drained.
    pub owners: Lookup,
    /// What has changed in the copies.
    pub changed: Arc<Changes>,
    /// Whether this operator leads.
    pub leads: watch::Receiver<bool>,
    /// Carries out plans.
    pub writer: Writer,
    /// Shows that the main loop runs.
    pub heartbeat: Arc<Heartbeat>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What is remembered between two plans.
    pub timers: Timers,
    /// The flags.
    pub settings: Settings,
}

impl Controller {
    /// Runs until `stop`, or until the leader election has ended. A plan that is being carried out is carried out.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut led = false;
        let mut delays = backoff::exponential(RETRY.0, RETRY.1);
        let mut planning = Duration::ZERO;
        let mut trigger = "start".to_owned();
        loop {
            self.heartbeat.beat();
            // Of level error: a filter that logs no more than errors would else log them without the span.
            let span = error_span!("reconcile", trigger);
            let round = self.reconcile(&mut led, &mut planning).instrument(span);
            let mut retry = None;
            if round.await {
                retry = delays.next();
            } else {
                delays.reset();
            }
            let timer = self.next_timer(retry, led);
            match self.next_trigger(timer, planning, &stop).await {
                Some(next) => trigger = next,
                None => return,
            }
        }
    }

    /// Follows a change of leadership; a leader plans. Returns whether that has to be tried again.
    async fn reconcile(&mut self, led: &mut bool, planning: &mut Duration) -> bool {
        let leads = *self.leads.borrow_and_update();
        if leads != *led {
            self.leadership(leads).await;
            *led = leads;
        }
        leads && self.step(planning).await
    }

    /// The timer that ends first, and its name.
    fn next_timer(&self, retry: Option<Duration>, leads: bool) -> Option<(Duration, &'static str)> {
        let timer = self.timers.next(&self.deadlines(), Instant::now());
        let timer = timer.filter(|_| leads);
        let retry = retry.map(|after| (after, "retry"));
        timer.into_iter().chain(retry).min()
    }

    /// Waits for a change, a change of leadership or the end of `timer`, and returns which it was; `None`: it is over.
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
                result = self.leads.changed() => return result.is_ok().then(|| "leadership".to_owned()),
                () = self.changed.reported() => {
                    // Planning takes at most a fifth of one CPU, however fast things change.
                    tokio::time::sleep(DEBOUNCE.max(planning * 4)).await;
                    return Some(self.changed.take());
                }
                () = tokio::time::sleep_until(end), if timer.is_some() => return Some(name.to_owned()),
                // Nothing happens, and that is in order.
                () = tokio::time::sleep(MAX_IDLE) => self.heartbeat.beat(),
            }
        }
    }

    async fn leadership(&mut self, leads: bool) {
        info!(leads, "leadership changed");
        self.metrics.leader.set(i64::from(leads));
        self.timers.clear();
        if leads {
            self.catch_up_with_predecessor().await;
        } else {
            self.owners.follow([].iter());
            self.metrics.forget();
        }
    }

    /// One plan, made and carried out. Returns whether it has to be tried again.
    async fn step(&mut self, planning: &mut Duration) -> bool {
        let start = Instant::now();
        let snapshot = Snapshot::take(&self.stores);
        self.secrets.follow(snapshot.peers());
        self.owners
            .follow(remaining_pods::pods(snapshot.networks()));
        let elapsed = self.timers.observe(&snapshot, start);
        let cluster_state = snapshot.cluster_state(Context {
            settings: &self.settings,
            elapsed,
            secrets: self.secrets.state(),
            owners: self.owners.state(),
            now: Timestamp::now(),
        });
        let plan = plan(&cluster_state);
        *planning = start.elapsed();
        self.metrics.plan_seconds.observe(planning.as_secs_f64());
        self.count(&cluster_state);
        if plan.is_empty() {
            debug!("plan is empty");
        }
        self.timers.usage_counts.note(&plan, start);
        let outcome = self.writer.carry_out(&plan).await;
        let drift_events = &mut self.timers.drift_events;
        let drift_events = drift_events.observe(snapshot.networks(), start);
        self.writer.publish_drift_events(&drift_events);
        self.catch_up(outcome.created).await;
        if !outcome.failed {
            self.metrics.last_success.set(Timestamp::now().as_second());
        }
        outcome.failed
    }

    /// How long changes wait for nodes that are not Ready.
    fn deadlines(&self) -> Vec<Duration> {
        let modes = self.stores.modes.state();
        let modes = modes.iter().filter_map(|mode| mode.0.as_ref().ok());
        modes
            .map(|mode| mode.spec.rollout.progress_deadline.into())
            .collect()
    }

    fn count(&self, cluster_state: &ClusterState<'_>) {
        let ClusterState {
            pools,
            modes,
            peers,
            nodes,
            subnets,
            networks,
            ..
        } = cluster_state;
        self.metrics.seen("IPPool", pools.len());
        self.metrics.used(pools.iter().copied());
        self.metrics.changing(modes.iter().copied());
        self.metrics.seen("NetworkMode", modes.len());
        self.metrics.seen("BGPPeer", peers.len());
        self.metrics.seen("Node", nodes.len());
        self.metrics.seen("NodeSubnet", subnets.len());
        self.metrics.seen("NodeNetwork", networks.len());
    }

    /// Waits until the watch shows everything the previous leader created: what it assigned in its last moments would
    /// else be assigned a second time. That would do no harm, but a node would have a block too many.
    async fn catch_up_with_predecessor(&self) {
        let api: Api<Guarded<NodeSubnet>> = Api::all(self.client.clone());
        match request("list", "NodeSubnet", "", api.list(&ListParams::default())).await {
            Ok(list) => {
                let names = list.iter().map(ResourceExt::name_any).collect();
                self.catch_up(names).await;
            }
            Err(error) => warn!(
                error = error.chain(),
                "listing NodeSubnets of the previous leader failed"
            ),
        }
    }

    /// Waits until the watch shows these NodeSubnets, for a while: one of them may be gone again.
    async fn catch_up(&self, names: BTreeSet<String>) {
        let deadline = Instant::now() + CATCH_UP;
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
