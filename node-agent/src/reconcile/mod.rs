//! The reconcile loop: a trigger ─▶ inputs ─▶ desired ─▶ read ─▶ diff ─▶ drift? ─▶ apply ─▶ status.
//!
//! Guarantees: nothing is written before all objects have been received; correct objects are not changed; one failure does not
//! stop unrelated work; the CNI configuration is written last, after the first sync without a failure. Assumption: no other
//! program owns objects with netweft's names or protocol numbers.

mod apply;
mod background_tasks;
pub mod comparison;
mod disabled_ipv6_links;
pub mod link_conflicts;
mod node_address_report;
mod node_config;
mod other_network_report;
mod plugin_binaries;
mod status;
mod sync_error;
#[cfg(test)]
mod tests;
mod without_node_network;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::ExponentialBackoff;
use netweft_client::backoff;
use netweft_cni::attachment::Store;
use netweft_cni::node::NodeConfig;
use netweft_crds::{FoundAddress, NodeNetwork};
use netweft_netstate::diff::Diff;
use netweft_netstate::events::Writers;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use tracing::{debug, info};

use crate::apply::sysctl::Parameters;
use crate::bird::{BirdHandle, Failover};
use crate::commands::args::Paths;
use crate::commands::install::Plugins;
use crate::desired::Desired;
use crate::desired::bird::METRIC_BACKUP;
use crate::drift::DriftTracker;
use crate::firewall;
use crate::inputs::ipv6_support::without_ipv6;
use crate::inputs::{Inputs, Objects};
use crate::inputs::{block_requests, draining_pods};
use crate::pods::{Pods, PodsOutcome, Records};
use crate::probes::responder;
use crate::probes::responder::ResponderHandle;
use crate::probes::sender::ProbeHandle;
use crate::reconcile::comparison::Comparison;
use crate::reconcile::sync_error::{AttachmentsUnread, SyncError};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, Problems};
use crate::status::publisher::StatusHandle;
use crate::status::{Outcome, verdict};
use crate::telemetry::failure_log::FailureLog;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// First and longest delay after a failure.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Delay of the next reconcile while another process holds the plugin's lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Handles to the background tasks.
pub struct TaskHandles {
    /// The task of BIRD.
    pub bird: BirdHandle,
    /// The prober of standby datapaths.
    pub probes: ProbeHandle,
    /// The task that reads the ruleset of firewalls.
    pub firewall: firewall::FirewallHandle,
    /// The task that answers probes.
    pub responder: ResponderHandle,
}

/// The reconciler of one node.
pub struct Reconciler<K> {
    node: String,
    kernel: K,
    pods: Pods,
    tasks: TaskHandles,
    bird_failover: Failover,
    paths: Paths,
    /// `None`: the agent does not restore plugins.
    plugins: Option<Plugins>,
    status: StatusHandle,
    metrics: Metrics,
    health: Health,
    failure_log: FailureLog,
    drift: DriftTracker,
    /// Whether the last reconcile found no NodeNetwork.
    without_network: bool,
    ignore_other_networks: bool,
    retry: ExponentialBackoff,
    /// The candidates for the node's address; `None` before the first reading of the kernel.
    address_candidates: Option<Vec<FoundAddress>>,
    /// Delay of the next reconcile, even without a failure or an event.
    requeue_after: Option<Duration>,
}

impl<K: Kernel> Reconciler<K> {
    /// The reconciler before its first reconcile.
    pub fn new(
        node: String,
        kernel: K,
        tasks: TaskHandles,
        (paths, plugins): (Paths, Option<Plugins>),
        (status, metrics, health): (StatusHandle, Metrics, Health),
    ) -> Self {
        let pods = Pods::new(Store::new(&paths.run_dir), metrics.clone());
        Self {
            node,
            kernel,
            pods,
            tasks,
            bird_failover: Failover::new(Instant::now()),
            paths,
            plugins,
            status,
            drift: DriftTracker::new(metrics.clone()),
            metrics,
            health,
            failure_log: FailureLog::default(),
            without_network: false,
            ignore_other_networks: false,
            retry: backoff::exponential(RETRY.0, RETRY.1),
            address_candidates: None,
            requeue_after: None,
        }
    }

    /// Programs the node next to another pod network if `ignore` is true.
    #[must_use]
    pub fn ignoring_other_networks(mut self, ignore: bool) -> Self {
        self.ignore_other_networks = ignore;
        self
    }

