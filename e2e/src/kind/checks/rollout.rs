//! Rollouts of DaemonSets and Deployments.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::kind::kubectl::{get, items, kubectl, rollout_status, text};

pub(crate) const SYSTEM: [&str; 2] = ["-n", "netweft-system"];
/// Time limit of the rollout of a DaemonSet, one node after the other.
pub(crate) const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(100);

/// Restart the pods of a DaemonSet with `kubectl rollout restart`, and wait until the rollout is complete.
pub(crate) fn restart_daemonset(set: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let set = format!("daemonset/{set}");
    kubectl(&[&SYSTEM[..], &["rollout", "restart", &set]].concat())?;
    wait_for(&set)?;
    let elapsed = started.elapsed();
    println!("  rollout of {set} in {:.0} s", elapsed.as_secs_f32());
    ensure!(
        elapsed < ROLLOUT_TIMEOUT,
        "the rollout of {set} took longer than the pings, {ROLLOUT_TIMEOUT:?}"
    );
    Ok(())
}

/// Wait until the rollouts of workloads in netweft-system are complete.
pub fn wait_for(workloads: &str) -> anyhow::Result<()> {
    rollout_status("netweft-system", workloads, "180s")
}

/// The names of the pods of a component by node, without terminating pods.
pub fn pods(component: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list = get(&[&["pods"], &SYSTEM[..], &["-l", &label]].concat())?;
    let running = items(&list).filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
    let pods = running.map(|pod| {
        let at = |pointer| Ok::<_, anyhow::Error>(text(pod, pointer)?.to_owned());
        Ok((at("/spec/nodeName")?, at("/metadata/name")?))
    });
    pods.collect()
}

/// Whether the same nodes have pods, and no pod of `before` is in `after`.
pub(crate) fn all_replaced(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> bool {
    before.keys().eq(after.keys()) && before.values().all(|pod| !after.values().any(|p| p == pod))
}
