//! Statuses of BGPPeers: the session states that the nodes report, summed up.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    BGPPeer, BGPPeerStatus, NodeNetwork, PeerError, PeerNodes, Prefixes, SessionFault,
    SessionState, SessionStatus,
};

use crate::plan::bgp::passwords;
use crate::plan::bgp::passwords::Found;
use crate::plan::bgp::peer::Peer;
use crate::plan::bgp::sessions::Coverage;
use crate::plan::bgp::{BgpTopology, Peers};
use crate::plan::conditions::{MAX_LISTED, StatusUpdate, unreadable};
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{StatusChange, UserKind};
use crate::plan::model::index::ClusterIndex;

/// Most errors that a status lists.
const MAX_ERRORS: usize = 10;
/// Most characters of a message that are repeated.
const MAX_MESSAGE: usize = 300;

/// Statuses of BGPPeers that differ from what stands there.
#[must_use]
pub fn plan_peers(
    index: &ClusterIndex<'_>,
    peers: &Peers,
    topology: Result<&BgpTopology, &Verdict>,
) -> Vec<StatusChange<BGPPeerStatus>> {
    let tallies = topology.map(|topology| tallies(index, topology));
    let by_name: BTreeMap<_, _> = peers.iter().map(|(name, peer)| (name, peer)).collect();
    let changes = index.cluster_state.peers.iter().filter_map(|object| {
        let name = object.name_any();
        let peer = by_name.get(&name)?.as_ref();
        let counts = match &tallies {
            Ok(tallies) => tallies.get(name.as_str()),
            Err(_) => None,
        };
        let errors = counts.map_or_else(Vec::new, |counts| errors(index, object, counts));
        let verdict = match (peer, topology) {
            (Err(why), _) | (_, Err(why)) => why.clone(),
            (Ok(peer), Ok(topology)) => judge(index, peer, topology, counts, &errors),
        };
        let status = BGPPeerStatus {
            observed_generation: object.metadata.generation,
            nodes: Some(counts.map(SessionCounts::nodes).unwrap_or_default()),
            prefixes: counts.map(|counts| counts.prefixes),
            errors: errors.into_iter().take(MAX_ERRORS).collect(),
            conditions: Vec::new(),
        };
        let change = StatusUpdate {
            meta: &object.metadata,
            verdict,
            now: index.cluster_state.now,
        };
        change.of(object.status.as_ref(), status, |status| {
            &mut status.conditions
        })
    });
    changes
        .chain(unreadable(index, UserKind::Peer, |meta, conditions| {
            BGPPeerStatus {
                observed_generation: meta.generation,
                conditions,
                ..BGPPeerStatus::default()
            }
        }))
        .collect()
}

/// The states that the nodes report for one peer's sessions.
#[derive(Debug, Default)]
struct SessionCounts<'a> {
    nodes: BTreeMap<&'a str, AtNode<'a>>,
    prefixes: Prefixes,
}

/// One node's sessions of one peer.
#[derive(Debug, Default)]
struct AtNode<'a> {
    /// Sessions that are not established.
    down: usize,
    /// The first that has a fault.
    fault: Option<(SessionFault, &'a SessionStatus)>,
}

impl SessionCounts<'_> {
    fn established(&self) -> usize {
        self.nodes.values().filter(|node| node.down == 0).count()
    }

    fn nodes(&self) -> PeerNodes {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        PeerNodes {
            total: number(self.nodes.len()),
            established: number(self.established()),
        }
    }
}

