//! The way between nodes changes under pods that ping.

use std::time::Duration;

use anyhow::{Context, ensure};
use netweft_crds::condition::READY;
use netweft_crds::{NetworkMode, Phase};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, merge};
use crate::kind::meter::Meter;

/// How long one change may take.
const CHANGED: Duration = Duration::from_secs(60);
/// How long both together may, with something before and after.
const METERED: Duration = Duration::from_secs(40);

/// From the tunnel to plain routes and back, by editing the NetworkMode.
pub(crate) fn mode_change_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let meter = Meter::start(&cluster.probes, METERED)?;
    edit(r#"{"spec": {"mode": "host-gw", "overlay": null}}"#)?;
    ensure!(
        route_to_others()?.contains("eth0"),
        "routes do not go by the uplink: {}",
        route_to_others()?
    );
    edit(r#"{"spec": {"mode": "overlay", "overlay": {"encapsulation": "vxlan"}}}"#)?;
    ensure!(
        route_to_others()?.contains("nw-vx4096"),
        "routes do not go by the tunnel: {}",
        route_to_others()?
    );
    meter.finish()
}

/// Edit the mode, and wait until all nodes have followed.
fn edit(patch: &str) -> anyhow::Result<()> {
    merge(&["networkmode", "default"], patch)?;
    until("all nodes to follow", CHANGED, || {
        let mode: NetworkMode = serde_json::from_value(get(&["networkmode", "default"])?)?;
        let status = mode.status.context("a status")?;
        let mut conditions = status.conditions.iter();
        let ready = conditions.find(|it| it.type_ == READY);
        let ready = ready.context("a condition Ready")?;
        ensure!(
            ready.status == "True"
                && ready.observed_generation == mode.metadata.generation
                && status.phase == Some(Phase::Stable),
            "{:?}: {}",
            status.phase,
            ready.message
        );
        Ok(())
    })
}

/// The agent's routes with a next hop on the first node, in all families.
fn route_to_others() -> anyhow::Result<String> {
    let nodes = host::nodes()?;
    let node = nodes.first().context("a node")?;
    let script = "(ip route show proto 78; ip -6 route show proto 78) | grep -w via";
    host::on(node, &["sh", "-c", script])
}
