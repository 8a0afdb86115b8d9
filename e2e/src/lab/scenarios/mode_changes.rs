//! Changes of the mode while all pods exchange traffic. No ping may be lost and no TCP connection may fail.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_crds::{Phase, PodInterface};

use crate::harness::poll::until;
use crate::lab::traffic::load::{LOW_LOAD, LoadIntervals, Measured};
use crate::lab::traffic::tcp::TcpSummary;
use crate::lab::{Lab, LabMode, Options, run_scenario};
use crate::traffic::loss_meter::Losses;
use crate::traffic::matrix::Matrix;

/// Limit for one change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(40);
/// Limit for the removal of the old mode's links and routes after a change.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The order of mode changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tour {
    /// Each mode once, and back to the first.
    Ring,
    /// Every ordered pair.
    All,
}

/// The node whose agent is stopped, so that it reports no status.
const STOPPED_NODE: usize = 3;
/// How long the agent is stopped. The change must wait for its node.
const STOPPED_TIME: Duration = Duration::from_secs(3);
/// Limit until the condition names the node.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(1);

/// The sequence of mode changes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The modes to change between.
    pub modes: Vec<LabMode>,
    /// The order of changes.
    pub tour: Tour,
    /// Time between two pings of a pair, and between two TCP chunks.
    pub interval: Duration,
}

/// Builds a lab and runs the sequence of mode changes.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, plan: &Plan, keep: bool) -> anyhow::Result<()> {
    let Plan {
        modes,
        tour,
        interval,
    } = plan;
    let order: Vec<usize> = match *tour {
        Tour::Ring => (0..modes.len()).chain([0]).collect(),
        Tour::All => circuit(modes.len()),
    };
    let order: Vec<LabMode> = order
        .into_iter()
        .filter_map(|at| modes.get(at).copied())
        .collect();
    let first = *order.first().context("the sequence contains no mode")?;
    let options = Options {
        mode: first,
        later_modes: order.clone(),
        ..options.clone()
    };
    let title = title(&options);
    run_scenario(options, &title, keep, |lab| {
        lab.run_mode_changes(&order, *interval)
    })
}

/// The title of the lab.
#[must_use]
pub fn title(options: &Options) -> String {
    format!("changes of the mode, {options}")
}

/// A closed walk over the numbers below `count` that contains every ordered pair once (an Eulerian circuit).
fn circuit(count: usize) -> Vec<usize> {
    // Hierholzer's algorithm: at a vertex without unused edges, backtrack to a vertex that has one.
    let mut unused: Vec<Vec<usize>> = (0..count)
        .map(|from| (0..count).filter(|to| *to != from).collect())
        .collect();
    let (mut path, mut circuit) = (vec![0], Vec::new());
    while let Some(at) = path.last() {
        match unused.get_mut(*at).and_then(Vec::pop) {
            Some(next) => path.push(next),
            None => circuit.extend(path.pop()),
        }
    }
    circuit.reverse();
    circuit
}

/// The result of one change.
struct ModeChange {
    from: LabMode,
    to: LabMode,
    took: Duration,
    losses: Losses,
    connections: TcpSummary,
}

impl Lab {
    fn run_mode_changes(&mut self, order: &[LabMode], interval: Duration) -> anyhow::Result<()> {
        self.cluster.start_servers(true)?;
        let mut changes = Vec::new();
        for pair in order.windows(2) {
            let [from, to] = pair else { continue };
            let change = self.change_mode(*from, *to, interval);
            changes.push(change.with_context(|| format!("from {from} to {to}"))?);
        }
        print!("{}", table(&changes));
        if let [first, second, ..] = *order {
            self.check_wait_and_revert(first, second)?;
        }
        let lossless = |change: &&ModeChange| {
            change.losses.pairs.is_empty() && change.connections.failed.is_empty()
        };
        let lossy: Vec<&ModeChange> = changes.iter().filter(|change| !lossless(change)).collect();
        for ModeChange {
            from,
            to,
            losses,
            connections,
            ..
        } in &lossy
        {
            println!("from {from} to {to}: {losses}; {connections}");
        }
        ensure!(
            lossy.is_empty(),
            "{} of {} changes lost packets or connections",
            lossy.len(),
            changes.len()
        );
        Ok(())
    }

