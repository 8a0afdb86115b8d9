//! BIRD that dies and is replaced, and agents that are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{MESH, converged, reported_sessions};
use crate::kind::checks::faults::{restarts, returned};
use crate::kind::checks::rollout::{ROLLOUT, SYSTEM, differ, pods, replace, wait_for};
use crate::kind::host;
use crate::kind::kubectl::kubectl;
use crate::kind::meter::Meter;

/// All processes at once, so that no BIRD keeps the routes.
pub fn killed_bird_processes_lose_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = restarts("netweft-bird")?;
    let meter = Meter::start(&cluster.probes, Duration::from_secs(20))?;
    for node in host::nodes()? {
        let killed = host::kill_all(&node, "bird")?;
        ensure!(killed == 1, "{killed} BIRDs were running on {node}");
    }
    meter.finish()?;
    returned("netweft-bird", before)?;
    MESH.established()?;
    converged()
}

pub fn bird_rollout_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = pods("bird")?;
    let meter = Meter::start(&cluster.probes, ROLLOUT)?;
    let replaced = replace("netweft-bird");
    meter.finish()?;
    replaced?;
    ensure!(differ(&before, &pods("bird")?), "BIRD was not replaced");
    MESH.established()?;
    converged()
}

/// A new version of netweft: operator, agents and relays are replaced, and BIRD and its sessions are the old ones.
pub fn release_upgrade_keeps_bgp_sessions(cluster: &mut Cluster) -> anyhow::Result<()> {
    MESH.established()?;
    let (birds, agents) = (pods("bird")?, pods("agent")?);
    let (uptimes, said) = (uptimes(&birds)?, reported_sessions()?);
    release(&cluster.project.join("charts/netweft"))?;
    ensure!(
        differ(&agents, &pods("agent")?),
        "this was no release: the agents are the old ones"
    );
    ensure!(birds == pods("bird")?, "BIRD was replaced with the release");
    let after = self::uptimes(&birds)?;
    ensure!(
        uptimes == after,
        "sessions began anew: {uptimes:?} became {after:?}"
    );
    until(
        "the new agents to say the same",
        Duration::from_secs(30),
        || {
            let after = reported_sessions()?;
            ensure!(said == after, "{said:?} became {after:?}");
            Ok(())
        },
    )
}

/// The chart under another version, with the same programs: pods have the version among their labels.
fn release(chart: &Path) -> anyhow::Result<()> {
    let folder = output(Command::new("mktemp").arg("--directory"))?;
    let copy = Path::new(folder.trim()).join("netweft");
    output(Command::new("cp").arg("-r").arg(chart).arg(&copy))?;
    let about = copy.join("Chart.yaml");
    let text = fs::read_to_string(&about)?;
    fs::write(
        &about,
        text.replace("\nversion: ", "\nversion: 1")
            .replace("appVersion: ", "appVersion: 1"),
    )?;
    let mut helm = Command::new("helm");
    helm.args(["upgrade", "netweft"]).arg(&copy).args(SYSTEM);
    let released = output(helm.arg("--reuse-values")).context("release another version");
    fs::remove_dir_all(folder.trim())?;
    released?;
    wait_for("deployment,daemonset")
}

/// Since when each session is established, as BIRD says it.
fn uptimes(birds: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let ask = [
        "--",
        "/usr/sbin/birdc",
        "-r",
        "-s",
        "/run/netweft/bird/bird.ctl",
    ];
    let uptimes = birds.iter().map(|(node, pod)| {
        let words = [&SYSTEM[..], &["exec", pod], &ask, &["show", "protocols"]].concat();
        let said = kubectl(&words)?;
        let sessions = said.lines().filter(|line| line.contains(" BGP "));
        let lines: Vec<String> = sessions.map(|line| line.trim_end().to_owned()).collect();
        ensure!(!lines.is_empty(), "BIRD on {node} has no session: {said}");
        Ok((node.clone(), lines))
    });
    uptimes.collect()
}
