//! Upgrade to another version, downgrade, and a partial upgrade, under load: pods ping each other, and other pods start and stop.
//!
//! No packet may be lost in any order in which the programs are replaced. Each version must read the files that the other version
//! has written on the nodes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{start_pod, stop_pod, wait_for_free_address};
use crate::kind::checks::rollout::{pods, wait_for};
use crate::kind::host;
use crate::kind::install::{Install, helm_install};
use crate::kind::kubectl::{get, items, kubectl, text};
use crate::kind::meter::Meter;
use crate::kind::residue::in_agent;

/// Time limit of one upgrade or downgrade, node by node. Pods ping each other for this time.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long nodes of both versions run in the partial upgrade.
const MIXED_VERSIONS: Duration = Duration::from_secs(20);
/// Minimum number of pods that start and stop during each change of version.
const MIN_CHURN_PODS: usize = 5;

/// Upgrades a cluster from `old` to `new`, downgrades the cluster, and upgrades it again with a pause after some of the agents.
///
/// # Errors
/// Both versions have the same tag, a packet was lost, a pod did not start or stop, or a program did not become ready.
pub fn upgrade(cluster: &Cluster, old: &Install, new: &Install) -> anyhow::Result<()> {
    ensure!(
        old.tag != new.tag,
        "both versions have the image tag {}",
        new.tag
    );
    let pod = CrossVersionPod::start(cluster)?;
    change_version(cluster, new, "the upgrade")?;
    pod.stop("with the new plugin")?;
    let pod = CrossVersionPod::start(cluster)?;
    change_version(cluster, old, "the downgrade")?;
    pod.stop("with the old plugin")?;
    partial_upgrade(cluster, new)?;
    change_version(cluster, new, "the rest of the upgrade")
}

/// A pod that one version starts and another version stops.
struct CrossVersionPod {
    node: String,
    address: String,
}

impl CrossVersionPod {
    const NAME: &str = "cross-version";

    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let node = cluster.probes.last()?.node.clone();
        start_pod(Self::NAME, &node, &cluster.image)?;
        let pod = get(&["pod", Self::NAME, "-n", "netweft-e2e"])?;
        let address = text(&pod, "/status/podIP")?.to_owned();
        Ok(Self { node, address })
    }

    fn stop(self, version: &str) -> anyhow::Result<()> {
        stop_pod(Self::NAME)?;
        wait_for_free_address(&self.node, &self.address)
            .with_context(|| format!("stop a pod {version}"))
    }
}

/// Changes all programs to another version.
fn change_version(cluster: &Cluster, to: &Install, what: &str) -> anyhow::Result<()> {
    let bird_pods = pods("bird")?;
    under_load(cluster, what, || {
        helm_install(to)?;
        wait_for("deployment,daemonset")
    })?;
    check_tags(&to.tag)?;
    if to.bird_tag == cluster.bird_tag {
        ensure!(
            bird_pods == pods("bird")?,
            "{what} has replaced the BIRD pods, although both versions have the same BIRD image"
        );
    }
    check_health(what)
}

/// Stops the controller manager with SIGSTOP as soon as one agent has the new version. The other agents keep the old version until
/// SIGCONT.
fn partial_upgrade(cluster: &Cluster, to: &Install) -> anyhow::Result<()> {
    const CONTROLLER_MANAGER: &str = "kube-controller-manager";
    let nodes = host::nodes()?;
    let signal = |signal| {
        let signalled = nodes
            .iter()
            .map(|node| host::signal_all(node, CONTROLLER_MANAGER, signal));
        let signalled: usize = signalled.sum::<anyhow::Result<usize>>()?;
        ensure!(
            signalled == 1,
            "{signalled} controller managers are running instead of 1"
        );
        Ok(())
    };
    let new_agents =
        || Ok::<_, anyhow::Error>(tags("agent")?.iter().filter(|tag| **tag == to.tag).count());
    under_load(cluster, "the partial upgrade", || {
        helm_install(to)?;
        until("an agent of the new version", UPGRADE_TIMEOUT, || {
            ensure!(new_agents()? > 0, "all agents have the old version");
            Ok(())
        })?;
        signal("STOP")?;
        thread::sleep(MIXED_VERSIONS);
        let new_agents = new_agents();
        signal("CONT")?;
        let (new_agents, all) = (new_agents?, nodes.len());
        println!("  {new_agents} of {all} agents had the new version");
        ensure!(new_agents < all, "no agent had the old version");
        Ok(())
    })
}

/// Runs `action` while the test pods ping each other and other pods start and stop.
fn under_load(
    cluster: &Cluster,
    what: &str,
    action: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let meter = Meter::start(&cluster.probes, UPGRADE_TIMEOUT)?;
    let node = &cluster.probes.last()?.node;
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut elapsed = Duration::ZERO;
    let outcome = thread::scope(|scope| {
        let churn = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                start_pod("churn", node, &cluster.image)?;
                stop_pod("churn")?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        let outcome = action();
        elapsed = started.elapsed();
        println!("  {what} took {:.0} s", elapsed.as_secs_f32());
        let enough = until("pods to start and stop", Duration::from_secs(120), || {
            let count = count.load(Ordering::Relaxed);
            ensure!(
                count >= MIN_CHURN_PODS || churn.is_finished(),
                "{count} pods have started and stopped, at least {MIN_CHURN_PODS} are required"
            );
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let churned = churn
            .join()
            .map_err(|_| anyhow!("the thread that starts and stops pods panicked"))?;
        outcome
            .and(enough)
            .and(churned.context("start and stop a pod"))
    });
    meter.finish().with_context(|| what.to_owned())?;
    ensure!(
        elapsed < UPGRADE_TIMEOUT,
        "{what} took longer than the pings, {UPGRADE_TIMEOUT:?}"
    );
    outcome.with_context(|| what.to_owned())
}

/// The image tags of a component, one for each pod.
fn tags(component: &str) -> anyhow::Result<Vec<String>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list = get(&["pods", "-n", "netweft-system", "-l", &label])?;
    let images = items(&list).map(|pod| text(pod, "/spec/containers/0/image"));
    let tag = |image: &str| image.rsplit(':').next().unwrap_or_default().to_owned();
    images.map(|image| image.map(tag)).collect()
}

/// All pods of operator, agent and relay have this image tag.
fn check_tags(tag: &str) -> anyhow::Result<()> {
    for component in ["operator", "agent", "udp-relay"] {
        let tags = tags(component)?;
        ensure!(
            !tags.is_empty() && tags.iter().all(|found| found == tag),
            "the pods of {component} have the image tags {tags:?} instead of {tag}"
        );
    }
    Ok(())
}

/// No program has restarted, every node has its desired state, and all objects are Ready.
fn check_health(what: &str) -> anyhow::Result<()> {
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
            "{what}: the restart count of {name} is {restarts:?} instead of 0"
        );
    }
    for node in host::nodes()? {
        in_agent(&node, &["netweft-agent", "check"]).with_context(|| format!("{what}, {node}"))?;
    }
    Ok(())
}
