//! Life cycle of a pool: creation, a pod that requests an address, drain, deletion.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::pod_address;
use crate::kind::kubectl::{apply, get, items, kubectl, merge, rollout_status, text};

const POOL: &str = "requested";
const CIDR: &str = "10.246.64.0/20";
/// Time limit of status updates by operator and agents.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// A pod requests a pool by annotation. The node has no block of the pool at the first ADD, and the kubelet retries the ADD. Then the
/// pool is drained, its status names the owner of the remaining pod, and the pool is deleted after the pod.
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
            ensure!(
                listed && acknowledged,
                "a NodeNetwork does not have the pool {POOL}: {network}"
            );
        }
        Ok(())
    })?;
    ensure!(
        block_count()? == 0,
        "the pool has blocks before a pod needs an address"
    );
    start_requesting_pod(&cluster.image)?;
    let address: IpAddr = pod_address("requester-0")?.parse()?;
    let pool: IpNet = CIDR.parse()?;
    ensure!(
        pool.contains(&address),
        "the address of the pod, {address}, is not in {CIDR}"
    );
    let blocks = block_count()?;
    ensure!(
        blocks == 1,
        "the pool has {blocks} blocks for one pod instead of 1"
    );
    let probe = cluster.probes.first()?;
    probe.exec(&["ping", "-c", "3", "-W", "2", &address.to_string()])?;
    drain()?;
    kubectl(&[
        "-n",
        "netweft-e2e",
        "delete",
        "statefulset",
        "requester",
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

/// Start a pod of a StatefulSet, so that the pod has an owner that the status of the pool can name.
fn start_requesting_pod(image: &str) -> anyhow::Result<()> {
    apply(&format!(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: requester, namespace: netweft-e2e}}
spec:
  serviceName: requester
  selector: {{matchLabels: {{app: requester}}}}
  template:
    metadata:
      labels: {{app: requester}}
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
    rollout_status("netweft-e2e", "statefulset/requester", "90s")
}

/// Disable and delete the pool. The pool remains while it has a pod, and its status names the owner of the pod.
fn drain() -> anyhow::Result<()> {
    let patch = "{\"spec\":{\"disabled\":true}}";
    merge(&["ippool", POOL], patch)?;
    until("status.remainingPods of the pool", REPORT_TIMEOUT, || {
        let pool = get(&["ippool", POOL])?;
        let remaining = pool.pointer("/status/remainingPods");
        let entries = remaining.and_then(Value::as_array).map_or(0, Vec::len);
        let at = |pointer: &str| remaining.and_then(|remaining| remaining.pointer(pointer));
        ensure!(
            entries == 1
                && at("/0/owner") == Some(&json!("StatefulSet/requester"))
                && at("/0/namespace") == Some(&json!("netweft-e2e"))
                && at("/0/count") == Some(&json!(1)),
            "status.remainingPods is {remaining:?}"
        );
        Ok(())
    })?;
    kubectl(&["delete", "ippool", POOL, "--wait=false"])?;
    until("the reason InUse of the pool", REPORT_TIMEOUT, || {
        let pool = get(&["ippool", POOL])?;
        let reconciling = condition(&pool, "Reconciling");
        let reason = reconciling.and_then(|condition| text(condition, "/reason").ok());
        ensure!(
            reason == Some("InUse"),
            "the condition Reconciling does not have the reason InUse: {:?}",
            pool.get("status")
        );
        Ok(())
    })
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?;
    let mut conditions = conditions.as_array()?.iter();
    conditions.find(|condition| condition["type"] == type_)
}

/// The number of blocks of the pool.
fn block_count() -> anyhow::Result<usize> {
    let subnets = get(&["nodesubnets"])?;
    let is_of_pool = |subnet: &&Value| text(subnet, "/spec/pool").is_ok_and(|pool| pool == POOL);
    Ok(items(&subnets).filter(is_of_pool).count())
}
