//! From one version to another and back, while pods ping and others come and go: nothing is lost, whatever the order in which the
//! programs are replaced, and each version reads what the other has left on the nodes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{start_pod, stop_pod};
use crate::kind::checks::rollout::{pods, wait_for};
use crate::kind::host;
use crate::kind::install::{Install, helm_install};
use crate::kind::kubectl::{get, items, kubectl, text};
use crate::kind::meter::Meter;
use crate::kind::residue::in_agent;

/// How long everything may take to be replaced, node by node.
const REPLACED: Duration = Duration::from_secs(75);
/// How long nodes of both versions live side by side.
const MIXED: Duration = Duration::from_secs(20);
/// How many pods come and go meanwhile at least.
const COMERS: usize = 5;

/// Upgrades a cluster that runs `old`, downgrades it, and upgrades it half.
///
/// # Errors
/// Something was lost, or did not work.
pub fn upgrade(cluster: &Cluster, old: &Install, new: &Install) -> anyhow::Result<()> {
    ensure!(old.tag != new.tag, "both versions have the same programs");
    let early = Early::start(cluster)?;
    change(cluster, new, "the upgrade")?;
    early.end("with the new plugin")?;
    let early = Early::start(cluster)?;
    change(cluster, old, "the downgrade")?;
    early.end("with the old plugin")?;
    half(cluster, new)?;
    change(cluster, new, "the rest of the upgrade")
}

/// A pod that one version has started and another ends.
struct Early {
    node: String,
    address: String,
}

impl Early {
    const NAME: &str = "early";

    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let node = cluster.probes.pods.last().context("a pod")?.node.clone();
        start_pod(Self::NAME, &node, &cluster.image)?;
        let pod = get(&["pod", Self::NAME, "-n", "netweft-e2e"])?;
        let address = text(&pod, "/status/podIP")?.to_owned();
        Ok(Self { node, address })
    }

    fn end(self, how: &str) -> anyhow::Result<()> {
        stop_pod(Self::NAME)?;
        let Self { node, address } = self;
        until("its address to be free", Duration::from_secs(60), || {
            let records = host::on(&node, &["ls", "/run/netweft/attachments"])?;
            let taken = records.lines().any(|line| line == address);
            ensure!(!taken, "{address} still has a record {how}");
            Ok(())
        })
    }
}

/// Changes everything to another version.
fn change(cluster: &Cluster, to: &Install, what: &str) -> anyhow::Result<()> {
    let birds = pods("bird")?;
    under_load(cluster, what, || {
        helm_install(to)?;
        wait_for("deployment,daemonset")
    })?;
    all_run(&to.tag)?;
    if to.bird_tag == cluster.bird_tag {
        ensure!(
            birds == pods("bird")?,
            "{what} has replaced BIRD, which has not changed"
        );
    }
    all_is_well(what)
}

/// The controller manager is stopped as soon as one agent is new, so that the other agents keep the old version for a while.
fn half(cluster: &Cluster, to: &Install) -> anyhow::Result<()> {
    const REPLACER: &str = "kube-controller-manager";
    let nodes = host::nodes()?;
    let signal = |signal| {
        let reached = nodes
            .iter()
            .map(|node| host::signal_all(node, REPLACER, signal));
        let reached: usize = reached.sum::<anyhow::Result<usize>>()?;
        ensure!(reached == 1, "{reached} controller managers run");
        Ok(())
    };
    let new =
        || Ok::<_, anyhow::Error>(tags("agent")?.iter().filter(|tag| **tag == to.tag).count());
    under_load(cluster, "half an upgrade", || {
        helm_install(to)?;
        until("an agent of the new version", REPLACED, || {
            ensure!(new()? > 0, "there is none");
            Ok(())
        })?;
        signal("STOP")?;
        thread::sleep(MIXED);
        let new = new();
        signal("CONT")?;
        let (new, all) = (new?, nodes.len());
        println!("  {new} of {all} agents were of the new version");
        ensure!(new < all, "no agent was of the old version");
        Ok(())
    })
}

/// Pods ping and others come and go.
fn under_load(
    cluster: &Cluster,
    what: &str,
    deed: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let meter = Meter::start(&cluster.probes, REPLACED)?;
    let node = &cluster.probes.pods.last().context("a pod")?.node;
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut took = Duration::ZERO;
    let outcome = thread::scope(|scope| {
        let comers = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                start_pod("comer", node, &cluster.image)?;
                stop_pod("comer")?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        let outcome = deed();
        took = began.elapsed();
        println!("  {what} took {:.0} s", took.as_secs_f32());
        let enough = until("pods to come and go", Duration::from_secs(120), || {
            let count = count.load(Ordering::Relaxed);
            ensure!(count >= COMERS || comers.is_finished(), "{count} have");
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let came = comers
            .join()
            .map_err(|_| anyhow!("the pods that come and go panicked"))?;
        outcome
            .and(enough)
            .and(came.context("a pod that came and went"))
    });
    meter.finish().with_context(|| what.to_owned())?;
    ensure!(took < REPLACED, "{what} took longer than the pings");
    outcome.with_context(|| what.to_owned())
}

/// The tags of a component's images, one for each pod.
fn tags(component: &str) -> anyhow::Result<Vec<String>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list = get(&["pods", "-n", "netweft-system", "-l", &label])?;
    let images = items(&list).map(|pod| text(pod, "/spec/containers/0/image"));
    let tag = |image: &str| image.rsplit(':').next().unwrap_or_default().to_owned();
    images.map(|image| image.map(tag)).collect()
}

fn all_run(tag: &str) -> anyhow::Result<()> {
    for component in ["operator", "agent", "udp-relay"] {
        let tags = tags(component)?;
        ensure!(
            !tags.is_empty() && tags.iter().all(|found| found == tag),
            "{component}: {tags:?}"
        );
    }
    Ok(())
}

/// No program has restarted, every node has its desired state, and all objects are Ready.
fn all_is_well(what: &str) -> anyhow::Result<()> {
    let ready = ["--all", "--for=condition=Ready", "--timeout=60s"];
    for kind in ["nodes", "ippools", "networkmodes", "nodenetworks"] {
        kubectl(&[&["wait", kind], &ready[..]].concat()).context(what.to_owned())?;
    }
    let list = get(&["pods", "-n", "netweft-system"])?;
    for pod in items(&list) {
        let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
        let name = text(pod, "/metadata/name")?;
        ensure!(
            restarts == Some(&0.into()),
            "{what}: {name} has died: {restarts:?}"
        );
    }
    for node in host::nodes()? {
        in_agent(&node, &["netweft-agent", "check"]).with_context(|| format!("{what}, {node}"))?;
    }
    Ok(())
}
