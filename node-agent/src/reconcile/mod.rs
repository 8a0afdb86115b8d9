//! The loop: something may have changed ─▶ inputs ─▶ desired ─▶ read ─▶ diff ─▶ drift? ─▶ apply ─▶ status.
//!
//! Guarantees: nothing is written before every object has been heard of; correct objects are not touched; one failure
//! does not stop unrelated work; the container runtime's configuration is written last, after the first sync without a
//! failure. Assumptions: nobody else writes what is ours by name or protocol number.

mod addresses;
mod apply;
pub mod backoff;
pub mod comparison;
mod ipv6;
mod other_networks;
mod plugins;
mod status;
mod taken;
#[cfg(test)]
mod tests;
mod without_node_network;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_cni::attachment::Store;
use netweft_cni::conf;
use netweft_cni::node::{self, NodeConfig};
use netweft_crds::{FoundAddress, NodeNetwork};
use netweft_netstate::diff::Diff;
use netweft_netstate::events::Writers;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_udp_relay::config::RelayConfig;
use tracing::info;

use crate::apply::cni_config;
use crate::apply::nft::Nft;
use crate::apply::path_probe::ProbeHandle;
use crate::apply::sysctl::Parameters;
use crate::bird::{Failover, Link};
use crate::commands::args::Paths;
use crate::commands::install::Plugins;
use crate::desired::Desired;
use crate::desired::bird::METRIC_STAND_IN;
use crate::drift::{Difference, Drifts};
use crate::firewall::Findings;
use crate::inputs::bgp_routes::bgp_routes;
use crate::inputs::without_ipv6::without_ipv6;
use crate::inputs::{Inputs, Objects};
use crate::inputs::{block_requests, draining_pods};
use crate::pods::{Pods, Records, Tended};
use crate::reconcile::backoff::Retry;
use crate::reconcile::comparison::Comparison;
use crate::status::publisher::StatusHandle;
use crate::status::{Outcome, verdict};
use crate::telemetry::failure_log::FailureLog;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use netweft_common::error_chain;

/// When to look again whether the plugin's lock can be had.
const LOCKED: Duration = Duration::from_secs(1);

