//! Change of the mode of a NetworkMode under load.

use std::time::Duration;

use anyhow::{Context, ensure};
use netweft_crds::condition::READY;
use netweft_crds::{NetworkMode, Phase};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, merge};
use crate::kind::meter::Meter;

/// Time limit of one change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Duration of the pings: both changes, with a margin before and after.
const PING_DURATION: Duration = Duration::from_secs(40);

/// The NetworkMode changes from vxlan to host-gw and back. No packet is lost.
pub(crate) fn mode_change_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let meter = Meter::start(&cluster.probes, PING_DURATION)?;
    change_mode(r#"{"spec": {"mode": "host-gw", "overlay": null}}"#)?;
    let routes = routes_with_next_hop()?;
    ensure!(
        routes.contains("eth0"),
        "routes to other nodes do not use the uplink: {routes}"
    );
    change_mode(r#"{"spec": {"mode": "overlay", "overlay": {"encapsulation": "vxlan"}}}"#)?;
    let routes = routes_with_next_hop()?;
    ensure!(
        routes.contains("nw-vx4096"),
        "routes to other nodes do not use the tunnel: {routes}"
    );
    meter.finish()
}

/// Patch the NetworkMode, and wait until all nodes have applied the change.
fn change_mode(patch: &str) -> anyhow::Result<()> {
    merge(&["networkmode", "default"], patch)?;
    until("all nodes to apply the mode", CHANGE_TIMEOUT, || {
        let mode: NetworkMode = serde_json::from_value(get(&["networkmode", "default"])?)?;
        let status = mode.status.context("the NetworkMode has no status")?;
        let mut conditions = status.conditions.iter();
        let ready = conditions.find(|condition| condition.type_ == READY);
        let ready = ready.context("the NetworkMode has no condition Ready")?;
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

/// The routes of the agent with a next hop, on the first node, of both families.
fn routes_with_next_hop() -> anyhow::Result<String> {
    let nodes = host::nodes()?;
    let node = nodes.first().context("no node")?;
    let script = "(ip route show proto 78; ip -6 route show proto 78) | grep -w via";
    host::on(node, &["sh", "-c", script])
}
