//! The status of a session: a pure function of the desired session and the observation of BIRD.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use netweft_crds::{Session, SessionFault, SessionState, SessionStatus};

use crate::bird::protocols::Seen;
use crate::desired::bird::Taken;

/// A TCP handshake takes milliseconds; a connection attempt that lasts for so long has had no reply.
const STUCK: Duration = Duration::from_secs(2);
/// BIRD computes past times from two readings of its clock, so the same moment can differ by this, in seconds.
const JITTER: i64 = 2;

/// A fault of a session, and a message with the remedy.
pub type Fault = (SessionFault, String);

/// The status of a session that BIRD has; `stuck`: how long it has been in the same state.
#[must_use]
pub fn status(session: &Session, seen: &Seen, stuck: Duration, refused: &str) -> SessionStatus {
    let state = seen.state.unwrap_or(SessionState::Idle);
    let fault = if state == SessionState::Established {
        established(session, seen, refused)
    } else {
        down(session, state, seen.last_error.as_deref(), stuck)
    };
    let since = seen.since.and_then(|at| Timestamp::from_second(at).ok());
    SessionStatus {
        last_transition_time: since.map(Time),
        received: seen.imported,
        advertised: seen.exported,
        rejected: seen.filtered,
        ..without(session, state, fault)
    }
}

/// The status of a session that BIRD does not have.
#[must_use]
pub fn absent(session: &Session, fault: Option<Fault>) -> SessionStatus {
    without(session, SessionState::Idle, fault)
}

fn without(session: &Session, state: SessionState, fault: Option<Fault>) -> SessionStatus {
    let (fault, message) = fault.unzip();
    SessionStatus {
        name: session.name.clone(),
        peer: session.peer,
        state,
        last_transition_time: None,
        received: 0,
        advertised: 0,
        rejected: 0,
        fault,
        message: message.unwrap_or_default(),
    }
}

/// A session that fails repeatedly for the same reason keeps its status: its states between two attempts are no change.
#[must_use]
pub fn settle(before: Option<&SessionStatus>, mut now: SessionStatus) -> SessionStatus {
    let Some(before) = before else {
        return now;
    };
    let up = |status: &SessionStatus| status.state == SessionState::Established;
    let seconds = |status: &SessionStatus| {
        status
            .last_transition_time
            .as_ref()
            .map(|since| since.0.as_second())
    };
    let same = before.fault == now.fault && before.message == now.message;
    if !up(before) && !up(&now) && now.fault.is_some() && same && before.peer == now.peer {
        return before.clone();
    }
    let moments = seconds(before).zip(seconds(&now));
    if up(before) == up(&now) && moments.is_some_and(|(a, b)| (a - b).abs() <= JITTER) {
        now.last_transition_time
            .clone_from(&before.last_transition_time);
    }
    now
}

fn established(session: &Session, seen: &Seen, refused: &str) -> Option<Fault> {
    let Session {
        peer, max_prefixes, ..
    } = session;
    if seen.limited {
        let message = format!(
            "{peer} advertises more than {max_prefixes} prefixes; further prefixes are ignored: advertise fewer, or raise spec.maxPrefixes of the BGPPeer"
        );
        return Some((SessionFault::TooManyPrefixes, message));
    }
    (seen.filtered > 0).then(|| {
        let message = format!(
            "{} of {peer} {} rejected{refused}; advertise only blocks of other nodes there, or accept more with spec.filters.import of the BGPPeer",
            count(seen.filtered),
            if seen.filtered == 1 { "is" } else { "are" },
        );
        (SessionFault::PrefixesRejected, message)
    })
}

fn count(prefixes: i64) -> String {
    let noun = if prefixes == 1 { "prefix" } else { "prefixes" };
    format!("{prefixes} {noun}")
}

fn down(
    session: &Session,
    state: SessionState,
    last_error: Option<&str>,
    stuck: Duration,
) -> Option<Fault> {
    use SessionFault::{ConnectTimeout, NoRouteToPeer};
    let waiting = stuck >= STUCK;
    match state {
        // Whatever went wrong before: what is tried now gets no answer.
        SessionState::Connect | SessionState::OpenSent | SessionState::OpenConfirm if waiting => {
            Some((ConnectTimeout, no_answer(session)))
        }
        // One that is waiting for its turn after an error has one.
        SessionState::Idle if waiting && last_error.is_none() => {
            Some((NoRouteToPeer, no_route(session)))
        }
        _ => last_error.map(|error| explain(session, error)),
    }
}

/// What BIRD can have to complain of, as far as there is advice.
#[derive(Clone, Copy)]
enum Complaint {
    PeerAs,
    NoRoute,
    NoAddress,
    NoAnswer,
    Refused,
    TooMany,
    Lost,
    PortTaken,
    SecondSession,
}

/// BIRD's class for what became of a connection, in the C library's words.
const CONNECTION: &str = "Socket";

