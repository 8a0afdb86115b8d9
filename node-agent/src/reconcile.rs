//! The loop: something may have changed ─▶ inputs ─▶ desired ─▶ read ─▶ diff ─▶ apply ─▶ status.
//!
//! Guarantees: nothing is written before every object has been heard of; correct objects are not touched; one failure
//! does not stop unrelated work; the container runtime's configuration is written last, after the first sync without a
//! failure. Assumptions: nobody else writes what is ours by name or protocol number.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use netweft_cni::attachment::Store;
use netweft_cni::conf;
use netweft_cni::node;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{NodeNetwork, NodeNetworkStatus, RepairCounts, RouteCounts};
use netweft_netstate::diff::diff;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkKind, LinkName, NetworkState};
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;
use netweft_udp_relay::config::RelayConfig;
use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::bird::{Link, Observed};
use crate::desired::bird::learnt;
use crate::desired::{Desired, desired, masquerade};
use crate::facts::Facts;
use crate::inputs::{Bridged, Inputs, Objects};
use crate::metrics::Metrics;
use crate::nft::{Change, Nft, NftError};
use crate::pods::{Counts, Pods, Records, Tended};
use crate::prober::{Answers, Trials};
use crate::report::Reporter;
use crate::status::{Outcome, same, same_but_for_sessions, status, verdict};
use crate::words::chain;
use crate::{cni_conf, draining, requests, sysctl};

/// How long after a failure it is tried again: doubled each time up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How long a status rests after it was told, if only what comes and goes with BGP sessions is news: while hundreds of them come
/// up, not each is a write.
const REST: Duration = Duration::from_secs(5);

/// Places on this node.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The plugin's state.
    pub run_dir: PathBuf,
    /// The container runtime's configuration.
    pub cni_conf_dir: PathBuf,
    /// `/proc/sys/net`.
    pub sysctl_dir: PathBuf,
}

/// One node and what keeps it as it should be.
pub struct Reconciler<K> {
    node: String,
    kernel: K,
    pods: Pods,
    nft: Nft,
    bird: Link,
    trials: Trials,
    paths: Paths,
    reporter: Reporter,
    metrics: Metrics,
    told: Option<Told>,
    /// Whether the next status is told even if only its counts are news.
    thorough: bool,
    waiting: bool,
    failures: u32,
    /// When to look again although nothing failed.
    again: Option<Duration>,
}

/// The status last told, and of which object (a Node that is deleted and comes back has a new one).
struct Told {
    uid: Option<String>,
    status: NodeNetworkStatus,
    at: Instant,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has done nothing yet.
    pub fn new(
        node: String,
        kernel: K,
        (bird, trials): (Link, Trials),
        paths: Paths,
        (reporter, metrics): (Reporter, Metrics),
    ) -> Self {
        let nft = Nft::new(&paths.run_dir);
        let pods = Pods::new(Store::new(&paths.run_dir), metrics.clone());
        Self {
            node,
            kernel,
            pods,
            nft,
            bird,
            trials,
            paths,
            reporter,
            metrics,
            told: None,
            thorough: false,
            again: None,
            waiting: false,
            failures: 0,
        }
    }

    /// Make the node as `objects` want it and tell the status. Returns when to try again although nothing has
    /// changed; `None` if all is well.
    pub async fn reconcile(&mut self, objects: &Objects) -> Option<Duration> {
        let Some(network) = &objects.network else {
            // Also when the Node object is deleted under a running node: its pods keep their network.
            if !self.waiting {
                info!(node = %self.node, "there is no NodeNetwork of this name, nothing is changed");
            }
            self.waiting = true;
            return None;
        };
        self.waiting = false;
        let clean = match self.sync(objects, network).await {
            Ok((desired, outcome)) => {
                let verdict = verdict(&desired, &outcome);
                let clean = outcome.failures.is_empty();
                self.tell(network, &desired, &verdict, outcome).await && clean
            }
            Err(reason) => {
                warn!(%reason, "cannot sync, will retry");
                self.tell_reason(network, &reason).await;
                false
            }
        };
        self.metrics.synced(clean);
        let retry = self.retry_after(clean);
        retry.into_iter().chain(self.again.take()).min()
    }

