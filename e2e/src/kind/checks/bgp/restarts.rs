//! Restarts and rollouts of BIRD, and upgrades of the other programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{MESH, await_convergence, reported_sessions};
use crate::kind::checks::faults::{await_restart, restarts};
use crate::kind::checks::rollout::{
    ROLLOUT_TIMEOUT, SYSTEM, all_replaced, pods, restart_daemonset, wait_for,
};
use crate::kind::host;
use crate::kind::kubectl::kubectl;
use crate::kind::meter::Meter;

/// All BIRD processes are killed at the same time, so that no BIRD process keeps the routes of the others.
pub fn killed_bird_processes_lose_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = restarts("netweft-bird")?;
    let meter = Meter::start(&cluster.probes, Duration::from_secs(20))?;
    for node in host::nodes()? {
        let killed = host::kill_all(&node, "bird")?;
        ensure!(
            killed == 1,
            "{killed} BIRD processes were running on {node} instead of 1"
        );
    }
    meter.finish()?;
    await_restart("netweft-bird", before)?;
    MESH.await_established()?;
    await_convergence()
}

pub fn bird_rollout_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = pods("bird")?;
    let meter = Meter::start(&cluster.probes, ROLLOUT_TIMEOUT)?;
    let restarted = restart_daemonset("netweft-bird");
    meter.finish()?;
    restarted?;
    ensure!(
        all_replaced(&before, &pods("bird")?),
        "the rollout has not replaced all BIRD pods"
    );
    MESH.await_established()?;
    await_convergence()
}

/// A new version of the chart replaces the pods of operator, agent and relay. The BIRD pods and their sessions remain.
pub fn release_upgrade_keeps_bgp_sessions(cluster: &mut Cluster) -> anyhow::Result<()> {
    MESH.await_established()?;
    let (bird_pods, agents) = (pods("bird")?, pods("agent")?);
    let (before, reported) = (session_uptimes(&bird_pods)?, reported_sessions()?);
    upgrade_release(&cluster.project.join("charts/netweft"))?;
    ensure!(
        all_replaced(&agents, &pods("agent")?),
        "the upgrade has not replaced all agent pods"
    );
    ensure!(
        bird_pods == pods("bird")?,
        "the upgrade has replaced BIRD pods"
    );
    let after = session_uptimes(&bird_pods)?;
    ensure!(
        before == after,
        "sessions were re-established: before the upgrade {before:?}, after it {after:?}"
    );
    until(
        "the new agents to report the same sessions",
        Duration::from_secs(30),
        || {
            let after = reported_sessions()?;
            ensure!(
                reported == after,
                "reported sessions differ: before the upgrade {reported:?}, after it {after:?}"
            );
            Ok(())
        },
    )
}

/// Upgrades the release to a copy of the chart with another version and the same images. The version is a label of the pods, so the
/// upgrade replaces the pods.
fn upgrade_release(chart: &Path) -> anyhow::Result<()> {
    let directory = output(Command::new("mktemp").arg("--directory"))?;
    let copy = Path::new(directory.trim()).join("netweft");
    output(Command::new("cp").arg("-r").arg(chart).arg(&copy))?;
    let chart_yaml = copy.join("Chart.yaml");
    let text = fs::read_to_string(&chart_yaml)?;
    fs::write(
        &chart_yaml,
        text.replace("\nversion: ", "\nversion: 1")
            .replace("appVersion: ", "appVersion: 1"),
    )?;
    let mut helm = Command::new("helm");
    helm.args(["upgrade", "netweft"]).arg(&copy).args(SYSTEM);
    let upgraded = output(helm.arg("--reuse-values")).context("upgrade to another chart version");
    fs::remove_dir_all(directory.trim())?;
    upgraded?;
    wait_for("deployment,daemonset")
}

/// The lines of `birdc show protocols` about BGP sessions, by node. They contain the time of the last state change.
fn session_uptimes(
    bird_pods: &BTreeMap<String, String>,
) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let birdc = [
        "--",
        "/usr/sbin/birdc",
        "-r",
        "-s",
        "/run/netweft/bird/bird.ctl",
    ];
    let uptimes = bird_pods.iter().map(|(node, pod)| {
        let words = [&SYSTEM[..], &["exec", pod], &birdc, &["show", "protocols"]].concat();
        let output = kubectl(&words)?;
        let sessions = output.lines().filter(|line| line.contains(" BGP "));
        let lines: Vec<String> = sessions.map(|line| line.trim_end().to_owned()).collect();
        ensure!(
            !lines.is_empty(),
            "BIRD on {node} has no BGP session: {output}"
        );
        Ok((node.clone(), lines))
    });
    uptimes.collect()
}