/// BIRD's words for what went wrong (`bgp_last_errmsg`, and the C library's for sockets).
const COMPLAINTS: &[(&str, Complaint)] = &[
    ("Bad peer AS", Complaint::PeerAs),
    ("Neighbor lost", Complaint::NoRoute),
    ("etwork is unreachable", Complaint::NoRoute),
    ("etwork unreachable", Complaint::NoRoute),
    ("Cannot assign requested address", Complaint::NoAddress),
    ("Address not available", Complaint::NoAddress),
    ("No route to host", Complaint::NoAnswer),
    ("ost is unreachable", Complaint::NoAnswer),
    ("Host is down", Complaint::NoAnswer),
    ("timed out", Complaint::NoAnswer),
    ("Connection refused", Complaint::Refused),
    ("Route limit exceeded", Complaint::TooMany),
    ("imer expired", Complaint::Lost),
    ("BFD session down", Complaint::Lost),
    ("Link down", Complaint::Lost),
    ("Graceful restart", Complaint::Lost),
    ("No listening socket", Complaint::PortTaken),
    // Subcodes 5 and 7 of Cease (RFC 4486).
    ("Connection rejected", Complaint::SecondSession),
    ("ollision", Complaint::SecondSession),
];

/// Whether a side refuses the session and has given the reason: the next attempt fails alike.
#[must_use]
pub fn is_refusal(error: &str) -> bool {
    let (class, words) = parts(error);
    let advised = complaint(words);
    class != CONNECTION
        && matches!(
            advised,
            None | Some(Complaint::PeerAs | Complaint::PortTaken | Complaint::SecondSession)
        )
}

/// Whether the peer closed the connection without a reason.
#[must_use]
pub fn is_bare_end(error: &str) -> bool {
    let (class, words) = parts(error);
    class == CONNECTION && complaint(words).is_none()
}

/// The class that BIRD puts before `: `, and the words behind it.
fn parts(error: &str) -> (&str, &str) {
    error.split_once(": ").unwrap_or(("", error))
}

fn complaint(words: &str) -> Option<Complaint> {
    let known = COMPLAINTS.iter().find(|(known, _)| words.contains(known));
    known.map(|(_, complaint)| *complaint)
}

/// What went wrong, with advice.
fn explain(session: &Session, error: &str) -> Fault {
    let (class, words) = parts(error);
    if let Some(complaint) = complaint(words) {
        let theirs = class == "Received";
        return advise(session, complaint, words, theirs);
    }
    let Session {
        peer,
        local,
        local_as,
        ..
    } = session;
    let message = match class {
        CONNECTION => format!(
            "{peer} closes the connection ({words}): check whether {local} (AS {local_as}) is a neighbor in the configuration of the peer, and whether {OTHER_SPEAKER} has a session with it; {}",
            way_out(session)
        ),
        "Received" => format!("{peer} reports: {words}"),
        _ => format!("{peer} is refused: {words}"),
    };
    (SessionFault::SessionError, message)
}

fn advise(session: &Session, complaint: Complaint, words: &str, theirs: bool) -> Fault {
    let Session {
        peer,
        port,
        local,
        local_as,
        peer_as,
        ..
    } = session;
    match complaint {
        Complaint::PeerAs if theirs => (
            SessionFault::ASNumberMismatch,
            format!(
                "{peer} expects another AS number of this node than {local_as}: correct it there, or set spec.localASNumber of the BGPPeer"
            ),
        ),
        Complaint::PeerAs => (
            SessionFault::ASNumberMismatch,
            format!(
                "{peer} is not AS {peer_as}: correct spec.asNumber of the BGPPeer, or the peer's own"
            ),
        ),
        Complaint::NoRoute => (SessionFault::NoRouteToPeer, no_route(session)),
        Complaint::NoAddress => (
            SessionFault::NoRouteToPeer,
            format!(
                "this node does not have the source address {local}: correct spec.sourceAddress of the BGPPeer, or give it to the node"
            ),
        ),
        Complaint::NoAnswer => (SessionFault::ConnectTimeout, no_answer(session)),
        Complaint::Refused => (
            SessionFault::ConnectionRefused,
            format!(
                "{peer} refuses connections to port {port}: start its BGP speaker, or correct spec.peerPort of the BGPPeer"
            ),
        ),
        Complaint::TooMany => (
            SessionFault::TooManyPrefixes,
            format!("{peer} advertises too many prefixes"),
        ),
        Complaint::Lost => (
            SessionFault::SessionLost,
            format!("the session with {peer} was lost ({words})"),
        ),
        Complaint::PortTaken => (
            SessionFault::SessionError,
            format!(
                "another program on this node uses the BGP port, perhaps {OTHER_SPEAKER}: set spec.underlay.listenPort of the NetworkMode, or stop that program"
            ),
        ),
        Complaint::SecondSession => (
            SessionFault::SessionError,
            format!(
                "{peer} {} a session with {local} ({words}): perhaps {OTHER_SPEAKER} has a session from the same address, and BGP allows one session per pair of addresses; {}",
                if theirs { "refuses" } else { "is refused" },
                way_out(session)
            ),
        ),
    }
}

