//! Rollout of a changed datapath to the blocks of a pool, node by node and without packet loss: all nodes have the
//! target datapath before any node uses it, and the previous datapath stays until no node uses it.
//!
//! ```text
//!   Preparing   all nodes use the old datapath and probe the new one; the new one is standby
//!   Switching   a limited number of nodes at a time switches to the new datapath; the other one is standby
//!   Retiring    all nodes use the new datapath and remove the old one
//!   Stable      all nodes have only the new datapath
//! ```
//!
//! The NodeNetworks hold the whole state: the datapath in use on each node, the standby datapaths, and what the agent
//! has acknowledged and probed. So a new leader continues the rollout, and any edit in between, also back to the former
//! mode, is just a new target.

use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::{
    self as crds, EncapsulateWhen, Encapsulation, ModeSummary, NodeMode, NodeNetwork, Phase,
    ProbeProtocol, Transport,
};

use crate::plan::message_lists::list;
use crate::plan::model::index::acknowledged;
use crate::plan::model::index::{Absence, ClusterIndex};
use crate::plan::validate::network_mode::Mode;

/// The rollout of one pool's datapath.
#[derive(Debug)]
pub struct PoolRollout<'a> {
    /// Phase of the rollout.
    pub phase: Phase,
    /// All datapaths that nodes need; the first is the target.
    datapaths: Vec<NodeMode>,
    /// Nodes that use another datapath than the target, with its index.
    in_use: BTreeMap<&'a str, usize>,
    /// Nodes that are not known to use the target datapath.
    pub not_converged: BTreeSet<&'a str>,
    /// Nodes that the phase waits for.
    pub waiting: BTreeSet<&'a str>,
    /// Nodes that are not known to use the target datapath and are not waited for, and why.
    pub not_waited_for: BTreeMap<&'a str, Absence>,
}

/// The rollouts of all pools in use with a usable mode, by pool.
pub type Rollouts<'a> = BTreeMap<&'a str, PoolRollout<'a>>;

/// Observes the rollouts of all pools.
#[must_use]
pub fn rollouts<'a>(index: &'a ClusterIndex<'a>) -> Rollouts<'a> {
    let pools = index.pools_in_use.iter().copied();
    let rollouts = pools.filter_map(|pool| {
        Some((
            pool,
            PoolRollout::observe(index, pool, index.mode_of(pool)?),
        ))
    });
    rollouts.collect()
}

impl<'a> PoolRollout<'a> {
    /// The datapath that `node` uses.
    #[must_use]
    pub fn in_use(&self, node: &str) -> Option<&NodeMode> {
        self.datapaths
            .get(self.in_use.get(node).copied().unwrap_or_default())
    }

    /// The standby datapaths of `node`: it receives by them.
    pub fn standby(&self, node: &str) -> impl Iterator<Item = &NodeMode> {
        let in_use = self.in_use.get(node).copied().unwrap_or_default();
        let changing = matches!(self.phase, Phase::Preparing | Phase::Switching);
        let datapaths = self
            .datapaths
            .iter()
            .enumerate()
            .filter(move |(n, _)| changing && *n != in_use);
        datapaths.map(|(_, datapath)| datapath)
    }

    /// The previous datapath, during a rollout.
    #[must_use]
    pub fn from(&self) -> Option<&NodeMode> {
        self.datapaths.get(1)
    }

    fn observe(index: &'a ClusterIndex<'a>, pool: &str, mode: &Mode) -> Self {
        let target = mode.node_mode(index.outer_family(mode));
        let nodes: Vec<NodeRollout<'a>> = index
            .nodes
            .keys()
            .map(|name| NodeRollout::observe(index, name, pool, mode, &target))
            .collect();
        let probe = target.probe;
        let mut datapaths = vec![target];
        for datapath in nodes.iter().flat_map(NodeRollout::datapaths) {
            let existing = datapaths
                .iter()
                .any(|existing| existing.same_transport(datapath));
            let exclusive = datapaths
                .first()
                .is_some_and(|target| are_exclusive(target, datapath));
            if !existing && !exclusive {
                datapaths.push(NodeMode {
                    probe,
                    ..without_pools(datapath)
                });
            }
        }
        let names = |matches: fn(&NodeRollout<'a>) -> bool| {
            let selected = nodes.iter().filter(|node| matches(node));
            selected.map(|node| node.name).collect::<BTreeSet<_>>()
        };
        let not_waited_for = nodes.iter().filter(|node| !node.converged);
        let not_waited_for = not_waited_for.filter_map(|node| Some((node.name, node.absence?)));
        let not_waited_for = not_waited_for.collect();
        let mut rollout = Self {
            phase: Phase::Stable,
            datapaths,
            in_use: BTreeMap::new(),
            not_converged: names(|node| !node.converged),
            waiting: names(|node| !node.converged && node.absence.is_none()),
            not_waited_for,
        };
        let is_done =
            |node: &NodeRollout<'_>| node.converged || node.absence.is_some() || node.is_complete();
        if rollout.datapaths.len() > 1 {
            if nodes.iter().all(is_done) {
                rollout.phase = Phase::Retiring;
            } else {
                rollout.advance(&nodes, mode.rollout.max_concurrent(nodes.len()));
            }
        }
        rollout
    }