    fn change_mode(
        &mut self,
        from: LabMode,
        to: LabMode,
        interval: Duration,
    ) -> anyhow::Result<ModeChange> {
        let intervals = LoadIntervals {
            pings: interval,
            tcp: interval,
        };
        let measured = self.measure_under_load(&intervals, |lab| {
            let started = Instant::now();
            let edited = lab.cluster.store.set_mode_spec(&to.spec());
            let changed = edited.and_then(|()| lab.wait_for_all_phases());
            (changed, started.elapsed())
        })?;
        let Measured {
            result: (changed, took),
            losses,
            connections,
        } = measured;
        println!(
            "{from} to {to}: {:.1} s, {losses}; {connections}",
            took.as_secs_f32()
        );
        changed?;
        self.wait_for_cleanup(to)?;
        self.cluster.wait_for_desired_state()?;
        self.check_encapsulation(to)?;
        Ok(ModeChange {
            from,
            to,
            took,
            losses,
            connections,
        })
    }

    /// A change waits for a node without a running agent, the condition names the node, and the change continues when the agent is
    /// back. When the mode is reverted during Switching, the cluster returns to the previous mode.
    fn check_wait_and_revert(&mut self, mode: LabMode, other: LabMode) -> anyhow::Result<()> {
        let measured = self.measure_under_load(&LOW_LOAD, |lab| {
            lab.cluster.node_mut(STOPPED_NODE)?.0.kill_agent()?;
            lab.cluster.store.set_mode_spec(&other.spec())?;
            let stopped = Instant::now();
            while stopped.elapsed() < STOPPED_TIME {
                let (phase, message) = lab.rollout_status()?;
                let named = message.contains(&format!("node-{STOPPED_NODE}"));
                let waits = phase == Phase::Preparing && named;
                ensure!(
                    waits || stopped.elapsed() < CONDITION_TIMEOUT,
                    "{phase:?}: {message}"
                );
            }
            lab.cluster.start_agent(STOPPED_NODE)?;
            lab.wait_for_phase(Phase::Switching)?;
            lab.cluster.store.set_mode_spec(&mode.spec())?;
            lab.wait_for_phase(Phase::Stable)
        })?;
        measured.result?;
        ensure!(
            measured.connections.failed.is_empty(),
            "{}",
            measured.connections
        );
        let what = format!("to {other}, delayed by a stopped agent, and back");
        measured.losses.check_none(&what)?;
        self.wait_for_cleanup(mode)?;
        self.cluster.wait_for_desired_state()?;
        self.check_encapsulation(mode)
    }

    /// The phase and the message of the change, after the operator's core has run.
    fn rollout_status(&mut self) -> anyhow::Result<(Phase, String)> {
        self.cluster.reconcile()?;
        let modes = &self.cluster.store.modes;
        let mode = modes.first().context("there is no NetworkMode")?;
        let status = mode.status.as_ref().context("the mode has no status")?;
        let condition = status.conditions.first();
        let message = condition.map(|condition| condition.message.clone());
        let phase = status.phase.context("the status has no phase")?;
        Ok((phase, message.unwrap_or_default()))
    }

    fn wait_for_phase(&mut self, expected: Phase) -> anyhow::Result<()> {
        until(&format!("the phase {expected:?}"), CHANGE_TIMEOUT, || {
            let (phase, message) = self.rollout_status()?;
            ensure!(phase == expected, "{phase:?}: {message}");
            Ok(())
        })
    }

    /// The change goes through all phases in order.
    fn wait_for_all_phases(&mut self) -> anyhow::Result<()> {
        let mut phases = Vec::new();
        until("the end of the change", CHANGE_TIMEOUT, || {
            let (phase, message) = self.rollout_status()?;
            if phases.last() != Some(&phase) {
                phases.push(phase);
            }
            ensure!(phase == Phase::Stable, "{phase:?}: {message}");
            Ok(())
        })?;
        let expected = [
            Phase::Preparing,
            Phase::Switching,
            Phase::Retiring,
            Phase::Stable,
        ];
        ensure!(phases == expected, "the phases were {phases:?}");
        Ok(())
    }