    /// Doubt what was told, so that a status which somebody else has changed is told again, and counts are brought up to
    /// date.
    pub fn doubt(&mut self) {
        self.told = None;
        self.thorough = true;
    }

    /// To be told when BIRD's sessions have changed.
    pub fn sessions(&self) -> watch::Receiver<Observed> {
        self.bird.changes()
    }

    /// To be told when ways that stand by have been tried.
    pub fn trials(&self) -> watch::Receiver<Answers> {
        self.trials.changes()
    }

    fn retry_after(&mut self, clean: bool) -> Option<Duration> {
        self.failures = if clean {
            0
        } else {
            self.failures.saturating_add(1)
        };
        (!clean).then(|| {
            RETRY
                .0
                .saturating_mul(1 << (self.failures - 1).min(10))
                .min(RETRY.1)
        })
    }

    /// Bring kernel, nft table and files in line. An error means that nothing was changed.
    async fn sync(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
    ) -> Result<(Desired, Outcome), String> {
        let records = self.pods.records().map_err(|error| {
            format!(
                "read the attachments in {}: {error}",
                self.paths.run_dir.display()
            )
        })?;
        let readable = records.values().filter_map(|record| record.as_ref().ok());
        let inputs = Inputs::new(&self.node, objects, network, Bridged::of(readable));
        let actual = self.kernel.read().await.map_err(|error| chain(&error))?;
        let facts = Facts::measure(&actual, &inputs).map_err(|error| chain(&error))?;
        let mut desired = desired(&inputs, &facts);
        let difference = diff(&actual, &desired.kernel, &Owner::agent());
        let readable = records
            .iter()
            .filter_map(|(ip, record)| Some((*ip, record.as_ref().ok()?)));
        let mut outcome = Outcome {
            draining: draining::pods(&inputs.pools, readable),
            ..Outcome::default()
        };
        outcome
            .conflicts
            .extend(difference.conflicts.iter().map(ToString::to_string));
        outcome.conflicts.extend(self.foreign_configurations());
        outcome.failures.extend(desired.waiting_for.iter().cloned());
        if let Err(error) = self.tell_relay(&desired.udp) {
            outcome.failures.push(chain(&error));
        }
        let missing = self.apply(&difference.ops, &desired, &mut outcome).await;
        // Only now, so that a route of ours is there before BIRD takes its own back.
        self.lead_bird(&inputs, &actual, &mut desired, &mut outcome)
            .await;
        let mut sysctls = desired.sysctls.clone();
        let of_missing = |name: &str| {
            missing
                .iter()
                .any(|link| name.contains(&format!("/{link}/")))
        };
        sysctls.retain(|name, _| !of_missing(name));
        let parameters = sysctl::ensure(
            &self.paths.sysctl_dir,
            &desired.keep_listening,
            &desired.loosen,
            &sysctls,
        );
        outcome.failures.extend(parameters.iter().map(|e| chain(e)));
        match self.nft.ensure(&desired.nft).await {
            Ok(Change::None) => {}
            Ok(Change::Loaded) => info!("nft table loaded"),
            Ok(Change::Removed) => info!("nft table removed, no pool asks for masquerading"),
            // To try again would not help, and pods reach each other without it.
            Err(NftError::NoFamily) => outcome.lacking.extend(masquerade::missed(&inputs)),
            Err(error) => outcome.failures.push(chain(&error)),
        }
        self.try_ways(&desired, &mut outcome);
        self.open_for_pods(&desired, &mut outcome);
        self.tend_pods(&records, &actual, &mut outcome).await;
        Ok((desired, outcome))
    }

    /// Says what BIRD is to do. While BGP is off and BIRD has let go of the kernel's routes, which it leaves there (`persist`), they
    /// are taken away; while it is on they are BIRD's alone.
    async fn lead_bird(
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
        let left = || learnt(inputs, actual);
        outcome.learnt = left().count() as i64;
        if desired.bird.is_none() && observed.released {
            let gone = left().map(|(key, route)| Op::RouteDelete {
                key: key.clone(),
                route: route.clone(),
            });
            let gone: Vec<Op> = gone.collect();
            self.apply(&gone, desired, outcome).await;
        }
    }