    /// Decides which datapath each node uses.
    fn advance(&mut self, nodes: &[NodeRollout<'a>], max_concurrent: usize) {
        let waited_for: BTreeSet<&str> = nodes
            .iter()
            .filter(|node| node.absence.is_none() && !node.is_new)
            .map(|node| node.name)
            .collect();
        let is_counted = |node: &str| waited_for.contains(node);
        let unprepared = nodes
            .iter()
            .filter(|node| waited_for.contains(node.name) && !node.is_prepared(&is_counted));
        let unprepared: BTreeSet<&str> = unprepared.map(|node| node.name).collect();
        // All nodes had probed the target at that time.
        let has_started = nodes.iter().any(|node| node.uses_target && !node.is_new);
        let ready = has_started || unprepared.is_empty();
        self.phase = if ready {
            Phase::Switching
        } else {
            Phase::Preparing
        };
        if !ready {
            self.waiting = unprepared;
        }
        let in_progress = nodes
            .iter()
            .filter(|node| node.uses_target && !node.converged && waited_for.contains(node.name));
        let mut budget = max_concurrent.saturating_sub(in_progress.count());
        let most_used = self.most_used_datapath(nodes);
        for node in nodes.iter().filter(|node| !node.uses_target) {
            let mut switch = || {
                if !waited_for.contains(node.name) {
                    return true;
                }
                let allowed = budget > 0 && node.is_prepared(&is_counted);
                budget -= usize::from(allowed);
                allowed
            };
            if ready && switch() {
                continue;
            }
            // A new node uses the datapath that most nodes use.
            let in_use = node.in_use.and_then(|datapath| self.position(datapath));
            self.in_use.insert(node.name, in_use.unwrap_or(most_used));
        }
    }

    /// The previous datapath that most nodes use.
    fn most_used_datapath(&self, nodes: &[NodeRollout<'a>]) -> usize {
        let mut counts = vec![0_usize; self.datapaths.len()];
        let others = nodes.iter().filter(|node| !node.uses_target);
        for datapath in others.filter_map(|node| self.position(node.in_use?)) {
            if let Some(count) = counts.get_mut(datapath) {
                *count += 1;
            }
        }
        // The first of equally frequent datapaths.
        let most = counts
            .iter()
            .enumerate()
            .rev()
            .max_by_key(|(_, count)| **count);
        most.map(|(datapath, _)| datapath).unwrap_or_default()
    }

    fn position(&self, datapath: &NodeMode) -> Option<usize> {
        self.datapaths
            .iter()
            .position(|existing| existing.same_transport(datapath))
    }
}

/// The state of one node in the rollout.
struct NodeRollout<'a> {
    name: &'a str,
    /// The datapath in use.
    in_use: Option<&'a NodeMode>,
    /// The standby datapaths.
    standby: Vec<&'a NodeMode>,
    uses_target: bool,
    /// Whether the node uses the target datapath and its agent has acknowledged that.
    converged: bool,
    /// Whether the agent has reported that the kernel matches the spec.
    acknowledged: bool,
    /// Whether the agent has never reported: the node has no pods, so no node sends to it.
    is_new: bool,
    /// Why the rollout does not wait for the node, if so.
    absence: Option<Absence>,
    /// Nodes whose replies are missing over the target datapath; `None`: no probe has run. Always empty if probes are
    /// disabled.
    unreachable: Option<Vec<&'a str>>,
}

impl<'a> NodeRollout<'a> {
    fn observe(
        index: &ClusterIndex<'a>,
        name: &'a str,
        pool: &str,
        mode: &Mode,
        target: &NodeMode,
    ) -> Self {
        let network = index.networks.get(name).copied();
        let modes = network.map_or(&[][..], |network| &network.spec.modes);
        let contains = |list: &[String]| list.iter().any(|it| it == pool);
        let in_use = modes.iter().find(|mode| contains(&mode.pools));
        let standby = modes.iter().filter(|mode| contains(&mode.standby_pools));
        let uses_target = in_use.is_some_and(|datapath| datapath.same_transport(target));
        let acknowledged = network.is_some_and(acknowledged);
        Self {
            name,
            in_use,
            standby: standby.collect(),
            uses_target,
            converged: uses_target && acknowledged,
            acknowledged,
            is_new: !index.has_ever_reported(name),
            absence: index.absence(name, mode),
            unreachable: match mode.rollout.probe {
                ProbeProtocol::Auto | ProbeProtocol::Icmp | ProbeProtocol::Udp => {
                    network.and_then(|network| unreachable(network, target))
                }
                ProbeProtocol::None => Some(Vec::new()),
            },
        }
    }