/// One node and what keeps it as it should be.
pub struct Reconciler<K> {
    node: String,
    kernel: K,
    pods: Pods,
    nft: Nft,
    bird: Link,
    probes: ProbeHandle,
    firewall: Findings,
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
    retry: Retry,
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
        (bird, probes, firewall): (Link, ProbeHandle, Findings),
        (paths, plugins): (Paths, Option<Plugins>),
        (status, metrics, health): (StatusHandle, Metrics, Health),
    ) -> Self {
        let nft = Nft::new(&paths.run_dir);
        let pods = Pods::new(Store::new(&paths.run_dir), metrics.clone());
        Self {
            node,
            kernel,
            pods,
            nft,
            bird,
            probes,
            firewall,
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
            retry: Retry::default(),
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
                info!(node = %self.node, "there is no NodeNetwork of this name, the kernel is left as it is");
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
                let clean = outcome.failures.is_empty();
                if !outcome.own_failure {
                    self.health.worked_well();
                }
                self.failure_log.are(outcome.faults(&desired));
                let verdict = verdict(&desired, &outcome);
                self.tell(network, &desired, &verdict, outcome);
                clean.then_some(desired)
            }
            Err(reason) => {
                self.failure_log.is(&reason);
                self.tell_reason(network, &reason);
                None
            }
        };
        let clean = settled.is_some();
        self.drifts.end(settled);
        self.metrics.synced(clean);
        let retry = if clean {
            self.retry.succeeded();
            None
        } else {
            Some(self.retry.failed())
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
    ) -> Result<(Desired, Outcome), String> {
        let config = NodeConfig::read(&self.paths.run_dir).ok();
        let (records, pods) = self
            .pods
            .state(config.as_ref())
            .map_err(|error| self.unreadable(&error))?;
        let actual = self
            .kernel
            .read()
            .await
            .map_err(|error| error_chain(&error))?;
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
            outcome.fail(error_chain(&error));
        }
        self.allow_ipv6(&records, &actual, &desired, &mut outcome);
        let links = self
            .apply_difference(&difference.ops, &actual, &desired, &mut outcome)
            .await;
        // Only now, so that a route of ours is there before BIRD takes its own back.
        self.sync_bird(&inputs, &actual, &mut desired, &mut outcome)
            .await;
        self.set_parameters(&desired, &links, &mut outcome);
        self.load_table(&inputs, &desired, &mut outcome).await;
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
        outcome.fights = self.drifts.fights();
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
        let mut outcome = Outcome {
            draining: draining_pods::pods(&inputs.pools, readable),
            failures: desired.waiting_for.clone(),
            notes: std::mem::take(&mut desired.notes),
            conflicts: self.foreign_configurations(),
            ..Outcome::default()
        };
        let conflicts = difference.conflicts.iter().map(ToString::to_string);
        outcome.conflicts.splice(0..0, conflicts);
        outcome.notes.extend(self.firewall.borrow().iter().cloned());
        outcome
    }

    /// Says what BIRD is to do. While BGP is off and BIRD has let go of the kernel's routes, which it leaves there (`persist`), they
    /// are taken away; while it is on they are BIRD's alone.
    async fn sync_bird(
        &self,
        inputs: &Inputs,
        actual: &NetworkState,
        desired: &mut Desired,
        outcome: &mut Outcome,
    ) {
        let observed = self.bird.observed();
        let remote = inputs.remote.iter();
        let nodes = remote.flat_map(|block| block.addresses.iter());
        let nodes = inputs.addresses.iter().chain(nodes);
        self.bird.want(
            desired.bird.clone(),
            nodes.collect::<BTreeSet<_>>().into_iter().collect(),
        );
        desired.problems.extend(observed.problems);
        let left = || bgp_routes(inputs, actual);
        outcome.bgp_routes = left().count() as i64;
        if desired.bird.is_none() && observed.released {
            let gone = left().map(|(key, route)| Op::RouteDelete {
                key: key.clone(),
                route: route.clone(),
            });
            let gone: Vec<Op> = gone.collect();
            drop(
                self.apply(gone.iter().enumerate(), (actual, &*desired), outcome)
                    .await,
            );
        }
    }

    /// Ask others by the ways that stand by.
    fn update_probes(&self, desired: &Desired, outcome: &mut Outcome) {
        if !desired.probes.is_empty()
            && let Err(error) = Parameters::new(&self.paths).allow_echo()
        {
            outcome.failures.push(error_chain(&error));
        }
        self.probes.want(&desired.probes);
    }

    /// The relay knows no more than what it is told here.
    fn write_relay_config(&self, config: &RelayConfig) -> io::Result<()> {
        let told = if config.tunnels.is_empty() {
            RelayConfig::remove(&self.paths.run_dir)?
        } else {
            config.write(&self.paths.run_dir)?
        };
        if told {
            info!(tunnels = config.tunnels.len(), "relay told");
        }
        Ok(())
    }

    async fn reconcile_pods(
        &mut self,
        records: &Records,
        actual: &NetworkState,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let Tended {
            failures,
            conflicts,
            notes,
            again,
        } = self.pods.tend(&self.kernel, records, actual, now).await;
        outcome.failures.extend(failures);
        outcome.conflicts.extend(conflicts);
        outcome.notes.extend(notes);
        self.again = again;
    }

    /// Which addresses pods have, now that they can get new ones of these blocks only.
    fn count_addresses(&mut self, offered: Option<BTreeSet<IpNet>>, outcome: &mut Outcome) {
        match self.pods.taken(offered) {
            Ok(taken) => outcome.taken = taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let dir = self.paths.run_dir.display();
                outcome.notes.push(format!("another process keeps {dir}/lock, so it is not known whether pods have addresses of blocks that were taken from this node: if that lasts, end that process"));
                self.again = self.again.into_iter().chain([LOCKED]).min();
            }
            Err(error) => outcome.fail(self.unreadable(&error)),
        }
    }

    fn list_requests(&self, desired: &Desired, outcome: &mut Outcome) {
        match block_requests::waiting(&self.paths.run_dir, &desired.plugin) {
            Ok(requests) => outcome.requests = requests,
            Err(failure) => outcome.fail(failure),
        }
    }

    fn unreadable(&self, error: &io::Error) -> String {
        let dir = self.paths.run_dir.display();
        format!("read the attachments in {dir}: {error}")
    }

    /// Let the plugin serve, once the datapath stands. A node that served before goes on serving when something
    /// fails later: that is a condition, not a reason to refuse pods. Says whether the plugin gives addresses of the spec's blocks
    /// only.
    fn publish_node_config(&mut self, desired: &Desired, outcome: &mut Outcome) -> bool {
        let first = !self.paths.run_dir.join(node::FILE).exists();
        if first && (!desired.has_blocks() || !outcome.failures.is_empty()) {
            return true;
        }
        match desired.plugin.write(&self.paths.run_dir) {
            Ok(true) => {
                info!("blocks for new pods written");
                let was = |settled: &Desired| settled.plugin == desired.plugin;
                self.file_written(&self.paths.run_dir.join(node::FILE), was);
            }
            Ok(false) => {}
            Err(error) => {
                let file = self.paths.run_dir.join(node::FILE);
                let failure = format!("write {}: {error}", file.display());
                outcome.fail(failure);
                return false;
            }
        }
        match cni_config::ensure(
            &self.paths.cni_conf_dir,
            &conf::conflist(&self.paths.run_dir.to_string_lossy()),
        ) {
            Ok(true) => {
                info!(dir = %self.paths.cni_conf_dir.display(), "CNI configuration written, the node can take pods");
                self.file_written(&self.paths.cni_conf_dir.join(conf::CONFLIST_FILE), |_| true);
            }
            Ok(false) => {}
            Err(error) => outcome.fail(error_chain(&error)),
        }
        self.health.opened();
        true
    }

    /// A file has been written; if it was right before, somebody else has changed it.
    fn file_written(&mut self, file: &Path, was_right: impl Fn(&Desired) -> bool) {
        if self.drifts.settled().is_some_and(was_right) {
            let what = format!("file {}", file.display());
            let difference = Difference {
                found: "none or another".to_owned(),
                wanted: "as it was written".to_owned(),
            };
            let now = Instant::now();
            self.drifts.thing_repaired("file", &what, &difference, now);
        }
    }

    fn foreign_configurations(&self) -> Vec<String> {
        let dir = self.paths.cni_conf_dir.display();
        let sentence = |file| {
            format!(
                "{dir}/{file} sorts before {} and is used instead of it: remove it",
                conf::CONFLIST_FILE
            )
        };
        cni_config::in_front(&self.paths.cni_conf_dir)
            .into_iter()
            .map(sentence)
            .collect()
    }
}
