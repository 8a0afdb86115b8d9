//! The status of a session: a pure function of the desired session and the session of BIRD.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use netweft_crds::{Session, SessionFault, SessionState, SessionStatus};

use crate::bird::session_error::{Fault, explain, no_reply, no_route};
use crate::bird::show_protocols::ObservedSession;

/// A TCP handshake takes milliseconds. A connection attempt that takes longer than this has no reply.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// BIRD computes past times from two readings of its clock, so the same moment can differ by this many seconds.
const CLOCK_JITTER: i64 = 2;

/// The status of a session that BIRD has. `time_in_state` is how long it has been in the same state; `rejected` names rejected
/// prefixes.
#[must_use]
pub fn status(
    session: &Session,
    observed: &ObservedSession,
    time_in_state: Duration,
    rejected: &str,
) -> SessionStatus {
    let state = observed.state.unwrap_or(SessionState::Idle);
    let fault = if state == SessionState::Established {
        prefix_fault(session, observed, rejected)
    } else {
        connection_fault(
            session,
            state,
            observed.last_error.as_deref(),
            time_in_state,
        )
    };
    let since = observed
        .since
        .and_then(|at| Timestamp::from_second(at).ok());
    SessionStatus {
        last_transition_time: since.map(Time),
        received: observed.imported,
        advertised: observed.exported,
        rejected: observed.filtered,
        ..without_prefixes(session, state, fault)
    }
}

/// The status of a session that BIRD does not have.
#[must_use]
pub fn not_configured(session: &Session, fault: Option<Fault>) -> SessionStatus {
    without_prefixes(session, SessionState::Idle, fault)
}

fn without_prefixes(session: &Session, state: SessionState, fault: Option<Fault>) -> SessionStatus {
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

/// Keeps the previous status of a session that fails repeatedly for the same reason: its states between two attempts are no
/// change. Keeps the previous time of a transition within the jitter of BIRD's clock.
#[must_use]
pub fn suppress_flapping(
    previous: Option<&SessionStatus>,
    mut current: SessionStatus,
) -> SessionStatus {
    let Some(previous) = previous else {
        return current;
    };
    let is_up = |status: &SessionStatus| status.state == SessionState::Established;
    let seconds = |status: &SessionStatus| {
        status
            .last_transition_time
            .as_ref()
            .map(|since| since.0.as_second())
    };
    let same_fault = current.fault.is_some()
        && previous.fault == current.fault
        && previous.message == current.message;
    if !is_up(previous) && !is_up(&current) && same_fault && previous.peer == current.peer {
        return previous.clone();
    }
    let times = seconds(previous).zip(seconds(&current));
    let same_time = times.is_some_and(|(a, b)| (a - b).abs() <= CLOCK_JITTER);
    if is_up(previous) == is_up(&current) && same_time {
        current
            .last_transition_time
            .clone_from(&previous.last_transition_time);
    }
    current
}

/// The fault of an established session.
fn prefix_fault(session: &Session, observed: &ObservedSession, rejected: &str) -> Option<Fault> {
    let Session {
        peer, max_prefixes, ..
    } = session;
    if observed.limit_reached {
        let message = format!(
            "{peer} advertises more than {max_prefixes} prefixes; further prefixes are ignored: advertise fewer, or raise spec.maxPrefixes of the BGPPeer"
        );
        return Some((SessionFault::TooManyPrefixes, message));
    }
    (observed.filtered > 0).then(|| {
        let message = format!(
            "{} of {peer} {} rejected{rejected}; advertise only blocks of other nodes there, or accept more with spec.filters.import of the BGPPeer",
            count(observed.filtered),
            if observed.filtered == 1 { "is" } else { "are" },
        );
        (SessionFault::PrefixesRejected, message)
    })
}

fn count(prefixes: i64) -> String {
    let noun = if prefixes == 1 { "prefix" } else { "prefixes" };
    format!("{prefixes} {noun}")
}

/// The fault of a session that is not established.
fn connection_fault(
    session: &Session,
    state: SessionState,
    last_error: Option<&str>,
    time_in_state: Duration,
) -> Option<Fault> {
    use SessionFault::{ConnectTimeout, NoRouteToPeer};
    let is_stuck = time_in_state >= CONNECT_TIMEOUT;
    match state {
        // Whatever the last error was, the present attempt has no reply.
        SessionState::Connect | SessionState::OpenSent | SessionState::OpenConfirm if is_stuck => {
            Some((ConnectTimeout, no_reply(session)))
        }
        // A session that waits after an error has a last error.
        SessionState::Idle if is_stuck && last_error.is_none() => {
            Some((NoRouteToPeer, no_route(session)))
        }
        _ => last_error.map(|error| explain(session, error)),
    }
}
