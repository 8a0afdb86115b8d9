//! Repair and report of external changes on a node.

use std::time::Duration;

use anyhow::ensure;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::host;
use crate::kind::kubectl::{get, items, text};
use crate::kind::meter::Meter;
use crate::kind::residue::in_agent;

/// Time limit of repair and report. Agents report once in five seconds, and the operator creates the Event afterwards.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// The routes, the nft table and a sysctl of a worker are removed. The agent restores them, the status of the NodeNetwork counts the
/// repairs, an Event reports them, and pods of other nodes lose no packet.
pub(crate) fn external_changes_are_repaired_and_reported(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let changed_node = cluster.probes.last()?.node.clone();
    let mut other_nodes = cluster.probes.clone();
    other_nodes.remove_node(&changed_node);
    let before = repairs(&changed_node)?;
    let meter = Meter::start(&other_nodes, Duration::from_secs(4))?;
    for script in [
        "ip route flush proto 78",
        "sysctl -qw net.ipv4.ip_forward=0",
        "nft delete table inet netweft",
    ] {
        host::on(&changed_node, &["sh", "-c", script])?;
    }
    until("the repair of the node", REPORT_TIMEOUT, || {
        in_agent(&changed_node, &["netweft-agent", "check"])
    })?;
    meter.finish()?;
    until("the repairs in the NodeNetwork", REPORT_TIMEOUT, || {
        let now = repairs(&changed_node)?;
        ensure!(
            now >= before + 3,
            "the NodeNetwork reports {now} repairs, and reported {before} before three changes"
        );
        Ok(())
    })?;
    until("an Event about the repairs", REPORT_TIMEOUT, || {
        let events = get(&["events", "-A"])?;
        let mut events = items(&events);
        let reported = events.any(|event| {
            let has =
                |pointer, expected: &str| text(event, pointer).is_ok_and(|value| value == expected);
            has("/reason", "Repaired") && has("/involvedObject/name", &changed_node)
        });
        ensure!(
            reported,
            "there is no Event with reason Repaired about {changed_node}"
        );
        Ok(())
    })
}

/// The number of repairs in the status of the NodeNetwork.
fn repairs(node: &str) -> anyhow::Result<i64> {
    let network = get(&["nodenetwork", node])?;
    let count = network.pointer("/status/drift/repairs");
    Ok(count.and_then(serde_json::Value::as_i64).unwrap_or(0))
}
