//! Failures of agent, operator and API server under load.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, merge, rollout_status, text};
use crate::kind::meter::Meter;

/// Time limit of the recovery.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// Minimum duration of the outage of the API server.
const OUTAGE: Duration = Duration::from_secs(30);

pub(crate) fn killed_agents_lose_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = restarts("netweft-agent")?;
    let meter = Meter::start(&cluster.probes, Duration::from_secs(8))?;
    for node in host::nodes()? {
        ensure!(
            host::kill_all(&node, "netweft-agent")? == 1,
            "there was not exactly one agent process on {node}"
        );
    }
    meter.finish()?;
    await_restart("netweft-agent", before)
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
    await_restart("netweft-operator", before)
}

/// Pods lose no packet while the API server is down, and the clients of the API server reconnect afterwards.
pub(crate) fn api_server_outage_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    /// Outside of the directory of static pods, so that the kubelet does not restart the API server.
    const MOVED_MANIFEST: &str = "/etc/kubernetes/kube-apiserver.yaml";
    let nodes = host::nodes()?;
    let control_plane = nodes
        .iter()
        .find(|node| node.ends_with("control-plane"))
        .context("no control plane node")?;
    let meter = Meter::start(&cluster.probes, OUTAGE + Duration::from_secs(4))?;
    host::on(control_plane, &["mv", MANIFEST, MOVED_MANIFEST])?;
    let killed = host::kill_all(control_plane, "kube-apiserver")?;
    let started = Instant::now();
    let measured = meter.finish();
    let outage = started.elapsed();
    let answers = kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).is_ok();
    host::on(control_plane, &["mv", MOVED_MANIFEST, MANIFEST])?;
    until("the API server to be ready", RECOVERY_TIMEOUT, || {
        kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"])
    })?;
    ensure!(
        killed == 1,
        "{killed} API server processes were killed instead of 1"
    );
    ensure!(
        !answers && outage >= OUTAGE,
        "the API server was not down for {OUTAGE:?}"
    );
    measured?;
    // The clients of the API server must reconnect without a restart.
    until("all nodes to be Ready", RECOVERY_TIMEOUT, || {
        kubectl(&[
            "wait",
            "nodes,nodenetworks",
            "--all",
            "--for=condition=Ready",
            "--timeout=5s",
        ])
    })?;
    check_agents_apply_change()
}

/// Every agent applies a change of the NetworkMode: the MTU is set to the detected value, which changes no packet, and reset.
fn check_agents_apply_change() -> anyhow::Result<()> {
    let networks = get(&["nodenetworks"])?;
    let network = items(&networks).next().context("no NodeNetwork")?;
    let detected = network
        .pointer("/status/mtu")
        .and_then(serde_json::Value::as_u64);
    let detected = detected.context("the NodeNetwork reports no MTU")?;
    for mtu in [detected, 0] {
        let patch = format!("{{\"spec\":{{\"mtu\":{mtu}}}}}");
        merge(&["networkmode", "default"], &patch)?;
        until("all agents to apply the MTU", RECOVERY_TIMEOUT, || {
            let networks = get(&["nodenetworks"])?;
            for network in items(&networks) {
                let at = |pointer: &str| network.pointer(pointer).cloned();
                ensure!(
                    at("/spec/modes/0/mtu") == Some(mtu.into())
                        && at("/status/observedGeneration") == at("/metadata/generation"),
                    "{} has not applied the MTU {mtu}",
                    text(network, "/metadata/name")?
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The sum of the restart counts of all pods in netweft-system whose names begin with `prefix`.
pub(crate) fn restarts(prefix: &str) -> anyhow::Result<i64> {
    let pods = get(&["pods", "-n", "netweft-system"])?;
    let matching = items(&pods)
        .filter(|pod| text(pod, "/metadata/name").is_ok_and(|name| name.starts_with(prefix)));
    let counts = matching.filter_map(|pod| {
        pod.pointer("/status/containerStatuses/0/restartCount")?
            .as_i64()
    });
    Ok(counts.sum())
}

/// Wait until the restart count is higher than `before`, which shows that a process was killed, and all workloads are ready.
pub(crate) fn await_restart(prefix: &str, before: i64) -> anyhow::Result<()> {
    let condition = format!("the restart of {prefix}");
    until(&condition, RECOVERY_TIMEOUT, || {
        ensure!(
            restarts(prefix)? > before,
            "no container of {prefix} was restarted"
        );
        rollout_status("netweft-system", "deployment,daemonset", "5s")
    })
}