    /// Ask others by the ways that stand by.
    fn try_ways(&self, desired: &Desired, outcome: &mut Outcome) {
        if !desired.trials.is_empty()
            && let Err(error) = sysctl::allow_echo(&self.paths.sysctl_dir)
        {
            outcome.failures.push(chain(&error));
        }
        self.trials.want(&desired.trials);
    }

    /// The relay knows no more than what it is told here.
    fn tell_relay(&self, config: &RelayConfig) -> std::io::Result<()> {
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

    async fn tend_pods(&mut self, records: &Records, actual: &NetworkState, outcome: &mut Outcome) {
        let now = std::time::Instant::now();
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

    /// Apply the operations in order; what hangs on a link that failed is left for the next time. Returns the links that this
    /// kernel cannot have.
    async fn apply(
        &self,
        ops: &[Op],
        desired: &Desired,
        outcome: &mut Outcome,
    ) -> BTreeSet<LinkName> {
        let mut broken: BTreeSet<LinkName> = BTreeSet::new();
        let mut missing = BTreeSet::new();
        for op in ops {
            if !op.is_delete() && op.link().is_some_and(|link| broken.contains(link)) {
                continue;
            }
            match self.kernel.apply(op).await {
                Ok(()) => {
                    info!(%op, "kernel changed");
                    self.metrics.applied(op.kind());
                }
                Err(error) => {
                    error!(error = %chain(&error), "cannot change the kernel, will retry");
                    // On another's link one route does not hang on the next.
                    let ours = op.link().filter(|link| Owner::agent().owns_link(link));
                    broken.extend(ours.cloned());
                    let Some((link, sentence)) = lacking(op, &error) else {
                        outcome.failures.push(chain(&error));
                        continue;
                    };
                    missing.insert(link.clone());
                    // Where no pod has an address that needs it, pods go on: they only do not reach those that have.
                    if desired.spare.contains(link) {
                        outcome.lacking.push(sentence);
                    } else {
                        outcome.failures.push(sentence);
                    }
                }
            }
        }
        missing
    }

    /// Let the plugin serve, once the datapath stands. A node that served before goes on serving when something
    /// fails later: that is a condition, not a reason to refuse pods.
    fn open_for_pods(&self, desired: &Desired, outcome: &mut Outcome) {
        let first = !self.paths.run_dir.join(node::FILE).exists();
        if first && (!desired.has_blocks() || !outcome.failures.is_empty()) {
            return;
        }
        match desired.plugin.write(&self.paths.run_dir) {
            Ok(true) => info!("blocks for new pods written"),
            Ok(false) => {}
            Err(error) => {
                let file = self.paths.run_dir.join(node::FILE);
                let failure = format!("write {}: {error}", file.display());
                return outcome.failures.push(failure);
            }
        }
        match cni_conf::ensure(
            &self.paths.cni_conf_dir,
            &conf::conflist(&self.paths.run_dir.to_string_lossy()),
        ) {
            Ok(true) => {
                info!(dir = %self.paths.cni_conf_dir.display(), "CNI configuration written, the node can take pods");
            }
            Ok(false) => {}
            Err(error) => outcome.failures.push(chain(&error)),
        }
        self.metrics.ready();
    }

    fn foreign_configurations(&self) -> Vec<String> {
        let dir = self.paths.cni_conf_dir.display();
        let sentence = |file| {
            format!(
                "{dir}/{file} sorts before {} and is used instead of it: remove it",
                conf::CONFLIST_FILE
            )
        };
        cni_conf::in_front(&self.paths.cni_conf_dir)
            .into_iter()
            .map(sentence)
            .collect()
    }

    async fn tell(
        &mut self,
        network: &NodeNetwork,
        desired: &Desired,
        verdict: &Verdict,
        outcome: Outcome,
    ) -> bool {
        let before = self
            .known(network)
            .map(|status| status.conditions)
            .unwrap_or_default();
        let taken = self.pods.taken().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot list the pods' addresses");
            BTreeSet::new()
        });
        let used =
            |block: ipnet::IpNet| taken.iter().filter(|ip| block.contains(*ip)).count() as i64;
        let mut status = status(desired, verdict, network.metadata.generation, &before, used);
        status.routes = status.routes.map(|routes| RouteCounts {
            bgp: outcome.learnt,
            ..routes
        });
        status.sessions = self.bird.observed().sessions;
        let Answers { answered, problem } = self.trials.answers();
        let trials = desired.trials.iter();
        status.standby = trials
            .map(|trial| trial.status(&answered, problem.as_deref()))
            .collect();
        status.draining = outcome.draining;
        status.requests = requests::waiting(&self.paths.run_dir, &desired.plugin);
        let Counts {
            restored,
            reclaimed,
        } = self.pods.counts();
        status.repairs = Some(RepairCounts {
            restored: i64::try_from(restored).unwrap_or(i64::MAX),
            reclaimed: i64::try_from(reclaimed).unwrap_or(i64::MAX),
        });
        self.tell_status(network, status).await
    }