    /// Applies the desired state of `objects` and publishes the status. Returns the delay of the next reconcile, even without an
    /// event; `None`: wait for an event.
    pub async fn reconcile(&mut self, objects: &Objects) -> Option<Duration> {
        let has_ipv6 = Parameters::new(&self.paths).has_ipv6();
        let ipv4_only = (!has_ipv6).then(|| without_ipv6(objects)).flatten();
        let objects = ipv4_only.as_ref().unwrap_or(objects);
        let Some(network) = &objects.network else {
            // The Node object may have been deleted while the node runs: its pods keep their network.
            if !self.without_network {
                info!(node = %self.node, "NodeNetwork not found, leaving kernel state unchanged");
            }
            self.without_network = true;
            self.health.succeeded();
            self.metrics.set_problems(Problems::default().counts());
            return self.drop_lost_blocks(objects);
        };
        self.without_network = false;
        let uid = network.metadata.uid.as_deref();
        self.status.attach(uid, network.status.as_ref());
        let recheck = self.check_other_networks(objects, network).await;
        if recheck.is_some() {
            return recheck;
        }
        self.drift.begin_sync(Instant::now());
        let programmed = match self.sync(objects, network).await {
            Ok((desired, outcome)) => {
                let is_clean = outcome.is_clean();
                for problem in outcome.problems.iter() {
                    let (kind, subject) = (problem.kind.label(), &problem.subject);
                    debug!(kind, subject, "{problem}");
                }
                if !outcome.own_failure {
                    self.health.succeeded();
                }
                self.metrics.set_problems(outcome.problems.counts());
                let faults = outcome.problems.faults();
                self.failure_log.set(faults.map(ToString::to_string));
                let verdict = verdict(&desired, &outcome);
                self.publish_outcome(network, &desired, &verdict, outcome);
                is_clean.then_some(desired)
            }
            Err(error) => {
                let problem = Problem::from(&error);
                self.failure_log.add(&problem.message);
                self.publish_problem(network, &problem);
                let problems = Problems::from(problem);
                self.metrics.set_problems(problems.counts());
                None
            }
        };
        let is_clean = programmed.is_some();
        self.drift.end_sync(programmed);
        self.metrics.synced(is_clean);
        let retry = if is_clean {
            self.retry.reset();
            None
        } else {
            self.retry.next()
        };
        let drift = self.drift.requeue_after(Instant::now());
        let delays = retry.into_iter().chain(self.requeue_after.take());
        delays.chain(drift).min()
    }

    /// Makes the publisher write the status again, so that changes by other clients are corrected, and counts are current.
    pub fn invalidate_status(&self) {
        self.status.invalidate();
    }

    /// Records the writers of kernel objects, before the sync that repairs the objects.
    pub fn record_writers(&mut self, writers: Writers) {
        self.drift.record_writers(writers);
    }

    /// The sysctls that the last clean sync has set.
    pub fn sysctls(&self) -> BTreeSet<PathBuf> {
        let baseline = self.drift.baseline().into_iter();
        let names = baseline.flat_map(Desired::sysctl_paths);
        names.map(|name| self.paths.sysctl_dir.join(name)).collect()
    }

    /// Whether the netlink connection is open.
    pub fn is_connected(&self) -> bool {
        self.kernel.is_connected()
    }

