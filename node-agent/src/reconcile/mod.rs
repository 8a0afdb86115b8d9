//! The loop: something may have changed ─▶ inputs ─▶ desired ─▶ read ─▶ diff ─▶ drift? ─▶ apply ─▶ status.
//!
//! Guarantees: nothing is written before every object has been heard of; correct objects are not touched; one failure
//! does not stop unrelated work; the container runtime's configuration is written last, after the first sync without a
//! failure. Assumptions: nobody else writes what is ours by name or protocol number.

mod apply;
mod background_tasks;
pub mod comparison;
mod disabled_ipv6_links;
pub mod link_conflicts;
mod node_addresses;
mod node_config;
mod other_networks;
mod plugin_binaries;
mod status;
mod sync_error;
#[cfg(test)]
mod tests;
mod without_node_network;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::ExponentialBackoff;
use netweft_client::backoff;
use netweft_cni::attachment::Store;
use netweft_cni::block;
use netweft_cni::node::NodeConfig;
use netweft_crds::{FoundAddress, NodeNetwork};
use netweft_netstate::diff::Diff;
use netweft_netstate::events::Writers;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use tracing::{debug, info};

use crate::apply::sysctl::Parameters;
use crate::bird::{Failover, Link};
use crate::commands::args::Paths;
use crate::commands::install::Plugins;
use crate::desired::Desired;
use crate::desired::bird::METRIC_STAND_IN;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::drift::Drifts;
use crate::firewall;
use crate::firewall::Targets;
use crate::firewall::probe::MAX_TARGETS;
use crate::inputs::ipv6_support::without_ipv6;
use crate::inputs::{Inputs, Objects};
use crate::inputs::{block_requests, draining_pods};
use crate::pods::{Pods, Records, Tended};
use crate::probes::responder;
use crate::probes::responder::Responding;
use crate::probes::sender::ProbeHandle;
use crate::reconcile::comparison::Comparison;
use crate::reconcile::sync_error::{AttachmentsUnread, SyncError};
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use crate::status::publisher::StatusHandle;
use crate::status::{Outcome, verdict};
use crate::telemetry::failure_log::FailureLog;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// First and longest delay after a failure.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// When to look again whether the plugin's lock can be had.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The reconciler's ends of the tasks beside it.
pub type Tasks = (Link, ProbeHandle, firewall::Link, Responding);

/// One node and what keeps it as it should be.
pub struct Reconciler<K> {
    node: String,
    kernel: K,
    pods: Pods,
    bird: Link,
    probes: ProbeHandle,
    firewall: firewall::Link,
    responding: Responding,
    restarts: Failover,
    paths: Paths,
    /// `None` where they are not the agent's to look after.
    plugins: Option<Plugins>,
    status: StatusHandle,
    metrics: Metrics,
    health: Health,
    failure_log: FailureLog,
    drifts: Drifts,
    waiting: bool,
    ignore_other_networks: bool,
    retry: ExponentialBackoff,
    /// The node's addresses that the operator asks for; `None` before the first look.
    found: Option<Vec<FoundAddress>>,
    /// When to look again although nothing failed.
    again: Option<Duration>,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has done nothing yet.
    pub fn new(
        node: String,
        kernel: K,
        (bird, probes, firewall, responding): Tasks,
        (paths, plugins): (Paths, Option<Plugins>),
        (status, metrics, health): (StatusHandle, Metrics, Health),
    ) -> Self {
        let pods = Pods::new(Store::new(&paths.run_dir), metrics.clone());
        Self {
            node,
            kernel,
            pods,
            bird,
            probes,
            firewall,
            responding,
            restarts: Failover::new(Instant::now()),
            paths,
            plugins,
            status,
            drifts: Drifts::new(metrics.clone()),
            metrics,
            health,
            failure_log: FailureLog::default(),
            again: None,
            waiting: false,
            ignore_other_networks: false,
            retry: backoff::exponential(RETRY.0, RETRY.1),
            found: None,
        }
    }

    /// The same, but next to another pod network if `ignore` is true.
    #[must_use]
    pub fn ignoring_other_networks(mut self, ignore: bool) -> Self {
        self.ignore_other_networks = ignore;
        self
    }

