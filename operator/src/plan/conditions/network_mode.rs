//! Statuses of NetworkModes, with the progress of their rollouts.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use netweft_crds::condition::{READY, Reason, Verdict};
use netweft_crds::{ModeSummary, NetworkMode, NetworkModeStatus, NodeMode, NodeProgress, Phase};

use crate::plan::bgp::BgpTopology;
use crate::plan::conditions::{MAX_LISTED, status_change, unreadable_statuses};
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{StatusChange, UserKind};
use crate::plan::model::index::{Absence, ClusterIndex};
use crate::plan::rollout::{PoolRollout, Rollouts, description, probe_failure, summary};
use crate::plan::validate::network_mode::Mode;

/// Statuses of NetworkModes that differ from the current ones.
#[must_use]
pub fn plan_modes(
    index: &ClusterIndex<'_>,
    rollouts: &Rollouts<'_>,
    topology: Option<&BgpTopology>,
) -> Vec<StatusChange<NetworkModeStatus>> {
    let used = index.used_modes();
    let changes = index.cluster_state.modes.iter().filter_map(|object| {
        let (verdict, status) = match index.modes.get(&object.name_any())? {
            Err(why) => (why.clone(), NetworkModeStatus::default()),
            Ok(mode) if used.contains_key(mode.name.as_str()) => {
                let (mut verdict, status) = progress(index, rollouts, object, mode);
                let topology = topology.filter(|topology| topology.mode == mode.name);
                verdict.message += &topology.map(left_out_message).unwrap_or_default();
                (verdict, status)
            }
            Ok(mode) => {
                let status = NetworkModeStatus {
                    phase: Some(Phase::Stable),
                    ..NetworkModeStatus::default()
                };
                (unused(&mode.name), status)
            }
        };
        status_change(*object, &verdict, status, index.cluster_state.now)
    });
    changes
        .chain(unreadable_statuses(index, UserKind::Mode))
        .collect()
}

fn unused(mode: &str) -> Verdict {
    Verdict::ready(
        Reason::Unused,
        format!("no usable IPPool has spec.networkMode {mode}"),
    )
}

/// Which nodes lack sessions of the NetworkMode because of the limits, with a remedy.
fn left_out_message(topology: &BgpTopology) -> String {
    if topology.left_out.is_empty() {
        return String::new();
    }
    format!(
        "; too many nodes for a session between any two: {} lack some; set \
         spec.underlay.nodeToNodeMesh to false and use routeReflectors or BGPPeers",
        list(&topology.left_out, MAX_LISTED)
    )
}

/// The rollouts of all pools of a mode.
struct ModeProgress<'v> {
    /// The earliest phase of any pool.
    phase: Phase,
    /// The previous datapath.
    from: Option<ModeSummary>,
    /// The previous and the new datapath, for the message.
    change: String,
    /// Nodes that do not use the target datapath for all pools.
    not_converged: BTreeSet<&'v str>,
    /// Nodes that the phase waits for.
    waiting: BTreeSet<&'v str>,
    /// Nodes that the phase does not wait for, and why.
    not_waited_for: BTreeMap<&'v str, Absence>,
}

impl<'v> ModeProgress<'v> {
    fn observe(
        rollouts: &[&'v PoolRollout<'v>],
        to: &NodeMode,
        before: Option<&NetworkModeStatus>,
    ) -> Self {
        let slowest = rollouts.iter().min_by_key(|rollout| rollout.phase);
        let phase = slowest.map_or(Phase::Stable, |rollout| rollout.phase);
        let from = slowest.and_then(|rollout| rollout.from());
        let slowest = rollouts.iter().filter(|it| it.phase == phase);
        let change = |from| format!("from {} to {}: ", description(from), description(to));
        let mut progress = Self {
            phase,
            from: from.and_then(summary),
            change: from.map(change).unwrap_or_default(),
            not_converged: union(rollouts.iter().map(|it| &it.not_converged)),
            waiting: union(slowest.map(|it| &it.waiting)),
            not_waited_for: rollouts
                .iter()
                .flat_map(|it| &it.not_waited_for)
                .map(|(name, why)| (*name, *why))
                .collect(),
        };
        if phase == Phase::Stable {
            // No spec has the previous datapath any more, and some nodes have not acknowledged the removal.
            let changing = |it: &&NetworkModeStatus| it.phase.is_some_and(|it| it != Phase::Stable);
            match before.filter(changing) {
                Some(before) if !progress.waiting.is_empty() => {
                    progress.phase = Phase::Retiring;
                    progress.from.clone_from(&before.from);
                }
                Some(_) | None => {}
            }
        }
        progress
    }

    /// The message: the phase, the nodes that it waits for, and their reports.
    fn message(&self, index: &ClusterIndex<'_>, done: usize) -> String {
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
        if let Some(report) = names.iter().find_map(|name| agent_report(index, name)) {
            text += &format!("; {report}");
        }
        for (why, because) in [
            (Absence::NotReady, "Node not Ready"),
            (
                Absence::NotAcknowledging,
                "NodeNetwork not acknowledged within spec.rollout.progressDeadline",
            ),
        ] {
            let names = self.not_waited_for.iter().filter(|(_, of)| **of == why);
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

/// Verdict and status of a mode in use, without the conditions.
fn progress(
    index: &ClusterIndex<'_>,
    rollouts: &Rollouts<'_>,
    object: &NetworkMode,
    mode: &Mode,
) -> (Verdict, NetworkModeStatus) {
    let of_mode = rollouts.iter().filter(|(pool, _)| {
        let its = index.mode_of(pool);
        its.is_some_and(|its| its.name == mode.name)
    });
    let mode_rollouts: Vec<&PoolRollout<'_>> = of_mode.map(|(_, rollout)| rollout).collect();
    let to = mode.node_mode(index.outer_family(mode));
    let progress = ModeProgress::observe(&mode_rollouts, &to, object.status.as_ref());
    let total = index.nodes.len();
    let done = total.saturating_sub(progress.not_converged.len());
    let message = progress.message(index, done);
    let reason = match progress.phase {
        Phase::Preparing => Reason::Preparing,
        Phase::Switching => Reason::Switching,
        Phase::Retiring => Reason::Retiring,
        Phase::Stable => Reason::Programming,
    };
    // If no agent reports and therefore no node is waited for, nothing is known to work.
    let any_done = done > 0 || total == 0;
    let verdict = if progress.phase == Phase::Stable && progress.waiting.is_empty() && any_done {
        Verdict::ready(Reason::Programmed, message)
    } else {
        Verdict::reconciling(reason, message)
    };
    let listed = progress.waiting.iter().take(MAX_LISTED);
    let status = NetworkModeStatus {
        phase: Some(progress.phase),
        from: progress.from,
        nodes: Some(NodeProgress {
            total: i64::try_from(total).unwrap_or(i64::MAX),
            updated: i64::try_from(done).unwrap_or(i64::MAX),
            pending: listed.map(|name| (*name).to_owned()).collect(),
        }),
        ..NetworkModeStatus::default()
    };
    (verdict, status)
}

fn union<'v>(sets: impl Iterator<Item = &'v BTreeSet<&'v str>>) -> BTreeSet<&'v str> {
    sets.flatten().copied().collect()
}

/// What the agent reports about the current spec, or the probe that fails.
fn agent_report(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
    let network = index.networks.get(name)?;
    let status = network.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == READY)?;
    let current = status.observed_generation == network.metadata.generation;
    let not_ready = current && ready.status != "True";
    let report = || format!("{name} reports: {}", ready.message);
    not_ready
        .then(report)
        .or_else(|| probe_failure(index, name))
}
