//! External changes of a node are repaired and reported.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, items, text};
use crate::kind::meter::Meter;
use crate::kind::residue::in_agent;

/// Time limit of repair and report. Agents report once in five seconds, the operator soon after.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// Routes, nft table and a parameter of a worker are taken away: they are back before long, no pod elsewhere loses a packet by
/// it, the NodeNetwork says what was found, and there is an Event.
pub(crate) fn external_changes_are_repaired_and_reported(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let victim = cluster.probes.pods.last().context("a pod")?.node.clone();
    let mut elsewhere = cluster.probes.clone();
    elsewhere.forget(&victim);
    let before = repairs(&victim)?;
    let meter = Meter::start(&elsewhere, Duration::from_secs(4))?;
    for harm in [
        "ip route flush proto 78",
        "sysctl -qw net.ipv4.ip_forward=0",
        "nft delete table inet netweft",
    ] {
        host::on(&victim, &["sh", "-c", harm])?;
    }
    until("the node to be right again", REPORT_TIMEOUT, || {
        in_agent(&victim, &["netweft-agent", "check"])
    })?;
    meter.finish()?;
    until("the NodeNetwork to say so", REPORT_TIMEOUT, || {
        let now = repairs(&victim)?;
        ensure!(now >= before + 3, "{now} repairs after {before}");
        Ok(())
    })?;
    until("an Event", REPORT_TIMEOUT, || {
        let events = get(&["events", "-A"])?;
        let mut events = items(&events);
        let reported = events.any(|event| {
            let is = |pointer, wanted: &str| text(event, pointer).is_ok_and(|it| it == wanted);
            is("/reason", "Repaired") && is("/involvedObject/name", &victim)
        });
        ensure!(reported, "there is none of reason Repaired about {victim}");
        Ok(())
    })
}

fn repairs(node: &str) -> anyhow::Result<i64> {
    let network = get(&["nodenetwork", node])?;
    let count = network.pointer("/status/drift/repairs");
    Ok(count.and_then(serde_json::Value::as_i64).unwrap_or(0))
}
