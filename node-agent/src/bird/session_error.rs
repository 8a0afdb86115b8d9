//! The errors of BGP sessions that BIRD shows (`bgp_last_errmsg`), with the remedy for each.

use netweft_crds::{Session, SessionFault};

/// A fault of a session, and a message with the remedy.
pub type Fault = (SessionFault, String);

/// The errors with a remedy.
#[derive(Clone, Copy)]
enum KnownError {
    WrongAs,
    NoRoute,
    NoSourceAddress,
    NoReply,
    ConnectionRefused,
    TooManyPrefixes,
    SessionLost,
    PortInUse,
    SecondSession,
}

/// The class of errors of the TCP connection. The text of such an error is from the C library.
const CONNECTION: &str = "Socket";
/// The class of errors that the peer reports.
const RECEIVED: &str = "Received";

/// Fragments of error texts, of BIRD and of the C library.
const KNOWN_ERRORS: &[(&str, KnownError)] = &[
    ("Bad peer AS", KnownError::WrongAs),
    ("Neighbor lost", KnownError::NoRoute),
    ("etwork is unreachable", KnownError::NoRoute),
    ("etwork unreachable", KnownError::NoRoute),
    (
        "Cannot assign requested address",
        KnownError::NoSourceAddress,
    ),
    ("Address not available", KnownError::NoSourceAddress),
    ("No route to host", KnownError::NoReply),
    ("ost is unreachable", KnownError::NoReply),
    ("Host is down", KnownError::NoReply),
    ("timed out", KnownError::NoReply),
    ("Connection refused", KnownError::ConnectionRefused),
    ("Route limit exceeded", KnownError::TooManyPrefixes),
    ("imer expired", KnownError::SessionLost),
    ("BFD session down", KnownError::SessionLost),
    ("Link down", KnownError::SessionLost),
    ("Graceful restart", KnownError::SessionLost),
    ("No listening socket", KnownError::PortInUse),
    // Subcodes 5 and 7 of Cease (RFC 4486).
    ("Connection rejected", KnownError::SecondSession),
    ("ollision", KnownError::SecondSession),
];

/// Whether one side refuses the session and states the reason. The next attempt then fails for the same reason.
#[must_use]
pub fn is_refusal(error: &str) -> bool {
    let (class, text) = class_and_text(error);
    class != CONNECTION
        && matches!(
            known_error(text),
            None | Some(KnownError::WrongAs | KnownError::PortInUse | KnownError::SecondSession)
        )
}

/// Whether the peer closed the connection without a reason.
#[must_use]
pub fn is_close_without_reason(error: &str) -> bool {
    let (class, text) = class_and_text(error);
    class == CONNECTION && known_error(text).is_none()
}

/// The class of an error, which BIRD prints before `: `, and its text.
fn class_and_text(error: &str) -> (&str, &str) {
    error.split_once(": ").unwrap_or(("", error))
}

fn known_error(text: &str) -> Option<KnownError> {
    let mut known = KNOWN_ERRORS.iter();
    let found = known.find(|(fragment, _)| text.contains(fragment));
    found.map(|(_, error)| *error)
}

/// The fault of an error, with the remedy.
#[must_use]
pub fn explain(session: &Session, error: &str) -> Fault {
    let (class, text) = class_and_text(error);
    if let Some(known) = known_error(text) {
        return explain_known(session, known, text, class == RECEIVED);
    }
    let Session {
        peer,
        local,
        local_as,
        ..
    } = session;
    let message = match class {
        CONNECTION => format!(
            "{peer} closes the connection ({text}): check whether {local} (AS {local_as}) is a neighbor in the configuration of the peer, and whether {OTHER_SPEAKER} has a session with it; {}",
            other_speaker_remedy(session)
        ),
        RECEIVED => format!("{peer} reports: {text}"),
        _ => format!("{peer} is refused: {text}"),
    };
    (SessionFault::SessionError, message)
}