/// By peer. Only nodes that a peer has a session on are counted.
fn tallies<'a>(
    index: &ClusterIndex<'a>,
    topology: &'a BgpTopology,
) -> BTreeMap<&'a str, SessionCounts<'a>> {
    let mut tallies: BTreeMap<&str, SessionCounts<'_>> = BTreeMap::new();
    let mode = index.modes.get(&topology.mode);
    let mode = mode.and_then(|mode| mode.as_ref().ok());
    for (node, bgp) in &topology.speakers {
        if mode.is_some_and(|mode| index.lacks_agent(node, mode)) {
            continue;
        }
        let wanted = bgp.sessions.iter();
        let wanted = wanted.filter_map(|session| Some((session, session.bgp_peer.as_deref()?)));
        let network = index.networks.get(node.as_str());
        let mut said: Option<BTreeMap<&str, &SessionStatus>> = None;
        for (session, peer) in wanted {
            let said = said.get_or_insert_with(|| sessions(network.copied()));
            let status = said.get(session.name.as_str());
            // What is said of the name may be about what the node has not given up yet.
            let status = status.filter(|status| status.peer == session.peer);
            let counts = tallies.entry(peer).or_default();
            counts.count(node, status.copied());
        }
    }
    tallies
}

fn sessions(network: Option<&NodeNetwork>) -> BTreeMap<&str, &SessionStatus> {
    let status = network.and_then(|network| network.status.as_ref());
    let sessions = status.into_iter().flat_map(|status| &status.sessions);
    sessions
        .map(|session| (session.name.as_str(), session))
        .collect()
}

impl<'a> SessionCounts<'a> {
    fn count(&mut self, node: &'a str, status: Option<&'a SessionStatus>) {
        let at = self.nodes.entry(node).or_default();
        let up = status.filter(|status| status.state == SessionState::Established);
        at.down += usize::from(up.is_none());
        let fault = status.and_then(|status| Some((status.fault?, status)));
        at.fault = at.fault.take().or(fault);
        if let Some(up) = up {
            let Prefixes {
                received,
                advertised,
            } = &mut self.prefixes;
            *received = received.saturating_add(up.received);
            *advertised = advertised.saturating_add(up.advertised);
        }
    }
}

/// What is wrong, the oldest first.
fn errors(
    index: &ClusterIndex<'_>,
    object: &BGPPeer,
    counts: &SessionCounts<'_>,
) -> Vec<PeerError> {
    let before = object.status.iter().flat_map(|status| &status.errors);
    let before: BTreeMap<_, _> = before
        .map(|error| {
            (
                (error.node.as_str(), error.reason),
                &error.last_transition_time,
            )
        })
        .collect();
    let faults = counts.nodes.iter().filter_map(|(node, at)| {
        let (reason, status) = at.fault?;
        let since = status.last_transition_time.as_ref();
        let since = since.or_else(|| before.get(&(*node, reason)).copied());
        Some(PeerError {
            node: (*node).to_owned(),
            last_transition_time: since.cloned().unwrap_or(Time(index.cluster_state.now)),
            reason,
            message: status.message.chars().take(MAX_MESSAGE).collect(),
        })
    });
    let mut errors: Vec<_> = faults.collect();
    errors.sort_by(|one, other| {
        (&one.last_transition_time, &one.node).cmp(&(&other.last_transition_time, &other.node))
    });
    errors
}

fn judge(
    index: &ClusterIndex<'_>,
    peer: &Peer,
    topology: &BgpTopology,
    counts: Option<&SessionCounts<'_>>,
    errors: &[PeerError],
) -> Verdict {
    let coverage = topology.coverage.get(&peer.name);
    if let Some(Found::Fault(why)) = peer
        .password
        .as_ref()
        .map(|at| passwords::find(index.cluster_state, at))
    {
        return why;
    }
    if let Some(why) = coverage.and_then(|coverage| impossible(coverage, counts.is_some())) {
        return why;
    }
    let none = SessionCounts::default();
    let counts = counts.unwrap_or(&none);
    let established = counts.established();
    let message = format!(
        "session established on {established} of {}{}",
        counted(counts.nodes.len(), "node"),
        remarks(counts, errors, coverage)
    );
    let down = |error: &PeerError| {
        let at = counts.nodes.get(error.node.as_str());
        at.is_some_and(|at| at.down > 0)
    };
    if errors.iter().any(|error| needs_a_human(error.reason)) {
        Verdict::stalled(Reason::SessionFailed, message)
    } else if established == counts.nodes.len() && !errors.iter().any(down) {
        Verdict::ready(Reason::Established, message)
    } else {
        Verdict::reconciling(Reason::Establishing, message)
    }
}

