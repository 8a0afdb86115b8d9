//! Programs that are killed while pods communicate.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, merge, rollout_status, text};
use crate::kind::meter::Meter;

const BACK: Duration = Duration::from_secs(120);
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(30);

pub(crate) fn killed_agents_lose_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = restarts("netweft-agent")?;
    let meter = Meter::start(&cluster.probes, Duration::from_secs(8))?;
    for node in host::nodes()? {
        ensure!(
            host::kill_all(&node, "netweft-agent")? == 1,
            "no agent was running on {node}"
        );
    }
    meter.finish()?;
    returned("netweft-agent", before)
}

pub(crate) fn killed_operators_lose_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = restarts("netweft-operator")?;
    let meter = Meter::start(&cluster.probes, Duration::from_secs(8))?;
    let killed: usize = host::nodes()?
        .iter()
        .map(|node| host::kill_all(node, "netweft-operator"))
        .sum::<anyhow::Result<usize>>()?;
    ensure!(killed == 2, "{killed} operators were running instead of 2");
    meter.finish()?;
    returned("netweft-operator", before)
}

/// The API server and, without it, every controller: pods keep their network.
pub(crate) fn api_server_outage_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    const ASIDE: &str = "/etc/kubernetes/kube-apiserver.yaml";
    let nodes = host::nodes()?;
    let control_plane = nodes
        .iter()
        .find(|node| node.ends_with("control-plane"))
        .context("a control plane")?;
    let meter = Meter::start(&cluster.probes, OUTAGE + Duration::from_secs(4))?;
    host::on(control_plane, &["mv", MANIFEST, ASIDE])?;
    let killed = host::kill_all(control_plane, "kube-apiserver")?;
    let started = Instant::now();
    let measured = meter.finish();
    let away = started.elapsed();
    let answered = kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).is_ok();
    host::on(control_plane, &["mv", ASIDE, MANIFEST])?;
    until("the API server to be back", BACK, || {
        kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"])
    })?;
    ensure!(killed == 1, "{killed} API servers were killed");
    ensure!(
        !answered && away >= OUTAGE,
        "the API server was not away for {OUTAGE:?}"
    );
    measured?;
    // Its clients have to reconnect by themselves.
    until("all nodes to be Ready again", BACK, || {
        kubectl(&[
            "wait",
            "nodes,nodenetworks",
            "--all",
            "--for=condition=Ready",
            "--timeout=5s",
        ])
    })?;
    every_agent_follows_edit()
}

/// Every agent follows an edit again, which changes nothing: it says what was measured.
fn every_agent_follows_edit() -> anyhow::Result<()> {
    let networks = get(&["nodenetworks"])?;
    let network = items(&networks).next().context("a NodeNetwork")?;
    let measured = network
        .pointer("/status/mtu")
        .and_then(serde_json::Value::as_u64);
    let measured = measured.context("a measured MTU")?;
    for mtu in [measured, 0] {
        let patch = format!("{{\"spec\":{{\"mtu\":{mtu}}}}}");
        merge(&["networkmode", "default"], &patch)?;
        until("all agents to follow an edit", BACK, || {
            let networks = get(&["nodenetworks"])?;
            for network in items(&networks) {
                let at = |pointer: &str| network.pointer(pointer).cloned();
                ensure!(
                    at("/spec/modes/0/mtu") == Some(mtu.into())
                        && at("/status/observedGeneration") == at("/metadata/generation"),
                    "{} has not followed",
                    text(network, "/metadata/name")?
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// How often the containers of our pods of this name were restarted, all together.
pub(crate) fn restarts(name: &str) -> anyhow::Result<i64> {
    let pods = get(&["pods", "-n", "netweft-system"])?;
    let ours =
        items(&pods).filter(|pod| text(pod, "/metadata/name").is_ok_and(|n| n.starts_with(name)));
    let counts = ours.filter_map(|pod| {
        pod.pointer("/status/containerStatuses/0/restartCount")?
            .as_i64()
    });
    Ok(counts.sum())
}

/// The programs were started again (so something was really killed) and are ready.
pub(crate) fn returned(name: &str, before: i64) -> anyhow::Result<()> {
    until(&format!("{name} to be back"), BACK, || {
        ensure!(restarts(name)? > before, "{name} was not restarted");
        rollout_status("netweft-system", "deployment,daemonset", "5s")
    })
}
