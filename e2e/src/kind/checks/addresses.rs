//! Allocation and release of pod addresses.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::kind::probes::wait_for_pod;
use crate::kind::residue::{Residue, check_leaks};

const POD_COUNT: usize = 100;
/// A Deployment of many pods.
const DEPLOYMENT: &str = include_str!("../../../manifests/crowd.yaml");
/// Time limit for the release of an address after the deletion of a pod.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Addresses with an attachment record on a node.
fn recorded_addresses(node: &str) -> anyhow::Result<BTreeSet<String>> {
    let names = host::on(node, &["ls", "/run/netweft/attachments"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

pub(crate) fn deleted_pod_frees_its_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    let probe = cluster.probes.last()?.clone();
    let name = "short-lived";
    start_pod(name, &probe.node, &cluster.image)?;
    let address = pod_address(name)?;
    ensure!(
        recorded_addresses(&probe.node)?.contains(&address),
        "{address} has no record on {}",
        probe.node
    );
    stop_pod(name)?;
    wait_for_free_address(&probe.node, &address)
}

/// Wait until an address has no attachment record on a node.
pub fn wait_for_free_address(node: &str, address: &str) -> anyhow::Result<()> {
    until("the address to be free", RELEASE_TIMEOUT, || {
        ensure!(
            !recorded_addresses(node)?.contains(address),
            "{address} still has a record on {node}"
        );
        Ok(())
    })
}

pub(crate) fn hundred_deleted_pods_leave_no_state_on_nodes(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    check_leaks()?;
    let before = Residue::with_agents()?;
    apply(
        &DEPLOYMENT
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
    until(
        "the removal of all state of the pods",
        RELEASE_TIMEOUT,
        || Residue::with_agents()?.same_as(&before),
    )?;
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

/// The first address of a pod.
pub(crate) fn pod_address(name: &str) -> anyhow::Result<String> {
    let pod = get(&["pod", name, "-n", "netweft-e2e"])?;
    Ok(text(&pod, "/status/podIP")?.to_owned())
}
