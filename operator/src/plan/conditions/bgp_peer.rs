//! Statuses of BGPPeers: a summary of the session states that agents report.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    BGPPeer, BGPPeerStatus, NodeNetwork, PeerError, PeerNodes, Prefixes, SessionFault,
    SessionState, SessionStatus,
};

use crate::plan::bgp::passwords;
use crate::plan::bgp::passwords::PasswordLookup;
use crate::plan::bgp::peer::Peer;
use crate::plan::bgp::sessions::Coverage;
use crate::plan::bgp::{BgpTopology, Peers};
use crate::plan::conditions::{MAX_LISTED, status_change, unreadable_statuses};
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{StatusChange, UserKind};
use crate::plan::model::index::ClusterIndex;

/// Maximum number of errors in a status.
const MAX_ERRORS: usize = 10;
/// Maximum number of characters of an error message.
const MAX_MESSAGE: usize = 300;

/// Statuses of BGPPeers that differ from the current ones.
#[must_use]
pub fn plan_peers(
    index: &ClusterIndex<'_>,
    peers: &Peers,
    topology: Result<&BgpTopology, &Verdict>,
) -> Vec<StatusChange<BGPPeerStatus>> {
    let all_counts = topology.map(|topology| count_sessions(index, topology));
    let by_name: BTreeMap<_, _> = peers.iter().map(|(name, peer)| (name, peer)).collect();
    let changes = index.cluster_state.peers.iter().filter_map(|object| {
        let name = object.name_any();
        let peer = by_name.get(&name)?.as_ref();
        let counts = all_counts.as_ref().ok();
        let counts = counts.and_then(|counts| counts.get(name.as_str()));
        let errors = counts.map_or_else(Vec::new, |counts| errors(index, object, counts));
        let verdict = match (peer, topology) {
            (Err(why), _) | (_, Err(why)) => why.clone(),
            (Ok(peer), Ok(topology)) => session_verdict(index, peer, topology, counts, &errors),
        };
        let status = BGPPeerStatus {
            nodes: Some(counts.map(SessionCounts::nodes).unwrap_or_default()),
            prefixes: counts.map(|counts| counts.prefixes),
            errors: errors.into_iter().take(MAX_ERRORS).collect(),
            ..BGPPeerStatus::default()
        };
        status_change(*object, &verdict, status, index.cluster_state.now)
    });
    changes
        .chain(unreadable_statuses(index, UserKind::Peer))
        .collect()
}

/// The states of the sessions of one BGPPeer.
#[derive(Debug, Default)]
struct SessionCounts<'a> {
    nodes: BTreeMap<&'a str, NodeSessions<'a>>,
    prefixes: Prefixes,
}

/// The sessions of one BGPPeer on one node.
#[derive(Debug, Default)]
struct NodeSessions<'a> {
    /// Number of sessions that are not established.
    down: usize,
    /// The first session with a fault.
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

/// Counts the sessions by BGPPeer. Only nodes with a session of the BGPPeer are counted.
fn count_sessions<'a>(
    index: &ClusterIndex<'a>,
    topology: &'a BgpTopology,
) -> BTreeMap<&'a str, SessionCounts<'a>> {
    let mut all_counts: BTreeMap<&str, SessionCounts<'_>> = BTreeMap::new();
    let mode = index.modes.get(&topology.mode);
    let mode = mode.and_then(|mode| mode.as_ref().ok());
    for (node, bgp) in &topology.speakers {
        if mode.is_some_and(|mode| index.lacks_agent(node, mode)) {
            continue;
        }
        let sessions = bgp.sessions.iter();
        let sessions = sessions.filter_map(|session| Some((session, session.bgp_peer.as_deref()?)));
        let network = index.networks.get(node.as_str());
        let mut reported: Option<BTreeMap<&str, &SessionStatus>> = None;
        for (session, peer) in sessions {
            let reported = reported.get_or_insert_with(|| reported_sessions(network.copied()));
            let status = reported.get(session.name.as_str());
            // The report may be about a former session with the same name.
            let status = status.filter(|status| status.peer == session.peer);
            let counts = all_counts.entry(peer).or_default();
            counts.count(node, status.copied());
        }
    }
    all_counts
}

