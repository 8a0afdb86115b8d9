//! The history of a session, of which BIRD shows some facts only for a moment.

use std::time::Duration;

use netweft_crds::{Session, SessionState};
use tokio::time::Instant;

use crate::bird::protocols::Seen;
use crate::bird::session_status::{is_bare_end, is_refusal};

/// How long the reason of a refusal stands for connections that end without a word: peers that have refused a session do not speak
/// for a while (BIRD's for up to `error wait time`, five minutes), and then refuse it with the same reason.
const STANDS: Duration = Duration::from_mins(10);

/// A session up to the last look at it.
#[derive(Clone, Debug)]
pub struct SessionHistory {
    state: SessionState,
    /// Since when it has been in that state.
    since: Instant,
    refusal: Option<Refusal>,
    looked: Instant,
}

/// A refusal that had a reason.
#[derive(Clone, Debug)]
struct Refusal {
    /// What was refused.
    session: Session,
    /// BIRD's words.
    reason: String,
    /// When they were seen last.
    seen: Instant,
}

impl SessionHistory {
    /// What `before` has become at another look.
    #[must_use]
    pub fn after(before: Option<Self>, session: &Session, seen: &Seen, looked: Instant) -> Self {
        let state = seen.state.unwrap_or(SessionState::Idle);
        let since = before
            .as_ref()
            .filter(|before| before.state == state)
            .map_or(looked, |before| before.since);
        let error = seen.last_error.as_ref();
        let refusal = match error.filter(|error| is_refusal(error)) {
            _ if state == SessionState::Established => None,
            Some(error) => Some(Refusal {
                session: session.clone(),
                reason: error.clone(),
                seen: looked,
            }),
            // The refusal of an earlier session does not apply to this one.
            None => before
                .and_then(|before| before.refusal)
                .filter(|refusal| refusal.session == *session)
                .filter(|refusal| looked.duration_since(refusal.seen) < STANDS),
        };
        Self {
            state,
            since,
            refusal,
            looked,
        }
    }

    /// How long it has been in its state.
    #[must_use]
    pub fn stuck(&self) -> Duration {
        self.looked.duration_since(self.since)
    }

    /// What BIRD sees, with the reason of the refusal that it has forgotten.
    #[must_use]
    pub fn recall(&self, seen: &Seen) -> Seen {
        let mut seen = seen.clone();
        if let Some(refusal) = &self.refusal
            && seen.last_error.as_deref().is_some_and(is_bare_end)
        {
            seen.last_error = Some(refusal.reason.clone());
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::GracefulRestart;
    use serde_json::json;

    use super::*;
    use SessionState::{Active, Established, Idle};

    const REFUSAL: &str = "BGP Error: Bad peer AS: 65099";
    const BARE: &str = "Socket: Connection reset by peer";

    fn session(peer_as: u32) -> Session {
        let session = json!({
            "name": "tor", "peerIP": "192.0.2.100", "peerPort": 179, "sourceAddress": "192.0.2.1", "localASNumber": 64512, "peerASNumber": peer_as,
            "holdTime": "90s", "keepaliveTime": "30s", "connectRetryTime": "5s",
            "gracefulRestart": GracefulRestart::default(), "maxPrefixes": 100,
        });
        serde_json::from_value(session).unwrap()
    }

    /// The result after some observations: seconds, expected AS number, state, last error of BIRD.
    fn said(looks: &[(u64, u32, SessionState, &str)]) -> Option<String> {
        let begun = Instant::now();
        let mut history = None;
        let mut said = None;
        for (seconds, peer_as, state, error) in looks {
            let seen = Seen {
                state: Some(*state),
                last_error: Some((*error).to_owned()),
                ..Seen::default()
            };
            let at = begun + Duration::from_secs(*seconds);
            let now = SessionHistory::after(history, &session(*peer_as), &seen, at);
            said = now.recall(&seen).last_error;
            history = Some(now);
        }
        said
    }

    #[test]
    fn bgp_refusal_outlasts_closed_connections() {
        let looks = [
            (0, 65010, Idle, REFUSAL),
            (2, 65010, Active, BARE),
            (500, 65010, Active, BARE),
        ];
        assert_eq!(said(&looks).as_deref(), Some(REFUSAL));
        let theirs = "Received: Bad peer AS";
        let looks = [
            (0, 65010, Idle, theirs),
            (2, 65010, Active, "Socket: Connection closed"),
        ];
        assert_eq!(said(&looks).as_deref(), Some(theirs));
    }

    #[test]
    fn bgp_refusal_is_dropped_when_old_or_session_changes() {
        let late = [(0, 65010, Idle, REFUSAL), (601, 65010, Active, BARE)];
        assert_eq!(said(&late).as_deref(), Some(BARE), "never said again");
        let corrected = [(0, 65010, Idle, REFUSAL), (2, 65099, Active, BARE)];
        assert_eq!(
            said(&corrected).as_deref(),
            Some(BARE),
            "of another session"
        );
        let up = [
            (0, 65010, Idle, REFUSAL),
            (2, 65010, Established, ""),
            (4, 65010, Active, BARE),
        ];
        assert_eq!(said(&up).as_deref(), Some(BARE), "taken since");
    }

    #[test]
    fn more_specific_bgp_error_replaces_refusal() {
        for error in [
            "Socket: Connection refused",
            "Received: Administrative shutdown",
        ] {
            let looks = [(0, 65010, Idle, REFUSAL), (2, 65010, Active, error)];
            assert_eq!(said(&looks).as_deref(), Some(error));
        }
        let lost = [
            (0, 65010, Idle, "BGP Error: Hold timer expired"),
            (2, 65010, Active, BARE),
        ];
        assert_eq!(said(&lost).as_deref(), Some(BARE), "a loss is no refusal");
    }

    #[test]
    fn bgp_state_duration_resets_on_state_change() {
        let begun = Instant::now();
        let observe = |before, state, seconds| {
            let seen = Seen {
                state: Some(state),
                ..Seen::default()
            };
            SessionHistory::after(
                before,
                &session(65010),
                &seen,
                begun + Duration::from_secs(seconds),
            )
        };
        let first = observe(None, Active, 0);
        assert_eq!(first.stuck(), Duration::ZERO);
        let second = observe(Some(first), Active, 3);
        assert_eq!(second.stuck(), Duration::from_secs(3));
        assert_eq!(observe(Some(second), Idle, 4).stuck(), Duration::ZERO);
    }
}
