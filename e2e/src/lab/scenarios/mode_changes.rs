//! The mode changes while all pods and nodes communicate: no ping and no TCP connection may be lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_crds::{Phase, PodInterface};

use crate::harness::poll::until;
use crate::lab::traffic::load::{CALM, Cost, Pace};
use crate::lab::traffic::tcp::Streams;
use crate::lab::{Lab, LabMode, Options, run_scenario};
use crate::traffic::loss_meter::Losses;
use crate::traffic::matrix::Matrix;

/// How long a change may take.
const CHANGED: Duration = Duration::from_secs(40);

/// What is changed into what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tour {
    /// Each mode once, and back to the first.
    Ring,
    /// Every ordered pair.
    All,
}

/// The node that says nothing for a while.
const SILENT: usize = 3;
/// How long a change is held, and the time limit until the operator names the node that holds it.
const HELD: Duration = Duration::from_secs(3);
const HEARD: Duration = Duration::from_secs(1);

/// The modes of a lab, and how they are walked through.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The modes.
    pub modes: Vec<LabMode>,
    /// In which order.
    pub tour: Tour,
    /// Time between two pings of a pair.
    pub interval: Duration,
}

/// Build a lab, and walk through the modes.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
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
    let first = *order.first().context("a tour begins somewhere")?;
    let options = Options {
        mode: first,
        later: order.clone(),
        ..options.clone()
    };
    let about = about(&options);
    run_scenario(options, &about, keep, |lab| lab.tour(&order, *interval))
}

/// What the lab is about.
#[must_use]
pub fn about(options: &Options) -> String {
    format!("changes of the mode, {options}")
}

/// Every ordered pair of so many things once, one after the other.
fn circuit(count: usize) -> Vec<usize> {
    // Hierholzer: from where there is no way left to go on, back to where there is.
    let mut left: Vec<Vec<usize>> = (0..count)
        .map(|from| (0..count).filter(|to| *to != from).collect())
        .collect();
    let (mut path, mut circuit) = (vec![0], Vec::new());
    while let Some(at) = path.last() {
        match left.get_mut(*at).and_then(Vec::pop) {
            Some(next) => path.push(next),
            None => circuit.extend(path.pop()),
        }
    }
    circuit.reverse();
    circuit
}

/// What one change cost.
struct Cell {
    from: LabMode,
    to: LabMode,
    took: Duration,
    losses: Losses,
    streams: Streams,
}

impl Lab {
    fn tour(&mut self, order: &[LabMode], interval: Duration) -> anyhow::Result<()> {
        self.site.start_servers(true)?;
        let mut cells = Vec::new();
        for pair in order.windows(2) {
            let [from, to] = pair else { continue };
            let cell = self.change(*from, *to, interval);
            cells.push(cell.with_context(|| format!("from {from} to {to}"))?);
        }
        print!("{}", table(&cells));
        if let [first, second, ..] = *order {
            self.hold_and_revert(first, second)?;
        }
        let clean = |cell: &&Cell| cell.losses.pairs.is_empty() && cell.streams.dead.is_empty();
        let dirty: Vec<&Cell> = cells.iter().filter(|cell| !clean(cell)).collect();
        for Cell {
            from,
            to,
            losses,
            streams,
            ..
        } in &dirty
        {
            println!("from {from} to {to}: {losses}; {streams}");
        }
        ensure!(
            dirty.is_empty(),
            "{} of {} changes cost something",
            dirty.len(),
            cells.len()
        );
        Ok(())
    }

    fn change(&mut self, from: LabMode, to: LabMode, interval: Duration) -> anyhow::Result<Cell> {
        let pace = Pace {
            pings: interval,
            talks: interval,
        };
        let cost = self.under_load(&pace, |lab| {
            let started = Instant::now();
            let edited = lab.site.store.edit_mode(&to.spec());
            let changed = edited.and_then(|()| lab.follow());
            (changed, started.elapsed())
        })?;
        let Cost {
            done: (changed, took),
            losses,
            streams,
        } = cost;
        println!(
            "{from} to {to}: {:.1} s, {losses}; {streams}",
            took.as_secs_f32()
        );
        changed?;
        self.nothing_old_is_left(to)?;
        self.site.is_as_wanted()?;
        self.travels_by(to)?;
        Ok(Cell {
            from,
            to,
            took,
            losses,
            streams,
        })
    }

    /// A change waits for a node that says nothing, names it, and goes on when it is back. Edited back in the midst of switching, it
    /// ends where it began.
    fn hold_and_revert(&mut self, mode: LabMode, other: LabMode) -> anyhow::Result<()> {
        let cost = self.under_load(&CALM, |lab| {
            lab.site.node_mut(SILENT)?.0.kill_agent()?;
            lab.site.store.edit_mode(&other.spec())?;
            let held = Instant::now();
            while held.elapsed() < HELD {
                let (phase, said) = lab.look()?;
                let named = said.contains(&format!("node-{SILENT}"));
                let waits = phase == Phase::Preparing && named;
                ensure!(waits || held.elapsed() < HEARD, "{phase:?}: {said}");
            }
            lab.site.start_agent(SILENT)?;
            lab.wait_for(Phase::Switching)?;
            lab.site.store.edit_mode(&mode.spec())?;
            lab.wait_for(Phase::Stable)
        })?;
        cost.done?;
        ensure!(cost.streams.dead.is_empty(), "{}", cost.streams);
        let what = format!("to {other}, held by a node that said nothing, and back");
        cost.losses.check_none(&what)?;
        self.nothing_old_is_left(mode)?;
        self.site.is_as_wanted()?;
        self.travels_by(mode)
    }