    /// Nothing could be looked at or changed: keep what was said of links and addresses, and say why.
    async fn tell_reason(&mut self, network: &NodeNetwork, reason: &str) {
        let before = self.known(network).unwrap_or_default();
        let verdict = Verdict::reconciling(Reason::ProgrammingFailed, reason);
        let now = k8s_openapi::jiff::Timestamp::now();
        let conditions = verdict.conditions(before.observed_generation, &before.conditions, now);
        self.tell_status(
            network,
            NodeNetworkStatus {
                conditions,
                ..before
            },
        )
        .await;
    }

    /// Tell the status if it is news. Returns whether the API server knows it.
    async fn tell_status(&mut self, network: &NodeNetwork, status: NodeNetworkStatus) -> bool {
        let thorough = self.thorough;
        let news = |known: NodeNetworkStatus| {
            !same(&known, &status) || (thorough && known.repairs != status.repairs)
        };
        if !self.known(network).is_none_or(news) {
            debug!("status unchanged");
            return true;
        }
        if let Some(rest) = self.rests(network, &status) {
            self.again = self.again.into_iter().chain([rest]).min();
            return true;
        }
        match self.reporter.tell(&self.node, &status).await {
            Ok(()) => {
                self.thorough = false;
                self.told = Some(Told {
                    uid: network.metadata.uid.clone(),
                    status,
                    at: Instant::now(),
                });
                true
            }
            Err(error) => {
                warn!(error = %chain(&error), "cannot tell the status, will retry");
                false
            }
        }
    }

    /// How long the status may rest, if it may.
    fn rests(&self, network: &NodeNetwork, status: &NodeNetworkStatus) -> Option<Duration> {
        let told = self.told.as_ref()?;
        let minor = told.uid == network.metadata.uid && same_but_for_sessions(&told.status, status);
        let left = REST.checked_sub(told.at.elapsed())?;
        (minor && !left.is_zero()).then_some(left)
    }

    /// The status as the API server has it: what was told last, since the watch may lag behind it.
    fn known(&self, network: &NodeNetwork) -> Option<NodeNetworkStatus> {
        let told = self
            .told
            .as_ref()
            .filter(|told| told.uid == network.metadata.uid);
        told.map(|told| told.status.clone())
            .or_else(|| network.status.clone())
    }
}

/// A link of a kind that this kernel does not know (`rtnl_newlink`), and what that means in a sentence.
fn lacking<'a>(
    op: &'a Op,
    error: &netweft_netstate::error::Error,
) -> Option<(&'a LinkName, String)> {
    let (Op::LinkAdd { name, link } | Op::LinkRecreate { name, link, .. }) = op else {
        return None;
    };
    let kind = match link.kind {
        LinkKind::Vxlan(_) => "vxlan",
        LinkKind::Ipip { .. } => "ipip",
        LinkKind::Bridge => "bridge",
        LinkKind::Tun | LinkKind::Veth | LinkKind::Other(_) => return None,
    };
    (error.errno() == Some(Errno::EOPNOTSUPP)).then(|| {
        let sentence = format!(
            "this kernel has no links of the kind {kind}, so there is no {name}, and pods that are reached by it are out of reach: load the module {kind} (modprobe {kind}), or choose another encapsulation in the NetworkMode"
        );
        (name, sentence)
    })
}

#[cfg(test)]
mod tests;
