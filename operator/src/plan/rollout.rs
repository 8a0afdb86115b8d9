//! Changes of the datapath to the blocks of a pool, node by node, so that no packet is lost: the target datapath is there on every node
//! before one node uses it, and the previous datapath stays until none does.
//!
//! ```text
//!   Preparing   all receive both datapaths, send the old one, and try the new one
//!   Switching   some at a time use the new datapath                               all nodes have what the others may send by
//!   Retiring    all use the new datapath, the old one is taken away
//!   Stable
//! ```
//!
//! What is under way stands in the NodeNetworks themselves: by which datapath each node sends, which stand by, what its agent has
//! acknowledged and found. So a new leader goes on where the last one was, and whatever is edited meanwhile, back for one, is a new
//! target from there.

use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::{
    self as crds, EncapsulateWhen, Encapsulation, ModeSummary, NodeMode, NodeNetwork, Phase,
    ProbeProtocol, Transport,
};

use crate::plan::message_lists::list;
use crate::plan::model::index::acknowledged;
use crate::plan::model::index::{Absence, ClusterIndex};
use crate::plan::validate::network_mode::Mode;

/// How the blocks of one pool are reached.
#[derive(Debug)]
pub struct PoolRollout<'a> {
    /// Where the change stands.
    pub phase: Phase,
    /// All datapaths that nodes need; the first is the target.
    datapaths: Vec<NodeMode>,
    /// Nodes that send by another datapath than the target, with its index.
    sends: BTreeMap<&'a str, usize>,
    /// Nodes that do not carry the pool's traffic by the target datapath, as far as known.
    pub unsettled: BTreeSet<&'a str>,
    /// Nodes that the phase waits for.
    pub waiting: BTreeSet<&'a str>,
    /// Nodes that do not carry the pool's traffic by the target datapath and are not waited for, and why.
    pub passed_over: BTreeMap<&'a str, Absence>,
}

/// All pools in use whose mode can be used, by name.
pub type Rollouts<'a> = BTreeMap<&'a str, PoolRollout<'a>>;

/// Looks at all pools.
#[must_use]
pub fn rollouts<'a>(index: &'a ClusterIndex<'a>) -> Rollouts<'a> {
    let pools = index.pools_in_use.iter().copied();
    let looks = pools.filter_map(|pool| {
        Some((
            pool,
            PoolRollout::observe(index, pool, index.mode_of(pool)?),
        ))
    });
    looks.collect()
}

impl<'a> PoolRollout<'a> {
    /// What `node` sends by.
    #[must_use]
    pub fn send(&self, node: &str) -> Option<&NodeMode> {
        self.datapaths
            .get(self.sends.get(node).copied().unwrap_or_default())
    }

    /// By what else `node` receives.
    pub fn standby(&self, node: &str) -> impl Iterator<Item = &NodeMode> {
        let sends = self.sends.get(node).copied().unwrap_or_default();
        let changing = matches!(self.phase, Phase::Preparing | Phase::Switching);
        let datapaths = self
            .datapaths
            .iter()
            .enumerate()
            .filter(move |(n, _)| changing && *n != sends);
        datapaths.map(|(_, datapath)| datapath)
    }