    /// Waits until every node has only the links and routes of `mode`.
    fn wait_for_cleanup(&self, mode: LabMode) -> anyhow::Result<()> {
        let bridged = self.options.pod_interface == PodInterface::Bridge;
        let link = mode.link().or((!bridged).then_some("nw-own"));
        let bridge = bridged.then_some("nw-br0");
        let expected: BTreeSet<&str> = link.into_iter().chain(bridge).collect();
        for node in &self.cluster.nodes {
            until("removal of the old mode", CLEANUP_TIMEOUT, || {
                let text = node.namespace.ip("-json link show")?;
                let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
                let names = links.iter().filter_map(|link| link.get("ifname")?.as_str());
                let links: BTreeSet<&str> = names.filter(|name| name.starts_with("nw-")).collect();
                ensure!(links == expected, "{} has {links:?}", node.name);
                for family in ["-4", "-6"] {
                    let routes = node.namespace.ip(&format!("{family} route show"))?;
                    let mut old = routes.lines().filter(|line| {
                        let bird = line.contains("proto bird") && mode != LabMode::Underlay;
                        let reduced_mtu = line.contains("proto 78") && line.contains(" mtu ");
                        bird || reduced_mtu
                            || ["88", "89", "90"]
                                .iter()
                                .any(|n| line.contains(&format!(" metric {n}")))
                    });
                    ensure!(old.next().is_none(), "{} still has {routes}", node.name);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// All pairs are reachable, and packets are encapsulated exactly if `mode` encapsulates on a shared link.
    fn check_encapsulation(&self, mode: LabMode) -> anyhow::Result<()> {
        let before = self.underlay.frame_counts()?;
        let pools = self.options.families.pools();
        let matrices: Vec<Matrix> = pools
            .map(|pool| self.matrix(pool))
            .collect::<anyhow::Result<_>>()?;
        matrices.iter().try_for_each(Matrix::check)?;
        let after = self.underlay.frame_counts()?;
        let unencapsulated = after.unencapsulated - before.unencapsulated;
        let encapsulated = after.encapsulated_on_link - before.encapsulated_on_link;
        let expected = if mode.sends_unencapsulated_on_link() {
            encapsulated == 0 && unencapsulated > 0
        } else {
            encapsulated > 0 && unencapsulated == 0
        };
        ensure!(
            expected,
            "{mode}: {unencapsulated} unencapsulated and {encapsulated} encapsulated frames"
        );
        ensure!(
            after.dropped == 0,
            "{} frames with pod addresses were sent to routers or hosts without routes to pods",
            after.dropped
        );
        Ok(())
    }
}

/// A table of all changes, from the mode of the row to the mode of the column.
fn table(changes: &[ModeChange]) -> String {
    let modes: BTreeSet<LabMode> = changes
        .iter()
        .flat_map(|change| [change.from, change.to])
        .collect();
    let mut text = format!("{:20}", "from \\ to");
    for to in &modes {
        text += &format!(" {:>20}", to.to_string());
    }
    text += "\n";
    for from in &modes {
        text += &format!("{:20}", from.to_string());
        for to in &modes {
            let change = changes
                .iter()
                .find(|change| (change.from, change.to) == (*from, *to));
            let cell = change.map_or_else(String::new, |change| {
                let losses = &change.losses;
                let (lost, longest) = (losses.lost(), losses.longest().as_millis());
                let failed = change.connections.failed.len();
                let took = change.took.as_secs_f32();
                format!("{lost} {longest} ms {failed} {took:.1} s")
            });
            text += &format!(" {cell:>20}");
        }
        text += "\n";
    }
    text + "each cell: pings lost, longest gap, TCP connections that failed, duration of the change\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuit_contains_every_ordered_pair_once() {
        for count in [2, 3, 6] {
            let circuit = circuit(count);
            let pairs: BTreeSet<(usize, usize)> =
                circuit.windows(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(pairs.len(), count * (count - 1));
            assert_eq!(circuit.len(), pairs.len() + 1);
            assert_eq!(circuit.first(), circuit.last());
        }
    }
}
