//! The way between nodes changes under pods that ping.

use std::time::Duration;

use anyhow::ensure;

use super::Cluster;
use crate::cluster::kubectl::{get, kubectl, text};
use crate::cluster::machine;
use crate::cluster::meter::Meter;
use crate::poll::until;

/// How long one change may take.
const CHANGED: Duration = Duration::from_secs(60);
/// How long both together may, with something before and after.
const METERED: Duration = Duration::from_secs(40);

/// From the tunnel to plain routes and back, by editing the NetworkMode.
pub(super) fn a_change_of_the_mode_loses_nothing(cluster: &mut Cluster) -> anyhow::Result<()> {
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
    kubectl(&[
        "patch",
        "networkmode",
        "default",
        "--type=merge",
        "-p",
        patch,
    ])?;
    until("all nodes to follow", CHANGED, || {
        let mode = get(&["networkmode", "default"])?;
        let generation = mode.pointer("/metadata/generation");
        let conditions = mode.pointer("/status/conditions");
        let conditions = conditions.and_then(serde_json::Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let followed = conditions.any(|it| {
            text(it, "/type").is_ok_and(|name| name == "Ready")
                && text(it, "/status").is_ok_and(|status| status == "True")
                && it.get("observedGeneration") == generation
        });
        let phase = text(&mode, "/status/phase")?;
        ensure!(followed && phase == "Stable", "{phase}: {conditions:?}");
        Ok(())
    })
}

/// The agent's routes with a next hop on the first node, in all families.
fn route_to_others() -> anyhow::Result<String> {
    let nodes = machine::nodes()?;
    let mut text = String::new();
    for node in nodes.iter().take(1) {
        let script = "ip route show proto 78; ip -6 route show proto 78";
        text += &machine::on(node, &["sh", "-c", &format!("({script}) | grep -w via")])?;
    }
    Ok(text)
}