fn reported_sessions(network: Option<&NodeNetwork>) -> BTreeMap<&str, &SessionStatus> {
    let status = network.and_then(|network| network.status.as_ref());
    let sessions = status.into_iter().flat_map(|status| &status.sessions);
    sessions
        .map(|session| (session.name.as_str(), session))
        .collect()
}

impl<'a> SessionCounts<'a> {
    fn count(&mut self, node: &'a str, status: Option<&'a SessionStatus>) {
        let sessions = self.nodes.entry(node).or_default();
        let up = status.filter(|status| status.state == SessionState::Established);
        sessions.down += usize::from(up.is_none());
        let fault = status.and_then(|status| Some((status.fault?, status)));
        sessions.fault = sessions.fault.take().or(fault);
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

/// The errors of all nodes, the oldest first.
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
    let faults = counts.nodes.iter().filter_map(|(node, sessions)| {
        let (reason, status) = sessions.fault?;
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

fn session_verdict(
    index: &ClusterIndex<'_>,
    peer: &Peer,
    topology: &BgpTopology,
    counts: Option<&SessionCounts<'_>>,
    errors: &[PeerError],
) -> Verdict {
    let coverage = topology.coverage.get(&peer.name);
    if let Some(PasswordLookup::Fault(why)) = peer
        .password
        .as_ref()
        .map(|at| passwords::find(index.cluster_state, at))
    {
        return why;
    }
    if let Some(why) = coverage.and_then(|coverage| no_session_verdict(coverage, counts.is_some()))
    {
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
        let sessions = counts.nodes.get(error.node.as_str());
        sessions.is_some_and(|sessions| sessions.down > 0)
    };
    if errors.iter().any(|error| needs_intervention(error.reason)) {
        Verdict::stalled(Reason::SessionFailed, message)
    } else if established == counts.nodes.len() && !errors.iter().any(down) {
        Verdict::ready(Reason::Established, message)
    } else {
        Verdict::reconciling(Reason::Establishing, message)
    }
}

/// Why a BGPPeer has no sessions, independent of the state of nodes.
fn no_session_verdict(coverage: &Coverage, has_sessions: bool) -> Option<Verdict> {
    if let Some((other, node)) = &coverage.conflict {
        return Some(Verdict::stalled(
            Reason::Conflict,
            format!(
                "BGPPeer {other}, which is older, already has a session of Node {node} with the same address and port; delete one of the two BGPPeers, or select other nodes"
            ),
        ));
    }
    let cause = match (coverage.selected, coverage.selected_peers) {
        (0, _) => "spec.nodeSelector matches no Node",
        (_, Some(0)) => "spec.peerSelector matches no Node",
        (_, _) if has_sessions => return None,
        (_, Some(_)) if coverage.without_address.is_empty() => {
            "spec.nodeSelector and spec.peerSelector match only the same single Node"
        }
        (_, None) if coverage.without_address.is_empty() => {
            "the only Node that spec.nodeSelector matches has the address spec.peerIP itself"
        }
        (_, _) => {
            let without_address: Vec<_> = coverage.without_address.iter().collect();
            return Some(Verdict::stalled(
                Reason::NoNodeAddress,
                format!(
                    "no selected Node has an address of the IP family of the session: {}",
                    list(&without_address, MAX_LISTED)
                ),
            ));
        }
    };
    Some(Verdict::stalled(
        Reason::NotFound,
        format!("{cause}; correct the selector, or label Nodes"),
    ))
}

/// Whether a fault stays until a user changes the configuration here or at the peer.
fn needs_intervention(fault: SessionFault) -> bool {
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

/// Details of the message, after the number of nodes with an established session.
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
    let waiting = counts.nodes.iter();
    let waiting: Vec<_> = waiting
        .filter(|(_, sessions)| sessions.down > 0 && sessions.fault.is_none())
        .map(|(node, _)| node)
        .collect();
    if !waiting.is_empty() {
        remarks += &format!("; waiting for {}", list(&waiting, MAX_LISTED));
    }
    let has_session = |node: &&String| counts.nodes.contains_key(node.as_str());
    let without_address = coverage
        .into_iter()
        .flat_map(|coverage| &coverage.without_address);
    let without_address: Vec<_> = without_address.filter(|node| !has_session(node)).collect();
    if !without_address.is_empty() {
        remarks += &format!(
            "; no address of the IP family of the session on {}",
            list(&without_address, MAX_LISTED)
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
