//! Addresses that pods take and give back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::kind::probes::wait_for_pod;
use crate::kind::residue::{Residue, check_leaks};

const POD_COUNT: usize = 100;
const CROWD: &str = include_str!("../../../manifests/crowd.yaml");
const GONE: Duration = Duration::from_secs(60);

/// Addresses that have a record on a node.
fn recorded(node: &str) -> anyhow::Result<BTreeSet<String>> {
    let names = host::on(node, &["ls", "/run/netweft/attachments"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

pub(crate) fn deleted_pod_frees_its_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    let probe = cluster.probes.pods.last().context("a pod")?.clone();
    let name = "short-lived";
    start_pod(name, &probe.node, &cluster.image)?;
    let address = pod_address(name)?;
    ensure!(
        recorded(&probe.node)?.contains(&address),
        "{address} has no record on {}",
        probe.node
    );
    stop_pod(name)?;
    until("the address to be free", GONE, || {
        ensure!(
            !recorded(&probe.node)?.contains(&address),
            "{address} still has a record"
        );
        Ok(())
    })
}

pub(crate) fn hundred_pods_created_and_deleted_leave_nothing(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    check_leaks()?;
    let before = Residue::look()?;
    apply(
        &CROWD
            .replace("IMAGE", &cluster.image)
            .replace("COUNT", &POD_COUNT.to_string()),
    )?;
    rollout_status("netweft-e2e", "deployment/crowd", "300s")?;
    let pods = get(&["pods", "-n", "netweft-e2e", "-l", "app=crowd"])?;
    let addresses: BTreeSet<&str> = items(&pods)
        .filter_map(|pod| text(pod, "/status/podIP").ok())
        .collect();
    ensure!(
        addresses.len() == POD_COUNT,
        "{POD_COUNT} pods have {} different addresses",
        addresses.len()
    );
    kubectl(&[
        "-n",
        "netweft-e2e",
        "delete",
        "deployment/crowd",
        "--cascade=foreground",
    ])?;
    until("all traces of the pods to be gone", GONE, || {
        Residue::look()?.same_as(&before)
    })?;
    check_leaks()
}

/// Start a pod on a node and wait until it is ready.
pub fn start_pod(name: &str, node: &str, image: &str) -> anyhow::Result<()> {
    apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: netweft-e2e}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: probe
    image: {image}
    imagePullPolicy: Never
    command: [netweft-probe, serve, --port, \"8080\"]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    ))?;
    wait_for_pod(name)
}

/// Delete a pod and wait until it is removed from the API server.
pub fn stop_pod(name: &str) -> anyhow::Result<()> {
    kubectl(&["-n", "netweft-e2e", "delete", "pod", name, "--timeout=60s"]).map(drop)
}

/// A pod's address.
pub(crate) fn pod_address(name: &str) -> anyhow::Result<String> {
    let pod = get(&["pod", name, "-n", "netweft-e2e"])?;
    Ok(text(&pod, "/status/podIP")?.to_owned())
}