/// What else on a node speaks BGP.
const OTHER_SPEAKER: &str = "another BGP speaker on this node (MetalLB, FRR, Calico's BIRD)";

/// How this node and another speaker on it can both have a session with a peer.
fn way_out(session: &Session) -> &'static str {
    if session.node {
        "if so, set another port for sessions between nodes with spec.underlay.listenPort of the NetworkMode"
    } else {
        "if so, set spec.sourceAddress of the BGPPeer to a second address of this node that is a neighbor in the configuration of the peer, or spec.peerPort to another port of the peer"
    }
}

fn no_route(session: &Session) -> String {
    let Session { peer, local, .. } = session;
    format!(
        "no route from {local} to {peer}: add a route on the node; an eBGP peer that is on no link of the node needs spec.ebgpMultihop"
    )
}

fn no_answer(session: &Session) -> String {
    let Session {
        peer, port, local, ..
    } = session;
    let password = if session.password_key.is_some() {
        "the password of the peer differs"
    } else {
        "the peer requires a password"
    };
    format!(
        "{peer} does not reply to {local} on port {port}: the peer is unreachable, or {password} (the kernel drops packets with a wrong MD5 signature)"
    )
}

/// Why a prefix is not taken, in words that can stand behind it.
#[must_use]
pub fn why_refused(prefix: IpNet, taken: &Taken, nodes: &[IpAddr]) -> &'static str {
    if taken.own.iter().any(|own| own.contains(&prefix)) {
        return "this node's own";
    }
    if prefix.prefix_len() == 0 {
        return "a default route";
    }
    let around = taken
        .pools
        .iter()
        .find(|(pool, _, _)| pool.contains(&prefix));
    match around {
        Some((pool, _, _)) if *pool == prefix => "a whole pool",
        Some((_, _, longest)) if prefix.prefix_len() > *longest => "smaller than a block",
        Some(_) => "refused by spec.filters.import",
        None if nodes.iter().any(|node| prefix.contains(node)) => "a node's address",
        None => "outside the pools",
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::GracefulRestart;
    use serde_json::json;

    use super::*;

    fn session(node: bool) -> Session {
        let session = json!({
            "name": "tor", "peerIP": "192.0.2.254", "peerPort": 179, "sourceAddress": "192.0.2.1", "localASNumber": 64512, "peerASNumber": 65001, "peerIsNode": node,
            "holdTime": "90s", "keepaliveTime": "30s", "connectRetryTime": "5s",
            "gracefulRestart": GracefulRestart::default(), "maxPrefixes": 100,
        });
        serde_json::from_value(session).unwrap()
    }

    fn said(node: bool, error: &str) -> (SessionFault, String) {
        let seen = Seen {
            state: Some(SessionState::Active),
            last_error: Some(error.to_owned()),
            ..Seen::default()
        };
        let status = status(&session(node), &seen, Duration::ZERO, "");
        (status.fault.unwrap(), status.message)
    }

    /// As with the speaker of MetalLB on the same node, both with a session to the same router.
    #[test]
    fn bgp_collision_message_names_other_bgp_speaker() {
        let second = "if so, set spec.sourceAddress of the BGPPeer to a second address of this node that is a neighbor in the configuration of the peer, or spec.peerPort to another port of the peer";
        for words in ["Connection collision resolution", "Connection rejected"] {
            assert_eq!(
                said(false, &format!("Received: {words}")),
                (
                    SessionFault::SessionError,
                    format!(
                        "192.0.2.254 refuses a session with 192.0.2.1 ({words}): perhaps another BGP speaker on this node (MetalLB, FRR, Calico's BIRD) has a session from the same address, and BGP allows one session per pair of addresses; {second}"
                    )
                )
            );
            assert!(is_refusal(&format!("Received: {words}")));
        }
        assert_eq!(
            said(false, "Socket: Connection closed").1,
            format!(
                "192.0.2.254 closes the connection (Connection closed): check whether 192.0.2.1 (AS 64512) is a neighbor in the configuration of the peer, and whether another BGP speaker on this node (MetalLB, FRR, Calico's BIRD) has a session with it; {second}"
            )
        );
        let between_nodes = said(true, "Received: Connection rejected").1;
        assert!(
            between_nodes.ends_with(
                "; if so, set another port for sessions between nodes with spec.underlay.listenPort of the NetworkMode"
            ),
            "{between_nodes}"
        );
        assert_eq!(
            said(false, "BGP Error: No listening socket").1,
            "another program on this node uses the BGP port, perhaps another BGP speaker on this node (MetalLB, FRR, Calico's BIRD): set spec.underlay.listenPort of the NetworkMode, or stop that program"
        );
    }

    #[test]
    fn other_bgp_errors_do_not_name_other_speaker() {
        for error in [
            "Received: Administrative shutdown",
            "Socket: Connection refused",
            "Received: Bad peer AS",
            "BGP Error: Hold timer expired",
        ] {
            let message = said(false, error).1;
            assert!(!message.contains("another BGP speaker"), "{message}");
        }
    }
}
