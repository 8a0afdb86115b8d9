//! The history of a session: BIRD shows some of its facts for a moment only.

use std::time::Duration;

use netweft_crds::{Session, SessionState};
use tokio::time::Instant;

use crate::bird::session_error::{is_close_without_reason, is_refusal};
use crate::bird::show_protocols::ObservedSession;

/// How long the reason of a refusal explains later connections that the peer closes without a reason. Peers close connections
/// for some time after a refusal (BIRD for up to `error wait time`, five minutes), and then refuse the session again.
const REFUSAL_LIFETIME: Duration = Duration::from_mins(10);

/// The history of a session until the last observation.
#[derive(Clone, Debug)]
pub struct SessionHistory {
    state: SessionState,
    /// Since when the session is in this state.
    since: Instant,
    refusal: Option<Refusal>,
    observed_at: Instant,
}

/// A refusal with a reason.
#[derive(Clone, Debug)]
struct Refusal {
    /// The session that was refused.
    session: Session,
    /// The error of BIRD.
    reason: String,
    /// When BIRD showed it last.
    last_seen: Instant,
}

impl SessionHistory {
    /// The history after an observation.
    #[must_use]
    pub fn next(
        previous: Option<Self>,
        session: &Session,
        observed: &ObservedSession,
        now: Instant,
    ) -> Self {
        let state = observed.state.unwrap_or(SessionState::Idle);
        let since = previous
            .as_ref()
            .filter(|previous| previous.state == state)
            .map_or(now, |previous| previous.since);
        let error = observed.last_error.as_ref();
        let refusal = match error.filter(|error| is_refusal(error)) {
            _ if state == SessionState::Established => None,
            Some(error) => Some(Refusal {
                session: session.clone(),
                reason: error.clone(),
                last_seen: now,
            }),
            // The refusal of an earlier session does not apply to this one.
            None => previous
                .and_then(|previous| previous.refusal)
                .filter(|refusal| refusal.session == *session)
                .filter(|refusal| now.duration_since(refusal.last_seen) < REFUSAL_LIFETIME),
        };
        Self {
            state,
            since,
            refusal,
            observed_at: now,
        }
    }

    /// How long the session has been in its state.
    #[must_use]
    pub fn time_in_state(&self) -> Duration {
        self.observed_at.duration_since(self.since)
    }

    /// The observed session. If the peer closed the connection without a reason, its last error is the last refusal.
    #[must_use]
    pub fn with_refusal(&self, observed: &ObservedSession) -> ObservedSession {
        let mut observed = observed.clone();
        let error = observed.last_error.as_deref();
        if let Some(refusal) = &self.refusal
            && error.is_some_and(is_close_without_reason)
        {
            observed.last_error = Some(refusal.reason.clone());
        }
        observed
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::GracefulRestart;
    use serde_json::json;

    use super::*;
    use SessionState::{Active, Established, Idle};

    const REFUSAL: &str = "BGP Error: Bad peer AS: 65099";
    const CLOSED: &str = "Socket: Connection reset by peer";

    fn session(peer_as: u32) -> Session {
        let session = json!({
            "name": "tor", "peerIP": "192.0.2.100", "peerPort": 179, "sourceAddress": "192.0.2.1", "localASNumber": 64512, "peerASNumber": peer_as,
            "holdTime": "90s", "keepaliveTime": "30s", "connectRetryTime": "5s",
            "gracefulRestart": GracefulRestart::default(), "maxPrefixes": 100,
        });
        serde_json::from_value(session).unwrap()
    }

    /// The last error after these observations: seconds, expected AS number, state, last error of BIRD.
    fn last_error(observations: &[(u64, u32, SessionState, &str)]) -> Option<String> {
        let start = Instant::now();
        let mut history = None;
        let mut last_error = None;
        for (seconds, peer_as, state, error) in observations {
            let observed = ObservedSession {
                state: Some(*state),
                last_error: Some((*error).to_owned()),
                ..ObservedSession::default()
            };
            let now = start + Duration::from_secs(*seconds);
            let next = SessionHistory::next(history, &session(*peer_as), &observed, now);
            last_error = next.with_refusal(&observed).last_error;
            history = Some(next);
        }
        last_error
    }

    #[test]
    fn bgp_refusal_outlasts_closed_connections() {
        let observations = [
            (0, 65010, Idle, REFUSAL),
            (2, 65010, Active, CLOSED),
            (500, 65010, Active, CLOSED),
        ];
        assert_eq!(last_error(&observations).as_deref(), Some(REFUSAL));
        let received = "Received: Bad peer AS";
        let observations = [
            (0, 65010, Idle, received),
            (2, 65010, Active, "Socket: Connection closed"),
        ];
        assert_eq!(last_error(&observations).as_deref(), Some(received));
    }

    #[test]
    fn bgp_refusal_is_dropped_when_old_or_session_changes() {
        let late = [(0, 65010, Idle, REFUSAL), (601, 65010, Active, CLOSED)];
        assert_eq!(
            last_error(&late).as_deref(),
            Some(CLOSED),
            "the refusal is too old"
        );
        let corrected = [(0, 65010, Idle, REFUSAL), (2, 65099, Active, CLOSED)];
        assert_eq!(
            last_error(&corrected).as_deref(),
            Some(CLOSED),
            "the refusal is of another session"
        );
        let up = [
            (0, 65010, Idle, REFUSAL),
            (2, 65010, Established, ""),
            (4, 65010, Active, CLOSED),
        ];
        assert_eq!(
            last_error(&up).as_deref(),
            Some(CLOSED),
            "the session was up since"
        );
    }

    #[test]
    fn more_specific_bgp_error_replaces_refusal() {
        for error in [
            "Socket: Connection refused",
            "Received: Administrative shutdown",
        ] {
            let observations = [(0, 65010, Idle, REFUSAL), (2, 65010, Active, error)];
            assert_eq!(last_error(&observations).as_deref(), Some(error));
        }
        let lost = [
            (0, 65010, Idle, "BGP Error: Hold timer expired"),
            (2, 65010, Active, CLOSED),
        ];
        assert_eq!(
            last_error(&lost).as_deref(),
            Some(CLOSED),
            "a loss is no refusal"
        );
    }

    #[test]
    fn bgp_state_duration_resets_on_state_change() {
        let start = Instant::now();
        let observe = |previous, state, seconds| {
            let observed = ObservedSession {
                state: Some(state),
                ..ObservedSession::default()
            };
            SessionHistory::next(
                previous,
                &session(65010),
                &observed,
                start + Duration::from_secs(seconds),
            )
        };
        let first = observe(None, Active, 0);
        assert_eq!(first.time_in_state(), Duration::ZERO);
        let second = observe(Some(first), Active, 3);
        assert_eq!(second.time_in_state(), Duration::from_secs(3));
        assert_eq!(
            observe(Some(second), Idle, 4).time_in_state(),
            Duration::ZERO
        );
    }
}