/// Why a BGPPeer does not have the sessions it asks for, whatever nodes do.
fn impossible(coverage: &Coverage, has_sessions: bool) -> Option<Verdict> {
    if let Some((other, node)) = &coverage.conflict {
        return Some(Verdict::stalled(
            Reason::Conflict,
            format!(
                "BGPPeer {other}, which is older, already has a session of Node {node} with the same address and port; delete one of the two BGPPeers, or select other nodes"
            ),
        ));
    }
    let cause = match (coverage.chosen, coverage.partners) {
        (0, _) => "spec.nodeSelector matches no Node",
        (_, Some(0)) => "spec.peerSelector matches no Node",
        (_, _) if has_sessions => return None,
        (_, Some(_)) if coverage.lacking.is_empty() => {
            "spec.nodeSelector and spec.peerSelector match only the same single Node"
        }
        (_, None) if coverage.lacking.is_empty() => {
            "the only Node that spec.nodeSelector matches has the address spec.peerIP itself"
        }
        (_, _) => {
            let lacking: Vec<_> = coverage.lacking.iter().collect();
            return Some(Verdict::stalled(
                Reason::NoNodeAddress,
                format!(
                    "no selected Node has an address of the IP family of the session: {}",
                    list(&lacking, MAX_LISTED)
                ),
            ));
        }
    };
    Some(Verdict::stalled(
        Reason::NotFound,
        format!("{cause}; correct the selector, or label Nodes"),
    ))
}

/// Faults that stay until a human changes something here or at the peer.
fn needs_a_human(fault: SessionFault) -> bool {
    match fault {
        SessionFault::ASNumberMismatch | SessionFault::TooManyPrefixes => true,
        SessionFault::BIRDUnavailable
        | SessionFault::PasswordMissing
        | SessionFault::NoRouteToPeer
        | SessionFault::ConnectTimeout
        | SessionFault::ConnectionRefused
        | SessionFault::SessionError
        | SessionFault::SessionLost
        | SessionFault::PrefixesRejected => false,
    }
}

/// Additions to the message, after the number of nodes that have the session.
fn remarks(
    counts: &SessionCounts<'_>,
    errors: &[PeerError],
    coverage: Option<&Coverage>,
) -> String {
    let mut remarks = String::new();
    if let Some(first) = errors.first() {
        remarks += &format!("; {}: {}", first.node, first.message);
        if errors.len() > 1 {
            remarks += &format!(" (and {} more)", counted(errors.len() - 1, "node"));
        }
    }
    let silent = counts.nodes.iter();
    let silent: Vec<_> = silent
        .filter(|(_, at)| at.down > 0 && at.fault.is_none())
        .map(|(node, _)| node)
        .collect();
    if !silent.is_empty() {
        remarks += &format!("; waiting for {}", list(&silent, MAX_LISTED));
    }
    let has = |node: &&String| counts.nodes.contains_key(node.as_str());
    let lacking = coverage.into_iter().flat_map(|coverage| &coverage.lacking);
    let lacking: Vec<_> = lacking.filter(|node| !has(node)).collect();
    if !lacking.is_empty() {
        remarks += &format!(
            "; no address of the IP family of the session on {}",
            list(&lacking, MAX_LISTED)
        );
    }
    let left_out = coverage.map_or(&[][..], |coverage| &coverage.left_out);
    if !left_out.is_empty() {
        remarks += &format!(
            "; too many Nodes: some sessions are missing on {}",
            list(left_out, MAX_LISTED)
        );
    }
    remarks
}