    /// Make the node as `objects` want it and tell the status. Returns when to try again although nothing has
    /// changed; `None` if all is well.
    pub async fn reconcile(&mut self, objects: &Objects) -> Option<Duration> {
        let lacks_ipv6 = !Parameters::new(&self.paths).has_ipv6();
        let carried = lacks_ipv6.then(|| without_ipv6(objects)).flatten();
        let objects = carried.as_ref().unwrap_or(objects);
        let Some(network) = &objects.network else {
            // Also when the Node object is deleted under a running node: its pods keep their network.
            if !self.waiting {
                info!(node = %self.node, "NodeNetwork not found, leaving kernel state unchanged");
            }
            self.waiting = true;
            self.health.worked_well();
            return self.drop_lost_blocks(objects);
        };
        self.waiting = false;
        let uid = network.metadata.uid.as_deref();
        self.status.attach(uid, network.status.as_ref());
        if let Some(again) = self.leave_to_other_network(objects, network).await {
            return Some(again);
        }
        self.drifts.begin(Instant::now());
        let settled = match self.sync(objects, network).await {
            Ok((desired, outcome)) => {
                let clean = outcome.is_clean();
                for problem in outcome.problems.iter() {
                    let (kind, subject) = (problem.kind.label(), &problem.subject);
                    debug!(kind, subject, "{problem}");
                }
                if !outcome.own_failure {
                    self.health.worked_well();
                }
                let faults = outcome.problems.faults();
                self.failure_log.are(faults.map(ToString::to_string));
                let verdict = verdict(&desired, &outcome);
                self.publish_outcome(network, &desired, &verdict, outcome);
                clean.then_some(desired)
            }
            Err(error) => {
                let problem = Problem::from(&error);
                self.failure_log.is(&problem.message);
                self.publish_problem(network, &problem);
                None
            }
        };
        let clean = settled.is_some();
        self.drifts.end(settled);
        self.metrics.synced(clean);
        let retry = if clean {
            self.retry.reset();
            None
        } else {
            self.retry.next()
        };
        let drift = self.drifts.again(Instant::now());
        let soonest = retry.into_iter().chain(self.again.take()).chain(drift);
        soonest.min()
    }

    /// Doubt what was told, so that a status which somebody else has changed is told again, and counts are brought up to
    /// date.
    pub fn doubt(&self) {
        self.status.invalidate();
    }

    /// Records who wrote what in the kernel, before the sync that puts it right.
    pub fn record_writers(&mut self, writers: Writers) {
        self.drifts.record_writers(writers);
    }

    /// The kernel parameters that the node was last settled with.
    pub fn parameters(&self) -> BTreeSet<PathBuf> {
        let settled = self.drifts.settled().into_iter();
        let names = settled.flat_map(Desired::parameters);
        names.map(|name| self.paths.sysctl_dir.join(name)).collect()
    }

    /// Whether the kernel can still be asked.
    pub fn is_connected(&self) -> bool {
        self.kernel.is_connected()
    }

    /// Bring kernel, nft table and files in line. An error means that nothing was changed.
    async fn sync(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
    ) -> Result<(Desired, Outcome), SyncError> {
        let config = NodeConfig::read(&self.paths.run_dir).ok();
        let (records, pods) = self
            .pods
            .state(config.as_ref())
            .map_err(|error| self.unread(error))?;
        let actual = self.kernel.read().await?;
        self.find_addresses(objects, network, &actual).await?;
        let given = (objects, network);
        let backup_routes = self.restarts.observe(&self.bird.observed(), Instant::now());
        let Comparison {
            inputs,
            actual,
            mut desired,
            difference,
        } = Comparison::make(
            &self.node,
            given,
            pods,
            (&self.kernel, actual),
            backup_routes,
        )
        .await?;
        let mut outcome = self.outcome_of_reading(&records, &inputs, &difference, &mut desired);
        if let Err(error) = self.write_relay_config(&desired.udp) {
            outcome.fail(Problem::failure("file udp.json", &error));
        }
        self.allow_ipv6(&records, &actual, &desired, &mut outcome);
        // A new table before anything else: no tunnel without its filter, and the packets of a new node are accepted from the first.
        let tables_are_new = !self.tables_are_settled(&desired);
        if tables_are_new {
            self.load_tables(&inputs, &desired, &mut outcome).await;
        }
        let links = self
            .apply_difference(&difference.ops, &actual, &desired, &mut outcome)
            .await;
        // Only now, so that a route of ours is there before BIRD takes its own back.
        self.sync_bird(&inputs, &actual, &desired, &mut outcome)
            .await;
        self.set_parameters(&desired, &links, &mut outcome);
        // A probe needs the routes.
        self.firewall.probe(targets(&inputs));
        if !tables_are_new {
            self.load_tables(&inputs, &desired, &mut outcome).await;
        }
        self.update_probes(&desired, &mut outcome);
        self.keep_plugins(&mut outcome);
        let told = self.publish_node_config(&desired, &mut outcome);
        self.reconcile_pods(&records, &actual, &mut outcome).await;
        self.count_addresses(told.then(|| desired.offered()), &mut outcome);
        self.list_requests(&desired, &mut outcome);
        let mut routes = desired.kernel.routes.keys();
        if routes.any(|key| key.metric == METRIC_STAND_IN) {
            let over = self.restarts.over(Instant::now());
            self.again = self.again.into_iter().chain([over]).min();
        }
        outcome.problems.extend(self.drifts.contentions());
        Ok((desired, outcome))
    }