    /// The previous datapath, while there is one.
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
            let known = datapaths.iter().any(|known| known.same_transport(datapath));
            let excluded = datapaths
                .first()
                .is_some_and(|target| exclude(target, datapath));
            if !known && !excluded {
                datapaths.push(NodeMode {
                    probe,
                    ..bare(datapath)
                });
            }
        }
        let of = |choose: fn(&NodeRollout<'a>) -> bool| {
            let chosen = nodes.iter().filter(|node| choose(node));
            chosen.map(|node| node.name).collect::<BTreeSet<_>>()
        };
        let passed_over = nodes.iter().filter(|node| !node.settled);
        let passed_over = passed_over.filter_map(|node| Some((node.name, node.absence?)));
        let passed_over = passed_over.collect();
        let mut change = Self {
            phase: Phase::Stable,
            datapaths,
            sends: BTreeMap::new(),
            unsettled: of(|node| !node.settled),
            waiting: of(|node| !node.settled && node.absence.is_none()),
            passed_over,
        };
        let through =
            |node: &NodeRollout<'_>| node.settled || node.absence.is_some() || node.is_through();
        if change.datapaths.len() > 1 {
            if nodes.iter().all(through) {
                change.phase = Phase::Retiring;
            } else {
                change.go_on(&nodes, mode.rollout.max_concurrent(nodes.len()));
            }
        }
        change
    }

    /// Decides who sends by what.
    fn go_on(&mut self, nodes: &[NodeRollout<'a>], at_once: usize) {
        let waited_for: BTreeSet<&str> = nodes
            .iter()
            .filter(|node| node.absence.is_none() && !node.is_new)
            .map(|node| node.name)
            .collect();
        let counts = |silent: &str| waited_for.contains(silent);
        let unprepared = nodes
            .iter()
            .filter(|node| waited_for.contains(node.name) && !node.is_prepared(&counts));
        let unprepared: BTreeSet<&str> = unprepared.map(|node| node.name).collect();
        // All had tried it then.
        let begun = nodes.iter().any(|node| node.sends_target && !node.is_new);
        let ready = begun || unprepared.is_empty();
        self.phase = if ready {
            Phase::Switching
        } else {
            Phase::Preparing
        };
        if !ready {
            self.waiting = unprepared;
        }
        let under_way = nodes
            .iter()
            .filter(|node| node.sends_target && !node.settled && waited_for.contains(node.name));
        let mut left = at_once.saturating_sub(under_way.count());
        let usual = self.most_used_datapath(nodes);
        for node in nodes.iter().filter(|node| !node.sends_target) {
            let mut switch = || {
                if !waited_for.contains(node.name) {
                    return true;
                }
                let may = left > 0 && node.is_prepared(&counts);
                left -= usize::from(may);
                may
            };
            if ready && switch() {
                continue;
            }
            // One that has nothing yet does as the others do.
            let sends = node.sends.and_then(|datapath| self.position(datapath));
            self.sends.insert(node.name, sends.unwrap_or(usual));
        }
    }

    /// The datapath that most nodes send by which do not use the new datapath.
    fn most_used_datapath(&self, nodes: &[NodeRollout<'a>]) -> usize {
        let mut counts = vec![0_usize; self.datapaths.len()];
        let others = nodes.iter().filter(|node| !node.sends_target);
        for datapath in others.filter_map(|node| self.position(node.sends?)) {
            if let Some(count) = counts.get_mut(datapath) {
                *count += 1;
            }
        }
        // The first of those that are alike.
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
            .position(|known| known.same_transport(datapath))
    }
}

/// Where one node stands.
struct NodeRollout<'a> {
    name: &'a str,
    /// What it sends by.
    sends: Option<&'a NodeMode>,
    /// What stands by.
    standby: Vec<&'a NodeMode>,
    sends_target: bool,
    /// It sends by the target datapath, and its agent has said so.
    settled: bool,
    /// Its agent has reported that its kernel matches the spec.
    acknowledged: bool,
    /// Its agent has never said anything: nothing is sent to its pods, for it has none.
    is_new: bool,
    /// Why it is not waited for, if it is not.
    absence: Option<Absence>,
    /// Nodes that it gets no answer from by the target datapath; `None`: it has not tried. Without a probe none count.
    silent: Option<Vec<&'a str>>,
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
        let has = |list: &[String]| list.iter().any(|it| it == pool);
        let sends = modes.iter().find(|mode| has(&mode.pools));
        let standby = modes.iter().filter(|mode| has(&mode.standby_pools));
        let sends_target = sends.is_some_and(|datapath| datapath.same_transport(target));
        let acknowledged = network.is_some_and(acknowledged);
        Self {
            name,
            sends,
            standby: standby.collect(),
            sends_target,
            settled: sends_target && acknowledged,
            acknowledged,
            is_new: !index.has_spoken(name),
            absence: index.absence(name, mode),
            silent: match mode.rollout.probe {
                ProbeProtocol::Auto | ProbeProtocol::Icmp | ProbeProtocol::Udp => {
                    network.and_then(|network| silent(network, target))
                }
                ProbeProtocol::None => Some(Vec::new()),
            },
        }
    }

    /// Whether it has only the target datapath: the others were taken from it when all nodes sent that one, or it is new.
    fn is_through(&self) -> bool {
        self.sends_target && self.standby.is_empty()
    }

    fn datapaths(&self) -> impl Iterator<Item = &'a NodeMode> {
        self.sends.into_iter().chain(self.standby.iter().copied())
    }

    /// Whether it could send by the target datapath: it says that all is there, and of the nodes that count every one it asked has
    /// answered.
    fn is_prepared(&self, counts: &dyn Fn(&str) -> bool) -> bool {
        let proven = || {
            self.silent
                .as_ref()
                .is_some_and(|silent| !silent.iter().any(|node| counts(node)))
        };
        self.acknowledged && (self.sends_target || proven())
    }
}

/// Nodes that did not answer by a standby datapath on this node, as its agent says. Of datapaths that differ in their parameters only,
/// all count.
fn silent<'a>(network: &'a NodeNetwork, datapath: &NodeMode) -> Option<Vec<&'a str>> {
    let transport = datapath.transport.get()?.into();
    let tried = network.status.as_ref()?.probes.iter();
    let mut tried = tried
        .filter(|tried| tried.mode == datapath.name && tried.transport == transport)
        .peekable();
    tried.peek()?;
    let silent = tried.flat_map(|tried| &tried.unreachable);
    Some(silent.map(String::as_str).collect())
}

/// Why a node that is waited for has not got further, as far as its agent has reported.
#[must_use]
pub fn obstacle(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
    let network = index.networks.get(name)?;
    let tried = network.status.as_ref()?.probes.iter();
    let mut tried = tried.filter(|tried| !tried.unreachable.is_empty());
    let tried = tried.next().filter(|_| acknowledged(network))?;
    let silent: Vec<&String> = tried.unreachable.iter().collect();
    let why = tried
        .message
        .as_deref()
        .map_or_else(String::new, |why| format!(" ({why})"));
    let protocols = tried.protocols.join(" or ");
    let remedy = if why.is_empty() {
        format!("; allow {protocols} between nodes, or set spec.rollout.probe to none")
    } else {
        String::new()
    };
    Some(format!(
        "{name} gets no reply over {} from {} to {protocols}{why}{remedy}",
        tried.transport,
        list(&silent, 3)
    ))
}

/// A datapath as a status names it.
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

/// A short description of a datapath.
#[must_use]
pub fn in_words(mode: &NodeMode) -> String {
    let transport = mode.transport.get().map_or_else(
        || "an unknown transport".to_owned(),
        |transport| transport.to_string(),
    );
    match mode.encapsulate_when {
        EncapsulateWhen::Always => transport,
        EncapsulateWhen::CrossSubnet => format!("{transport} across subnets"),
    }
}

/// The datapath without its pools.
fn bare(mode: &NodeMode) -> NodeMode {
    NodeMode {
        pools: Vec::new(),
        standby_pools: Vec::new(),
        ..mode.clone()
    }
}

/// Whether no node can have both at the same time: they would be the same link with another address, or the same UDP port of the
/// kernel's and the relay's.
fn exclude(one: &NodeMode, other: &NodeMode) -> bool {
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
