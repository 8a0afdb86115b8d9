//! Conditions of NetworkModes, and the progress of their nodes.

use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::condition::{READY, Reason, Verdict};
use netweft_crds::{ModeSummary, NetworkMode, NetworkModeStatus, NodeMode, NodeProgress, Phase};

use crate::plan::conditions::MAX_LISTED;
use crate::plan::message_lists::{counted, list};
use crate::plan::model::index::{Absence, ClusterIndex};
use crate::plan::rollout::{PoolRollout, Rollouts, in_words, obstacle, summary};
use crate::plan::validate::network_mode::Mode;

/// What is seen of all pools of a mode together.
struct Seen<'v> {
    /// The earliest phase that one is in.
    phase: Phase,
    /// The previous datapath.
    from: Option<ModeSummary>,
    /// What changes into what, in words.
    change: String,
    /// Nodes that do not carry the traffic of all as they should.
    unsettled: BTreeSet<&'v str>,
    /// Nodes that the phase waits for.
    waiting: BTreeSet<&'v str>,
    /// Nodes that it does not, and why.
    passed_over: BTreeMap<&'v str, Absence>,
}

impl<'v> Seen<'v> {
    fn observe(
        changes: &[&'v PoolRollout<'v>],
        to: &NodeMode,
        before: Option<&NetworkModeStatus>,
    ) -> Self {
        let slowest = changes.iter().min_by_key(|change| change.phase);
        let phase = slowest.map_or(Phase::Stable, |change| change.phase);
        let from = slowest.and_then(|change| change.from());
        let alike = changes.iter().filter(|it| it.phase == phase);
        let change = |from| format!("from {} to {}: ", in_words(from), in_words(to));
        let mut seen = Self {
            phase,
            from: from.and_then(summary),
            change: from.map(change).unwrap_or_default(),
            unsettled: together(changes.iter().map(|it| &it.unsettled)),
            waiting: together(alike.map(|it| &it.waiting)),
            passed_over: changes
                .iter()
                .flat_map(|it| &it.passed_over)
                .map(|(name, why)| (*name, *why))
                .collect(),
        };
        if phase == Phase::Stable {
            // No spec has the previous datapath any more, and some nodes have not acknowledged the removal.
            let changing = |it: &&NetworkModeStatus| it.phase.is_some_and(|it| it != Phase::Stable);
            match before.filter(changing) {
                Some(before) if !seen.waiting.is_empty() => {
                    seen.phase = Phase::Retiring;
                    seen.from.clone_from(&before.from);
                }
                Some(_) | None => {}
            }
        }
        seen
    }

    /// The phase in a sentence, with the nodes that it waits for and their messages.
    fn sentence(&self, index: &ClusterIndex<'_>, done: usize) -> String {
        let (all, change) = (counted(index.nodes.len(), "node"), &self.change);
        let mut text = match self.phase {
            Phase::Preparing => format!(
                "{change}nodes prepare the new datapath and probe it; traffic stays on the old datapath until all probes succeed"
            ),
            Phase::Switching => format!("{change}{done} of {all} use the new datapath"),
            Phase::Retiring => {
                format!("{change}all nodes use the new datapath and remove the old one")
            }
            Phase::Stable => format!("{done} of {all} programmed"),
        };
        let names: Vec<&str> = self.waiting.iter().copied().collect();
        if !names.is_empty() {
            text += &format!("; waiting for {}", list(&names, MAX_LISTED));
        }
        if let Some(said) = names.iter().find_map(|name| complaint(index, name)) {
            text += &format!("; {said}");
        }
        for (why, because) in [
            (Absence::NotReady, "Node not Ready"),
            (
                Absence::Silent,
                "NodeNetwork not acknowledged within spec.rollout.progressDeadline",
            ),
        ] {
            let names = self.passed_over.iter().filter(|(_, of)| **of == why);
            let names: Vec<&str> = names.map(|(name, _)| *name).collect();
            if !names.is_empty() {
                let names = list(&names, MAX_LISTED);
                text += &format!("; not waiting for {names}: {because}");
            }
        }
        if !index.without_agent.is_empty() {
            let names: Vec<&str> = index.without_agent.iter().copied().collect();
            let names = list(&names, MAX_LISTED);
            text += &format!("; agent.nodeSelector excludes {names}, so no agent runs there");
        }
        text
    }
}

/// What there is to say about a mode that pools use, but for the conditions.
pub fn progress(
    index: &ClusterIndex<'_>,
    rollouts: &Rollouts<'_>,
    object: &NetworkMode,
    mode: &Mode,
) -> (Verdict, NetworkModeStatus) {
    let of_mode = rollouts.iter().filter(|(pool, _)| {
        let its = index.mode_of(pool);
        its.is_some_and(|its| its.name == mode.name)
    });
    let changes: Vec<&PoolRollout<'_>> = of_mode.map(|(_, change)| change).collect();
    let to = mode.node_mode(index.outer_family(mode));
    let seen = Seen::observe(&changes, &to, object.status.as_ref());
    let total = index.nodes.len();
    let done = total.saturating_sub(seen.unsettled.len());
    let message = seen.sentence(index, done);
    let reason = match seen.phase {
        Phase::Preparing => Reason::Preparing,
        Phase::Switching => Reason::Switching,
        Phase::Retiring => Reason::Retiring,
        Phase::Stable => Reason::Programming,
    };
    // Where nobody is waited for because nobody says anything, nothing is known to work.
    let works = done > 0 || total == 0;
    let verdict = if seen.phase == Phase::Stable && seen.waiting.is_empty() && works {
        Verdict::ready(Reason::Programmed, message)
    } else {
        Verdict::reconciling(reason, message)
    };
    let named = seen.waiting.iter().take(MAX_LISTED);
    let status = NetworkModeStatus {
        phase: Some(seen.phase),
        from: seen.from,
        nodes: Some(NodeProgress {
            total: i64::try_from(total).unwrap_or(i64::MAX),
            updated: i64::try_from(done).unwrap_or(i64::MAX),
            pending: named.map(|name| (*name).to_owned()).collect(),
        }),
        ..NetworkModeStatus::default()
    };
    (verdict, status)
}

fn together<'v>(sets: impl Iterator<Item = &'v BTreeSet<&'v str>>) -> BTreeSet<&'v str> {
    sets.flatten().copied().collect()
}

/// What keeps a node, in its agent's own words about the spec as it is now.
fn complaint(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
    let network = index.networks.get(name)?;
    let status = network.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == READY)?;
    let current = status.observed_generation == network.metadata.generation;
    let complains = current && ready.status != "True";
    let report = || format!("{name} reports: {}", ready.message);
    complains.then(report).or_else(|| obstacle(index, name))
}