    /// What the comparison alone tells, before anything is changed.
    fn outcome_of_reading(
        &self,
        records: &Records,
        inputs: &Inputs,
        difference: &Diff,
        desired: &mut Desired,
    ) -> Outcome {
        let readable = records
            .iter()
            .filter_map(|(ip, record)| Some((*ip, record.as_ref().ok()?)));
        // A pod of two families has two addresses, and one with several attachments as many records.
        let pods: BTreeSet<_> = readable
            .clone()
            .map(|(_, record)| &record.owner.container_id)
            .collect();
        let mut outcome = Outcome {
            pods: i64::try_from(pods.len()).unwrap_or(i64::MAX),
            draining: draining_pods::pods(&inputs.pools, readable),
            problems: std::mem::take(&mut desired.problems),
            ..Outcome::default()
        };
        let problems = &mut outcome.problems;
        problems.extend(difference.conflicts.iter().map(Problem::from));
        problems.extend(self.foreign_configurations());
        problems.extend(self.firewall.findings());
        self.responding.answer(responder::peers(inputs));
        problems.extend(self.responding.note());
        outcome
    }

    async fn reconcile_pods(
        &mut self,
        records: &Records,
        actual: &NetworkState,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let Tended { problems, again } = self.pods.tend(&self.kernel, records, actual, now).await;
        outcome.problems.extend(problems);
        self.again = again;
    }

    /// Which addresses pods have, now that they can get new ones of these blocks only.
    fn count_addresses(&mut self, offered: Option<BTreeSet<IpNet>>, outcome: &mut Outcome) {
        match self.pods.taken(offered) {
            Ok(taken) => outcome.taken = taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let file = Store::new(&self.paths.run_dir).lock_file();
                let cause = Cause::StoreLocked { file };
                outcome.problems.push(Problem::from(cause));
                self.again = self.again.into_iter().chain([LOCK_RETRY_INTERVAL]).min();
            }
            Err(error) => outcome.fail(Problem::failure("attachments", &self.unread(error))),
        }
    }

    fn list_requests(&self, desired: &Desired, outcome: &mut Outcome) {
        match block_requests::waiting(&self.paths.run_dir, &desired.plugin) {
            Ok(requests) => outcome.requests = requests,
            Err(error) => outcome.fail(Problem::failure("block requests", &error)),
        }
    }

    fn unread(&self, source: io::Error) -> AttachmentsUnread {
        AttachmentsUnread {
            dir: self.paths.run_dir.clone(),
            source,
        }
    }
}

/// Whom a probe for firewalls asks: IPv4 addresses of nodes in their first block each.
fn targets(inputs: &Inputs) -> Targets {
    let mut own = tunnel_addresses(inputs).into_values();
    let mut others: BTreeMap<&str, IpAddr> = BTreeMap::new();
    for block in &inputs.remote {
        let address = block::tunnel_address(block.cidr);
        if let Some(address) = address.filter(IpAddr::is_ipv4) {
            others.entry(&block.node).or_insert(address);
        }
    }
    Targets {
        from: own.find(IpAddr::is_ipv4),
        to: others.into_values().take(MAX_TARGETS).collect(),
    }
}
