//! A pool from its first pod to its end, as its user sees it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::pod_address;
use crate::kind::kubectl::{apply, get, items, kubectl, merge, rollout_status, text};

const POOL: &str = "asked-for";
const CIDR: &str = "10.246.64.0/20";
/// How long the operator and the agents may take to say what has changed.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// A pod that asks for a pool by annotation: its first ADD finds no block, the kubelet's next one does. Then the pool is drained, says
/// whose pod it waits for, and goes with it.
pub(crate) fn pool_requested_by_pod_is_drained_and_deleted(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    apply(&format!(
        "
apiVersion: netweft.io/v1alpha1
kind: IPPool
metadata: {{name: {POOL}}}
spec: {{cidr: {CIDR}, networkMode: default, natOutgoing: true}}
"
    ))?;
    until("all agents to acknowledge the pool", REPORT_TIMEOUT, || {
        for network in items(&get(&["nodenetworks"])?) {
            let at = |pointer: &str| network.pointer(pointer);
            let pools = at("/spec/pools").and_then(Value::as_array);
            let listed = pools.is_some_and(|pools| pools.iter().any(|pool| pool == POOL));
            let acknowledged = at("/status/observedGeneration") == at("/metadata/generation");
            ensure!(listed && acknowledged, "not yet: {network}");
        }
        Ok(())
    })?;
    ensure!(blocks()? == 0, "it has blocks before a pod needs one");
    start(&cluster.image)?;
    let address: IpAddr = pod_address("asker-0")?.parse()?;
    let pool: IpNet = CIDR.parse()?;
    ensure!(pool.contains(&address), "the pod has {address}");
    ensure!(blocks()? == 1, "{} blocks for one pod", blocks()?);
    let probe = cluster.probes.pods.first().context("a probe")?;
    probe.exec(&["ping", "-c", "3", "-W", "2", &address.to_string()])?;
    drain()?;
    kubectl(&[
        "-n",
        "netweft-e2e",
        "delete",
        "statefulset",
        "asker",
        "--timeout=60s",
    ])?;
    kubectl(&[
        "wait",
        "--for=delete",
        &format!("ippool/{POOL}"),
        "--timeout=60s",
    ])
    .map(drop)
}

/// A StatefulSet, so that there is an owner to be named.
fn start(image: &str) -> anyhow::Result<()> {
    apply(&format!(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: asker, namespace: netweft-e2e}}
spec:
  serviceName: asker
  selector: {{matchLabels: {{app: asker}}}}
  template:
    metadata:
      labels: {{app: asker}}
      annotations: {{netweft.io/pools: {POOL}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: probe
        image: {image}
        imagePullPolicy: Never
        command: [netweft-probe, serve, --port, \"8080\"]
"
    ))?;
    rollout_status("netweft-e2e", "statefulset/asker", "90s")
}

/// Close the pool and ask for its deletion: it stays while the pod does, and names its owner.
fn drain() -> anyhow::Result<()> {
    let patch = "{\"spec\":{\"disabled\":true}}";
    merge(&["ippool", POOL], patch)?;
    until("the pool to say whose pod remains", REPORT_TIMEOUT, || {
        let pool = get(&["ippool", POOL])?;
        let remaining = pool.pointer("/status/remainingPods");
        let entries = remaining.and_then(Value::as_array).map_or(0, Vec::len);
        let said = |pointer: &str| remaining.and_then(|remaining| remaining.pointer(pointer));
        ensure!(
            entries == 1
                && said("/0/owner") == Some(&json!("StatefulSet/asker"))
                && said("/0/namespace") == Some(&json!("netweft-e2e"))
                && said("/0/count") == Some(&json!(1)),
            "it says {remaining:?}"
        );
        Ok(())
    })?;
    kubectl(&["delete", "ippool", POOL, "--wait=false"])?;
    until("the pool to wait", REPORT_TIMEOUT, || {
        let pool = get(&["ippool", POOL])?;
        let reconciling = condition(&pool, "Reconciling");
        let reason = reconciling.and_then(|condition| text(condition, "/reason").ok());
        ensure!(reason == Some("InUse"), "it says {:?}", pool.get("status"));
        Ok(())
    })
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?;
    let mut conditions = conditions.as_array()?.iter();
    conditions.find(|condition| condition["type"] == type_)
}

/// How many blocks of the pool nodes have.
fn blocks() -> anyhow::Result<usize> {
    let subnets = get(&["nodesubnets"])?;
    let of_pool = |subnet: &&Value| text(subnet, "/spec/pool").is_ok_and(|pool| pool == POOL);
    Ok(items(&subnets).filter(of_pool).count())
}
