//! [`AbsentNodes`]: for how long this leader has observed that a Node is not Ready, or that an agent does not
//! acknowledge its NodeNetwork.
//!
//! The times are of the monotonic clock and in memory. A new leader starts from zero, so it can only wait longer for a
//! node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;

/// Name and UID of a Node or NodeNetwork, and the generation that the agent has acknowledged last. An object with the
/// same name and another UID is a different object. An agent with a later acknowledgement is alive.
pub type AbsenceKey = (String, Option<String>, Option<i64>);

/// The start of each absence.
#[derive(Debug, Default)]
pub struct AbsentNodes {
    since: BTreeMap<AbsenceKey, Instant>,
}

/// The Nodes that are not Ready.
pub fn not_ready<'a>(nodes: impl Iterator<Item = &'a Node>) -> impl Iterator<Item = AbsenceKey> {
    let absent = nodes.filter(|node| !is_ready(node));
    absent.map(|node| (node.name_any(), node.uid(), None))
}

/// The NodeNetworks whose generation no agent has acknowledged.
pub fn unacknowledged<'a>(
    networks: impl Iterator<Item = &'a NodeNetwork>,
) -> impl Iterator<Item = AbsenceKey> {
    networks.filter_map(|network| {
        let status = network.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        let lags = observed.is_none() || observed != network.metadata.generation;
        lags.then(|| (network.name_any(), network.uid(), observed))
    })
}

impl AbsentNodes {
    /// Clears the state when another operator is the leader.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Records the absent nodes at `now`, and returns the duration of each absence by name.
    pub fn observe(
        &mut self,
        absent: impl Iterator<Item = AbsenceKey>,
        now: Instant,
    ) -> BTreeMap<String, Duration> {
        let absent = absent.map(|key| {
            let since = self.since.get(&key).copied().unwrap_or(now);
            (key, since)
        });
        self.since = absent.collect();
        let absent = self.since.iter();
        absent
            .map(|((name, ..), since)| (name.clone(), now.saturating_duration_since(*since)))
            .collect()
    }

    /// Time until the next absence reaches one of `deadlines`; `None`: every absence has reached all deadlines.
    #[must_use]
    pub fn next(&self, deadlines: &[Duration], now: Instant) -> Option<Duration> {
        let absent = self
            .since
            .values()
            .map(|since| now.saturating_duration_since(*since));
        let left =
            absent.flat_map(|absent| deadlines.iter().map(move |end| end.saturating_sub(absent)));
        left.filter(|left| !left.is_zero()).min()
    }
}

/// A Node without the condition Ready counts as ready: its kubelet has not reported yet.
fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.all(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn node(uid: &str, ready: &str) -> Node {
        yaml(&format!(
            "{{metadata: {{name: one, uid: {uid}}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
        ))
    }

    #[test]
    fn node_absence_is_counted_from_first_not_ready() {
        let mut absences = AbsentNodes::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let deadlines = [second * 5, second * 60];
        let mut observe = |node: &Node, at| {
            let absent = absences.observe(not_ready([node].into_iter()), at);
            (absent.get("one").copied(), absences.next(&deadlines, at))
        };
        assert_eq!(observe(&node("a", "True"), start), (None, None));
        let unknown = node("a", "Unknown");
        assert_eq!(
            observe(&unknown, start + second),
            (Some(Duration::ZERO), Some(second * 5))
        );
        assert_eq!(
            observe(&unknown, start + second * 7),
            (Some(second * 6), Some(second * 54))
        );
        let other = node("b", "False");
        assert_eq!(observe(&other, start + second * 8).0, Some(Duration::ZERO));
        assert_eq!(
            observe(&node("b", "True"), start + second * 9),
            (None, None)
        );
    }

    fn network(generation: i64, observed: Option<i64>) -> NodeNetwork {
        let status = observed.map(|it| format!("observedGeneration: {it}"));
        yaml(&format!(
            "{{metadata: {{name: one, uid: u, generation: {generation}}}, spec: {{}}, status: {{{}}}}}",
            status.unwrap_or_default()
        ))
    }

    #[test]
    fn agent_is_absent_until_first_acknowledgement() {
        let mut absences = AbsentNodes::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut observe = |generation, observed, at| {
            let network = network(generation, observed);
            let absent = unacknowledged([&network].into_iter());
            absences.observe(absent, at).get("one").copied()
        };
        assert_eq!(observe(1, None, start), Some(Duration::ZERO));
        // A new spec is not a sign of life of the agent.
        assert_eq!(observe(2, None, start + second), Some(second));
        assert_eq!(observe(2, Some(2), start + second * 2), None);
        assert_eq!(
            observe(3, Some(2), start + second * 3),
            Some(Duration::ZERO)
        );
        assert_eq!(observe(4, Some(2), start + second * 5), Some(second * 2));
        // The agent is behind, but alive.
        assert_eq!(
            observe(5, Some(4), start + second * 6),
            Some(Duration::ZERO)
        );
        // A new leader starts from zero.
        absences.clear();
        let network = network(1, None);
        let observe = absences.observe(unacknowledged([&network].into_iter()), start + second * 9);
        assert_eq!(observe["one"], Duration::ZERO);
    }
}