    /// The operator's core does what it would, and says how far the change is.
    fn look(&mut self) -> anyhow::Result<(Phase, String)> {
        self.site.settle()?;
        let mode = self.site.store.modes.first().context("there is a mode")?;
        let status = mode.status.as_ref().context("a status")?;
        let said = status.conditions.first().map(|it| it.message.clone());
        Ok((status.phase.context("a phase")?, said.unwrap_or_default()))
    }

    fn wait_for(&mut self, wanted: Phase) -> anyhow::Result<()> {
        until(&format!("the phase {wanted:?}"), CHANGED, || {
            let (phase, said) = self.look()?;
            ensure!(phase == wanted, "{phase:?}: {said}");
            Ok(())
        })
    }

    /// The operator walks through all phases, one after the other.
    fn follow(&mut self) -> anyhow::Result<()> {
        let mut seen = Vec::new();
        until("the change to be over", CHANGED, || {
            let (phase, said) = self.look()?;
            if seen.last() != Some(&phase) {
                seen.push(phase);
            }
            ensure!(phase == Phase::Stable, "{phase:?}: {said}");
            Ok(())
        })?;
        let all = [
            Phase::Preparing,
            Phase::Switching,
            Phase::Retiring,
            Phase::Stable,
        ];
        ensure!(seen == all, "the phases were {seen:?}");
        Ok(())
    }

    /// Links, routes and sessions are those of the mode.
    fn nothing_old_is_left(&self, mode: LabMode) -> anyhow::Result<()> {
        let bridged = self.options.pod_interface == PodInterface::Bridge;
        let link = mode.link().or((!bridged).then_some("nw-own"));
        let pods = bridged.then_some("nw-br0");
        let wanted: BTreeSet<&str> = link.into_iter().chain(pods).collect();
        for node in &self.site.nodes {
            until("what is old to be gone", Duration::from_secs(10), || {
                let text = node.space.ip("-json link show")?;
                let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
                let names = links.iter().filter_map(|link| link.get("ifname")?.as_str());
                let ours: BTreeSet<&str> = names.filter(|name| name.starts_with("nw-")).collect();
                ensure!(ours == wanted, "{} has {ours:?}", node.name);
                for family in ["-4", "-6"] {
                    let routes = node.space.ip(&format!("{family} route show"))?;
                    let mut old = routes.lines().filter(|line| {
                        let bird = line.contains("proto bird") && mode != LabMode::Underlay;
                        let lowered = line.contains("proto 78") && line.contains(" mtu ");
                        bird || lowered
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

    /// All pods and nodes reach each other, encapsulated or plainly as the mode requires.
    fn travels_by(&self, mode: LabMode) -> anyhow::Result<()> {
        let before = self.underlay.seen()?;
        let pools = self.options.families.pools();
        let matrices: Vec<Matrix> = pools
            .map(|pool| self.matrix(pool))
            .collect::<anyhow::Result<_>>()?;
        matrices.iter().try_for_each(Matrix::check)?;
        let after = self.underlay.seen()?;
        let plain = after.plain - before.plain;
        let encapsulated = after.encapsulated_here - before.encapsulated_here;
        let expected = if mode.is_plain_on_link() {
            encapsulated == 0 && plain > 0
        } else {
            encapsulated > 0 && plain == 0
        };
        ensure!(
            expected,
            "{mode}: {plain} frames were plain and {encapsulated} encapsulated"
        );
        ensure!(
            after.dropped == 0,
            "{} frames with addresses of pods were where no router has a route to them",
            after.dropped
        );
        Ok(())
    }
}

/// From the rows to the columns: pings lost, the longest time without an answer, connections that died.
fn table(cells: &[Cell]) -> String {
    let modes: BTreeSet<LabMode> = cells.iter().flat_map(|cell| [cell.from, cell.to]).collect();
    let mut text = format!("{:20}", "from \\ to");
    for to in &modes {
        text += &format!(" {:>20}", to.to_string());
    }
    text += "\n";
    for from in &modes {
        text += &format!("{:20}", from.to_string());
        for to in &modes {
            let cell = cells
                .iter()
                .find(|cell| (cell.from, cell.to) == (*from, *to));
            let said = cell.map_or_else(String::new, |cell| {
                let (lost, longest) = (cell.losses.lost(), cell.losses.longest().as_millis());
                let took = cell.took.as_secs_f32();
                format!(
                    "{lost} {longest} ms {} {took:.1} s",
                    cell.streams.dead.len()
                )
            });
            text += &format!(" {said:>20}");
        }
        text += "\n";
    }
    text + "each cell: pings lost, longest gap, TCP connections that died, time the change took\n"
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