    /// Applies the desired state to kernel, nftables and files. An error means that nothing was changed.
    async fn sync(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
    ) -> Result<(Desired, Outcome), SyncError> {
        let config = NodeConfig::read(&self.paths.run_dir).ok();
        let (records, pods) = self
            .pods
            .state(config.as_ref())
            .map_err(|error| self.attachments_unread(error))?;
        let actual = self.kernel.read().await?;
        self.find_address_candidates(objects, network, &actual)
            .await?;
        let observation = self.tasks.bird.observation();
        let backup_routes = self.bird_failover.update(&observation, Instant::now());
        let Comparison {
            inputs,
            actual,
            mut desired,
            difference,
        } = Comparison::compute(
            &self.node,
            (objects, network),
            pods,
            (&self.kernel, actual),
            backup_routes,
        )
        .await?;
        let mut outcome = self.initial_outcome(&records, &inputs, &difference, &mut desired);
        if let Err(error) = self.write_relay_config(&desired.relay) {
            outcome.fail(Problem::failure("file udp.json", &error));
        }
        self.enable_ipv6(&records, &actual, &desired, &mut outcome);
        // A new table before everything else: no tunnel without its filter, and the packets of a new node are accepted from the first.
        let tables_are_new = !self.tables_are_in_baseline(&desired);
        if tables_are_new {
            self.load_tables(&inputs, &desired, &mut outcome).await;
        }
        let links = self
            .apply_difference(&difference.ops, &actual, &desired, &mut outcome)
            .await;
        // After the routes of the agent, so that a route exists before BIRD removes its own.
        self.sync_bird(&inputs, &actual, &desired, &mut outcome)
            .await;
        self.set_sysctls(&desired, &links, &mut outcome);
        // A probe needs the routes.
        let targets = background_tasks::firewall_targets(&inputs);
        self.tasks.firewall.probe(targets);
        if !tables_are_new {
            self.load_tables(&inputs, &desired, &mut outcome).await;
        }
        self.update_probes(&desired, &mut outcome);
        self.restore_plugins(&mut outcome);
        let is_published = self.publish_node_config(&desired, &mut outcome);
        self.reconcile_pods(&records, &actual, &mut outcome).await;
        let allocatable = is_published.then(|| desired.allocatable_blocks());
        self.count_addresses(allocatable, &mut outcome);
        self.list_block_requests(&desired, &mut outcome);
        let mut routes = desired.kernel.routes.keys();
        if routes.any(|key| key.metric == METRIC_BACKUP) {
            self.requeue_within(self.bird_failover.remaining(Instant::now()));
        }
        outcome.problems.extend(self.drift.contentions());
        Ok((desired, outcome))
    }

    /// Reconciles again after this delay at the latest.
    fn requeue_within(&mut self, delay: Duration) {
        self.requeue_after = self.requeue_after.into_iter().chain([delay]).min();
    }

    /// The problems and pods that are known before anything is changed.
    fn initial_outcome(
        &self,
        records: &Records,
        inputs: &Inputs,
        difference: &Diff,
        desired: &mut Desired,
    ) -> Outcome {
        let readable = records
            .iter()
            .filter_map(|(ip, record)| Some((*ip, record.as_ref().ok()?)));
        // A pod can have several addresses and several attachments.
        let pods: BTreeSet<_> = readable
            .clone()
            .map(|(_, record)| &record.owner.container_id)
            .collect();
        let mut outcome = Outcome {
            pods: i64::try_from(pods.len()).unwrap_or(i64::MAX),
            draining_pods: draining_pods::pods(&inputs.pools, readable),
            problems: std::mem::take(&mut desired.problems),
            ..Outcome::default()
        };
        let problems = &mut outcome.problems;
        problems.extend(difference.conflicts.iter().map(Problem::from));
        problems.extend(self.preceding_cni_configurations());
        let TaskHandles {
            firewall,
            responder,
            ..
        } = &self.tasks;
        problems.extend(firewall.findings());
        responder.set_peers(responder::peers(inputs));
        problems.extend(responder.problem());
        outcome
    }

    async fn reconcile_pods(
        &mut self,
        records: &Records,
        actual: &NetworkState,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let PodsOutcome {
            problems,
            requeue_after,
        } = self
            .pods
            .reconcile(&self.kernel, records, actual, now)
            .await;
        outcome.problems.extend(problems);
        self.requeue_after = requeue_after;
    }

    /// Counts the addresses of pods, when new pods get addresses of the `allocatable` blocks only.
    fn count_addresses(&mut self, allocatable: Option<BTreeSet<IpNet>>, outcome: &mut Outcome) {
        match self.pods.assigned_addresses(allocatable) {
            Ok(addresses) => outcome.pod_addresses = addresses,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let file = Store::new(&self.paths.run_dir).lock_file();
                let cause = Cause::StoreLocked { file };
                outcome.problems.push(Problem::from(cause));
                self.requeue_within(LOCK_RETRY_INTERVAL);
            }
            Err(error) => {
                let error = self.attachments_unread(error);
                outcome.fail(Problem::failure("attachments", &error));
            }
        }
    }

    fn list_block_requests(&self, desired: &Desired, outcome: &mut Outcome) {
        match block_requests::unmet(&self.paths.run_dir, &desired.plugin) {
            Ok(requests) => outcome.block_requests = requests,
            Err(error) => outcome.fail(Problem::failure("block requests", &error)),
        }
    }

    fn attachments_unread(&self, source: io::Error) -> AttachmentsUnread {
        AttachmentsUnread {
            dir: self.paths.run_dir.clone(),
            source,
        }
    }
}