    /// Whether the node has only the target datapath: the rollout was complete here, or the node is new.
    fn is_complete(&self) -> bool {
        self.uses_target && self.standby.is_empty()
    }

    fn datapaths(&self) -> impl Iterator<Item = &'a NodeMode> {
        self.in_use.into_iter().chain(self.standby.iter().copied())
    }

    /// Whether the node can switch: its agent has acknowledged all datapaths, and all probed nodes that
    /// `is_counted` accepts have replied.
    fn is_prepared(&self, is_counted: &dyn Fn(&str) -> bool) -> bool {
        let all_replied = || {
            self.unreachable
                .as_ref()
                .is_some_and(|unreachable| !unreachable.iter().any(|node| is_counted(node)))
        };
        self.acknowledged && (self.uses_target || all_replied())
    }
}

/// Nodes that did not reply over a standby datapath of this node. Datapaths that differ only in their parameters count
/// together.
fn unreachable<'a>(network: &'a NodeNetwork, datapath: &NodeMode) -> Option<Vec<&'a str>> {
    let transport = datapath.transport.get()?.into();
    let probes = network.status.as_ref()?.probes.iter();
    let mut probes = probes
        .filter(|probe| probe.mode == datapath.name && probe.transport == transport)
        .peekable();
    probes.peek()?;
    let unreachable = probes.flat_map(|probe| &probe.unreachable);
    Some(unreachable.map(String::as_str).collect())
}

/// Why a node does not proceed, from the probes that its agent has reported.
#[must_use]
pub fn probe_failure(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
    let network = index.networks.get(name)?;
    let probes = network.status.as_ref()?.probes.iter();
    let mut probes = probes.filter(|probe| !probe.unreachable.is_empty());
    let probe = probes.next().filter(|_| acknowledged(network))?;
    let unreachable: Vec<&String> = probe.unreachable.iter().collect();
    let why = probe
        .message
        .as_deref()
        .map_or_else(String::new, |why| format!(" ({why})"));
    let protocols = probe.protocols.join(" or ");
    let remedy = if why.is_empty() {
        format!("; allow {protocols} between nodes, or set spec.rollout.probe to none")
    } else {
        String::new()
    };
    Some(format!(
        "{name} gets no reply over {} from {} to {protocols}{why}{remedy}",
        probe.transport,
        list(&unreachable, 3)
    ))
}

/// The mode and encapsulation of a datapath, for a status.
#[must_use]
pub fn summary(mode: &NodeMode) -> Option<ModeSummary> {
    let (mode, encapsulation) = match mode.transport.get()? {
        Transport::Vxlan(_) => (crds::Mode::Overlay, Some(Encapsulation::Vxlan)),
        Transport::Ipip => (crds::Mode::Overlay, Some(Encapsulation::Ipip)),
        Transport::Udp(_) => (crds::Mode::Overlay, Some(Encapsulation::Udp)),
        Transport::Direct => (crds::Mode::HostGw, None),
        Transport::Bgp => (crds::Mode::Underlay, None),
    };
    Some(ModeSummary {
        mode,
        encapsulation,
    })
}

/// A short description of a datapath, for messages.
#[must_use]
pub fn description(mode: &NodeMode) -> String {
    let transport = mode.transport.get().map_or_else(
        || "an unknown transport".to_owned(),
        |transport| transport.to_string(),
    );
    match mode.encapsulate_when {
        EncapsulateWhen::Always => transport,
        EncapsulateWhen::CrossSubnet => format!("{transport} across subnets"),
    }
}

/// The datapath without pools.
fn without_pools(mode: &NodeMode) -> NodeMode {
    NodeMode {
        pools: Vec::new(),
        standby_pools: Vec::new(),
        ..mode.clone()
    }
}

/// Whether a node cannot have both at the same time: they are the same link with another address, or need the same UDP
/// port in the kernel and the relay.
fn are_exclusive(one: &NodeMode, other: &NodeMode) -> bool {
    let other_family = one.outer_family != other.outer_family;
    match (one.transport.get(), other.transport.get()) {
        (Some(Transport::Vxlan(one)), Some(Transport::Vxlan(other))) => {
            one == other && other_family
        }
        (Some(Transport::Udp(one)), Some(Transport::Udp(other))) => one == other && other_family,
        (Some(Transport::Vxlan(vxlan)), Some(Transport::Udp(udp)))
        | (Some(Transport::Udp(udp)), Some(Transport::Vxlan(vxlan))) => vxlan.port == udp.port,
        (_, _) => false,
    }
}
