//! Programs that are replaced by newer ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::kind::kubectl::{get, items, kubectl, rollout_status, text};

pub(crate) const SYSTEM: [&str; 2] = ["-n", "netweft-system"];
/// How long a DaemonSet may take to be replaced, one node after the other.
pub(crate) const ROLLOUT: Duration = Duration::from_secs(100);

/// Restart a DaemonSet in the way that it is updated, and wait for it.
pub(crate) fn replace(set: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let set = format!("daemonset/{set}");
    kubectl(&[&SYSTEM[..], &["rollout", "restart", &set]].concat())?;
    wait_for(&set)?;
    let took = started.elapsed();
    println!("  {set} was replaced in {:.0} s", took.as_secs_f32());
    ensure!(took < ROLLOUT, "it took longer than the pings");
    Ok(())
}

/// Wait until workloads are what they should be.
pub fn wait_for(workloads: &str) -> anyhow::Result<()> {
    rollout_status("netweft-system", workloads, "180s")
}

/// The pods of a component by their nodes, without those that are going.
pub fn pods(component: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list = get(&[&["pods"], &SYSTEM[..], &["-l", &label]].concat())?;
    let going = "/metadata/deletionTimestamp";
    let staying = items(&list).filter(|pod| pod.pointer(going).is_none());
    let pods = staying.map(|pod| {
        let at = |pointer| Ok::<_, anyhow::Error>(text(pod, pointer)?.to_owned());
        Ok((at("/spec/nodeName")?, at("/metadata/name")?))
    });
    pods.collect()
}

/// The same nodes, and not one pod that was there before.
pub(crate) fn differ(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> bool {
    before.keys().eq(after.keys()) && before.values().all(|pod| !after.values().any(|p| p == pod))
}
