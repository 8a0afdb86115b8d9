//! [`DriftEvents`]: Events about external changes that agents report as repaired on their nodes.
//!
//! The state is in memory. Repairs before the leadership cause no Event. Events about one node are rate-limited.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;

use crate::plan::model::cluster_state::ConditionEvent;

/// Minimum interval between two Events about one node.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The last Event that this leader has emitted for each NodeNetwork.
#[derive(Debug, Default)]
pub struct DriftEvents {
    /// By name and UID of the NodeNetwork.
    emitted: BTreeMap<(String, Option<String>), LastEmitted>,
}

#[derive(Clone, Debug, Default)]
struct LastEmitted {
    /// Time of the repair that the last Event was about, by the agent's clock.
    repaired_at: Option<Time>,
    /// When the Event was emitted, by the operator's clock.
    at: Option<Instant>,
    /// Whether an Event waits for the rate limit.
    is_waiting: bool,
}

/// An Event to emit about a NodeNetwork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftEvent {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: Option<String>,
    /// The Event.
    pub event: ConditionEvent,
}

impl DriftEvents {
    /// Clears the state when another operator is the leader.
    pub fn clear(&mut self) {
        self.emitted.clear();
    }

    /// The Events to emit at `now`.
    pub fn observe<'a>(
        &mut self,
        networks: impl Iterator<Item = &'a NodeNetwork>,
        now: Instant,
    ) -> Vec<DriftEvent> {
        let mut previous = std::mem::take(&mut self.emitted);
        let mut drift_events = Vec::new();
        for network in networks {
            let key = (network.name_any(), network.uid());
            let emitted_before = previous.remove(&key);
            let emitted = match emitted_before {
                Some(emitted) => record_drift(emitted, network, now, &mut drift_events),
                None => LastEmitted {
                    repaired_at: last_repair_time(network),
                    ..LastEmitted::default()
                },
            };
            self.emitted.insert(key, emitted);
        }
        drift_events
    }

    /// How long until the next waiting Event may be emitted.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let waiting = self.emitted.values().filter(|emitted| emitted.is_waiting);
        waiting
            .filter_map(|emitted| Some((emitted.at? + MIN_INTERVAL).saturating_duration_since(now)))
            .min()
    }
}

fn last_repair_time(network: &NodeNetwork) -> Option<Time> {
    let status = network.status.as_ref()?;
    status.drift.as_ref()?.last_repair_time.clone()
}

fn record_drift(
    emitted: LastEmitted,
    network: &NodeNetwork,
    now: Instant,
    drift_events: &mut Vec<DriftEvent>,
) -> LastEmitted {
    let repaired_at = last_repair_time(network);
    let drift = network.status.as_ref().and_then(|it| it.drift.as_ref());
    let Some(drift) = drift.filter(|_| repaired_at != emitted.repaired_at) else {
        return LastEmitted {
            is_waiting: false,
            ..emitted
        };
    };
    let allowed = emitted
        .at
        .is_none_or(|at| now.saturating_duration_since(at) >= MIN_INTERVAL);
    if !allowed {
        return LastEmitted {
            is_waiting: true,
            ..emitted
        };
    }
    drift_events.push(DriftEvent {
        name: network.name_any(),
        uid: network.uid(),
        event: ConditionEvent {
            condition: "Drift".to_owned(),
            reason: "Repaired".to_owned(),
            message: format!("repaired external change: {}", drift.message),
            warning: true,
        },
    });
    LastEmitted {
        repaired_at,
        at: Some(now),
        is_waiting: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn network(uid: &str, last: Option<u32>) -> NodeNetwork {
        let drift = last.map(|second| {
            format!("drift: {{repairs: 1, lastRepairTime: '2026-01-01T00:00:{second:02}Z', message: route m{second}}}")
        });
        yaml(&format!(
            "{{metadata: {{name: one, uid: {uid}}}, spec: {{}}, status: {{{}}}}}",
            drift.unwrap_or_default()
        ))
    }

    fn messages(drift_events: &[DriftEvent]) -> Vec<&str> {
        drift_events
            .iter()
            .map(|drift_event| drift_event.event.message.as_str())
            .collect()
    }

    #[test]
    fn drift_event_is_sent_once_and_rate_limited() {
        let (mut drifts, start) = (DriftEvents::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut observe = |network: &NodeNetwork, at| {
            let drift_events = drifts.observe([network].into_iter(), at);
            (drift_events, drifts.next(at))
        };
        assert!(observe(&network("a", None), start).0.is_empty());
        let (drift_events, next) = observe(&network("a", Some(1)), start);
        assert_eq!(
            messages(&drift_events),
            ["repaired external change: route m1"]
        );
        assert_eq!((drift_events[0].name.as_str(), next), ("one", None));
        assert!(observe(&network("a", Some(1)), start + second).0.is_empty());
        let (drift_events, next) = observe(&network("a", Some(2)), start + second);
        assert_eq!((drift_events.len(), next), (0, Some(second * 59)));
        let (drift_events, next) = observe(&network("a", Some(3)), start + MIN_INTERVAL);
        assert_eq!(messages(&drift_events).len(), 1);
        assert_eq!(next, None);
    }

    #[test]
    fn drift_before_leadership_or_of_new_object_sends_no_event() {
        let (mut drifts, start) = (DriftEvents::default(), Instant::now());
        let mut observe =
            |network: &NodeNetwork| drifts.observe([network].into_iter(), start).len();
        assert_eq!(observe(&network("a", Some(1))), 0);
        assert_eq!(observe(&network("a", Some(2))), 1);
        assert_eq!(observe(&network("b", Some(3))), 0);
        drifts.clear();
        assert_eq!(
            drifts
                .observe([&network("b", Some(4))].into_iter(), start)
                .len(),
            0
        );
    }
}