/// `by_peer`: the peer reports the error.
fn explain_known(session: &Session, error: KnownError, text: &str, by_peer: bool) -> Fault {
    let Session {
        peer,
        port,
        local,
        local_as,
        peer_as,
        ..
    } = session;
    match error {
        KnownError::WrongAs if by_peer => (
            SessionFault::ASNumberMismatch,
            format!(
                "{peer} expects another AS number of this node than {local_as}: correct it there, or set spec.localASNumber of the BGPPeer"
            ),
        ),
        KnownError::WrongAs => (
            SessionFault::ASNumberMismatch,
            format!(
                "{peer} is not AS {peer_as}: correct spec.asNumber of the BGPPeer, or the peer's own"
            ),
        ),
        KnownError::NoRoute => (SessionFault::NoRouteToPeer, no_route(session)),
        KnownError::NoSourceAddress => (
            SessionFault::NoRouteToPeer,
            format!(
                "this node does not have the source address {local}: correct spec.sourceAddress of the BGPPeer, or give it to the node"
            ),
        ),
        KnownError::NoReply => (SessionFault::ConnectTimeout, no_reply(session)),
        KnownError::ConnectionRefused => (
            SessionFault::ConnectionRefused,
            format!(
                "{peer} refuses connections to port {port}: start its BGP speaker, or correct spec.peerPort of the BGPPeer"
            ),
        ),
        KnownError::TooManyPrefixes => (
            SessionFault::TooManyPrefixes,
            format!("{peer} advertises too many prefixes"),
        ),
        KnownError::SessionLost => (
            SessionFault::SessionLost,
            format!("the session with {peer} was lost ({text})"),
        ),
        KnownError::PortInUse => (
            SessionFault::SessionError,
            format!(
                "another program on this node uses the BGP port, perhaps {OTHER_SPEAKER}: set spec.underlay.listenPort of the NetworkMode, or stop that program"
            ),
        ),
        KnownError::SecondSession => (
            SessionFault::SessionError,
            format!(
                "{peer} {} a session with {local} ({text}): perhaps {OTHER_SPEAKER} has a session from the same address, and BGP allows one session per pair of addresses; {}",
                if by_peer { "refuses" } else { "is refused" },
                other_speaker_remedy(session)
            ),
        ),
    }
}

/// Other programs on a node that speak BGP.
const OTHER_SPEAKER: &str = "another BGP speaker on this node (MetalLB, FRR, Calico's BIRD)";

/// How this node and another speaker on it can both have a session with a peer.
fn other_speaker_remedy(session: &Session) -> &'static str {
    if session.node {
        "if so, set another port for sessions between nodes with spec.underlay.listenPort of the NetworkMode"
    } else {
        "if so, set spec.sourceAddress of the BGPPeer to a second address of this node that is a neighbor in the configuration of the peer, or spec.peerPort to another port of the peer"
    }
}

/// The message of a session without a route to the peer.
#[must_use]
pub fn no_route(session: &Session) -> String {
    let Session { peer, local, .. } = session;
    format!(
        "no route from {local} to {peer}: add a route on the node; an eBGP peer that is on no link of the node needs spec.ebgpMultihop"
    )
}

/// The message of a session whose peer does not reply.
#[must_use]
pub fn no_reply(session: &Session) -> String {
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

    fn fault(node: bool, error: &str) -> Fault {
        explain(&session(node), error)
    }

    /// MetalLB on the same node also has a session with the same router.
    #[test]
    fn bgp_collision_message_names_other_bgp_speaker() {
        let remedy = "if so, set spec.sourceAddress of the BGPPeer to a second address of this node that is a neighbor in the configuration of the peer, or spec.peerPort to another port of the peer";
        for text in ["Connection collision resolution", "Connection rejected"] {
            assert_eq!(
                fault(false, &format!("Received: {text}")),
                (
                    SessionFault::SessionError,
                    format!(
                        "192.0.2.254 refuses a session with 192.0.2.1 ({text}): perhaps another BGP speaker on this node (MetalLB, FRR, Calico's BIRD) has a session from the same address, and BGP allows one session per pair of addresses; {remedy}"
                    )
                )
            );
            assert!(is_refusal(&format!("Received: {text}")));
        }
        assert_eq!(
            fault(false, "Socket: Connection closed").1,
            format!(
                "192.0.2.254 closes the connection (Connection closed): check whether 192.0.2.1 (AS 64512) is a neighbor in the configuration of the peer, and whether another BGP speaker on this node (MetalLB, FRR, Calico's BIRD) has a session with it; {remedy}"
            )
        );
        let between_nodes = fault(true, "Received: Connection rejected").1;
        assert!(
            between_nodes.ends_with(
                "; if so, set another port for sessions between nodes with spec.underlay.listenPort of the NetworkMode"
            ),
            "{between_nodes}"
        );
        assert_eq!(
            fault(false, "BGP Error: No listening socket").1,
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
            let message = fault(false, error).1;
            assert!(!message.contains("another BGP speaker"), "{message}");
        }
    }
}
