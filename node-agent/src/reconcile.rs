//! The loop: something may have changed ─▶ inputs ─▶ desired ─▶ read ─▶ diff ─▶ drift? ─▶ apply ─▶ status.
//!
//! Guarantees: nothing is written before every object has been heard of; correct objects are not touched; one failure
//! does not stop unrelated work; the container runtime's configuration is written last, after the first sync without a
//! failure. Assumptions: nobody else writes what is ours by name or protocol number.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netweft_cni::attachment::Store;
use netweft_cni::conf;
use netweft_cni::node;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{NodeNetwork, NodeNetworkStatus, RepairCounts, RouteCounts};
use netweft_netstate::events::Touched;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkKind, LinkName, NetworkState};
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;
use netweft_netstate::subject::Subject;
use netweft_udp_relay::config::RelayConfig;
use nix::errno::Errno;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::args::Paths;
use crate::bird::{Link, Observed};
use crate::compare::Comparison;
use crate::desired::bird::learnt;
use crate::desired::{Desired, masquerade};
use crate::drift::{Difference, Drifts, Judgement, TABLE};
use crate::inputs::{Inputs, Objects};
use crate::metrics::Metrics;
use crate::nft::{Change, Nft, NftError};
use crate::pods::{Counts, Pods, Records, Tended};
use crate::prober::{Answers, Trials};
use crate::status::{Outcome, status, verdict};
use crate::sysctl::{self, Ensured};
use crate::teller::Telling;
use crate::words::chain;
use crate::{cni_conf, draining, requests};

/// How long after a failure it is tried again: doubled each time up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// One node and what keeps it as it should be.
pub struct Reconciler<K> {
    node: String,
    kernel: K,
    pods: Pods,
    nft: Nft,
    bird: Link,
    trials: Trials,
    paths: Paths,
    telling: Telling,
    metrics: Metrics,
    drifts: Drifts,
    waiting: bool,
    failures: u32,
    /// When to look again although nothing failed.
    again: Option<Duration>,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has done nothing yet.
    pub fn new(
        node: String,
        kernel: K,
        (bird, trials): (Link, Trials),
        paths: Paths,
        (telling, metrics): (Telling, Metrics),
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
            telling,
            drifts: Drifts::new(metrics.clone()),
            metrics,
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
        self.drifts.begin(Instant::now());
        let settled = match self.sync(objects, network).await {
            Ok((desired, outcome)) => {
                let clean = outcome.failures.is_empty();
                let verdict = verdict(&desired, &outcome);
                self.tell(network, &desired, &verdict, outcome);
                clean.then_some(desired)
            }
            Err(reason) => {
                warn!(%reason, "cannot sync, will retry");
                self.tell_reason(network, &reason);
                None
            }
        };
        let clean = settled.is_some();
        self.drifts.end(settled);
        self.metrics.synced(clean);
        let retry = self.retry_after(clean);
        let drift = self.drifts.again(Instant::now());
        let soonest = retry.into_iter().chain(self.again.take()).chain(drift);
        soonest.min()
    }

    /// Doubt what was told, so that a status which somebody else has changed is told again, and counts are brought up to
    /// date.
    pub fn doubt(&self) {
        self.telling.doubt();
    }

    /// To be told who touched what in the kernel, before the sync that puts it right.
    pub fn heard(&mut self, touched: Touched) {
        self.drifts.heard(touched);
    }

    /// The kernel parameters that the node was last settled with.
    pub fn parameters(&self) -> BTreeSet<PathBuf> {
        let settled = self.drifts.settled().into_iter();
        let names = settled.flat_map(|it| {
            let loosened = it
                .loosen
                .iter()
                .map(|link| sysctl::rp_filter(link.as_str()));
            let listening = it.keep_listening.iter().map(sysctl::accept_ra);
            it.sysctls.keys().cloned().chain(loosened).chain(listening)
        });
        names.map(|name| self.paths.sysctl_dir.join(name)).collect()
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
        let given = (objects, network);
        let Comparison {
            inputs,
            actual,
            mut desired,
            difference,
        } = Comparison::make(&self.node, given, &records, &self.kernel).await?;
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
        let links = self
            .apply_difference(&difference.ops, &actual, &desired, &mut outcome)
            .await;
        // Only now, so that a route of ours is there before BIRD takes its own back.
        self.lead_bird(&inputs, &actual, &mut desired, &mut outcome)
            .await;
        self.set_parameters(&desired, &links, &mut outcome);
        self.load_table(&inputs, &desired, &mut outcome).await;
        self.try_ways(&desired, &mut outcome);
        self.open_for_pods(&desired, &mut outcome);
        self.tend_pods(&records, &actual, &mut outcome).await;
        outcome.fights = self.drifts.fights();
        Ok((desired, outcome))
    }

    /// Does what is to be done now.
    async fn apply_difference(
        &mut self,
        ops: &[Op],
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) -> Links {
        let now = Instant::now();
        let Judgement { drift, held } = self.drifts.judge(ops, actual, &desired.kernel, now);
        let due = ops.iter().enumerate().filter(|(at, _)| !held.contains(at));
        let (places, due): (Vec<usize>, Vec<Op>) = due.map(|(at, op)| (at, op.clone())).unzip();
        let Applied { done, missing } = self.apply(&due, desired, outcome).await;
        for (nth, op) in due.iter().enumerate() {
            let difference = places.get(nth).and_then(|at| drift.get(at));
            if let Some(difference) = difference
                && done.contains(&nth)
            {
                self.drifts.repaired(op, difference, now);
            }
        }
        let of_links = due
            .iter()
            .filter(|op| matches!(op.subject(), Subject::Link(_)));
        let touched = of_links.filter_map(Op::link).cloned().collect();
        Links { missing, touched }
    }

    fn set_parameters(&mut self, desired: &Desired, links: &Links, outcome: &mut Outcome) {
        let now = Instant::now();
        let was = |it: &Desired, name: &str| looked_after(it, name);
        let mut wanted = desired.sysctls.clone();
        wanted.retain(|name, _| {
            !is_of(name, &links.missing) && !self.drifts.has_to_wait(&parameter(name), now)
        });
        let Ensured { errors, set } = sysctl::ensure(
            &self.paths.sysctl_dir,
            &desired.keep_listening,
            &desired.loosen,
            &wanted,
        );
        outcome.failures.extend(errors.iter().map(|e| chain(e)));
        for (name, found, wanted) in set {
            let settled = self.drifts.settled();
            if settled.is_some_and(|it| was(it, &name)) && !is_of(&name, &links.touched) {
                let difference = Difference { found, wanted };
                let what = parameter(&name);
                self.drifts
                    .thing_repaired("sysctl", &what, &difference, now);
            }
        }
    }

    async fn load_table(&mut self, inputs: &Inputs, desired: &Desired, outcome: &mut Outcome) {
        let now = Instant::now();
        let mut settled = self.drifts.settled().into_iter();
        let was = settled.any(|settled| settled.nft == desired.nft);
        if was && self.drifts.has_to_wait(TABLE, now) {
            return;
        }
        match self.nft.ensure(&desired.nft).await {
            Ok(Change::None) => {}
            Ok(Change::Loaded { replaced }) => {
                info!("nft table loaded");
                if was {
                    let found = if replaced { "another" } else { "none" };
                    let difference = Difference {
                        found: found.to_owned(),
                        wanted: "as it was loaded".to_owned(),
                    };
                    self.drifts.table_repaired(&difference, now);
                }
            }
            Ok(Change::Removed) => info!("nft table removed, no pool asks for masquerading"),
            // To try again would not help, and pods reach each other without it.
            Err(NftError::NoFamily) => outcome.lacking.extend(masquerade::missed(inputs)),
            Err(error) => outcome.failures.push(chain(&error)),
        }
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
            drop(self.apply(&gone, desired, outcome).await);
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

    /// Apply the operations in order; what hangs on a link that failed is left for the next time.
    async fn apply(&self, ops: &[Op], desired: &Desired, outcome: &mut Outcome) -> Applied {
        let mut broken: BTreeSet<LinkName> = BTreeSet::new();
        let mut applied = Applied::default();
        for (nth, op) in ops.iter().enumerate() {
            if !op.is_delete() && op.link().is_some_and(|link| broken.contains(link)) {
                continue;
            }
            match self.kernel.apply(op).await {
                Ok(()) => {
                    info!(%op, "kernel changed");
                    self.metrics.applied(op.kind());
                    applied.done.insert(nth);
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
                    applied.missing.insert(link.clone());
                    // Where no pod has an address that needs it, pods go on: they only do not reach those that have.
                    if desired.spare.contains(link) {
                        outcome.lacking.push(sentence);
                    } else {
                        outcome.failures.push(sentence);
                    }
                }
            }
        }
        applied
    }

    /// Let the plugin serve, once the datapath stands. A node that served before goes on serving when something
    /// fails later: that is a condition, not a reason to refuse pods.
    fn open_for_pods(&mut self, desired: &Desired, outcome: &mut Outcome) {
        let first = !self.paths.run_dir.join(node::FILE).exists();
        if first && (!desired.has_blocks() || !outcome.failures.is_empty()) {
            return;
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
                return outcome.failures.push(failure);
            }
        }
        match cni_conf::ensure(
            &self.paths.cni_conf_dir,
            &conf::conflist(&self.paths.run_dir.to_string_lossy()),
        ) {
            Ok(true) => {
                info!(dir = %self.paths.cni_conf_dir.display(), "CNI configuration written, the node can take pods");
                self.file_written(&self.paths.cni_conf_dir.join(conf::CONFLIST_FILE), |_| true);
            }
            Ok(false) => {}
            Err(error) => outcome.failures.push(chain(&error)),
        }
        self.metrics.ready();
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
        cni_conf::in_front(&self.paths.cni_conf_dir)
            .into_iter()
            .map(sentence)
            .collect()
    }

    fn tell(&self, network: &NodeNetwork, desired: &Desired, verdict: &Verdict, outcome: Outcome) {
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
        status.drift = self.drifts.status();
        let Counts {
            restored,
            reclaimed,
        } = self.pods.counts();
        status.repairs = Some(RepairCounts {
            restored: i64::try_from(restored).unwrap_or(i64::MAX),
            reclaimed: i64::try_from(reclaimed).unwrap_or(i64::MAX),
        });
        self.want_told(network, status);
    }

    /// Nothing could be looked at or changed: keep what was said of links and addresses, and say why.
    fn tell_reason(&self, network: &NodeNetwork, reason: &str) {
        let before = self.known(network).unwrap_or_default();
        let verdict = Verdict::reconciling(Reason::ProgrammingFailed, reason);
        let now = k8s_openapi::jiff::Timestamp::now();
        let conditions = verdict.conditions(before.observed_generation, &before.conditions, now);
        let status = NodeNetworkStatus {
            conditions,
            ..before
        };
        self.want_told(network, status);
    }

    fn want_told(&self, network: &NodeNetwork, status: NodeNetworkStatus) {
        let uid = network.metadata.uid.as_deref();
        self.telling.want(uid, network.status.as_ref(), status);
    }

    /// The status as it stands, or soon will.
    fn known(&self, network: &NodeNetwork) -> Option<NodeNetworkStatus> {
        let uid = network.metadata.uid.as_deref();
        self.telling.known(uid, network.status.as_ref())
    }
}

/// What came of operations.
#[derive(Default)]
struct Applied {
    /// Those that were done, by their places.
    done: BTreeSet<usize>,
    /// Links that this kernel cannot have.
    missing: BTreeSet<LinkName>,
}

/// What has become of links.
struct Links {
    /// Those that this kernel cannot have.
    missing: BTreeSet<LinkName>,
    /// Those with which something was done; a new one has the kernel's own parameters.
    touched: BTreeSet<LinkName>,
}

/// Whether a kernel parameter is one of these links'.
fn is_of(name: &str, links: &BTreeSet<LinkName>) -> bool {
    let mut links = links.iter();
    links.any(|link| name.contains(&format!("/{link}/")))
}

/// A kernel parameter in words.
fn parameter(name: &str) -> String {
    format!("parameter net/{name}")
}

/// Whether a node that is so looks after a kernel parameter.
fn looked_after(desired: &Desired, name: &str) -> bool {
    let mut loosened = desired.loosen.iter();
    let mut listening = desired.keep_listening.iter();
    desired.sysctls.contains_key(name)
        || loosened.any(|link| sysctl::rp_filter(link.as_str()) == name)
        || listening.any(|link| sysctl::accept_ra(link) == name)
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
