//! [`AbsentNodes`]: for how long this leader has seen that Nodes are not Ready, or that agents do not acknowledge.
//!
//! The times are of the monotonic clock and live in memory: a new leader starts again, so it can only wait longer for a node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;

/// Name and UID of a Node or NodeNetwork, and the generation that the agent has acknowledged last: an object that comes back under
/// an old name is another, and an agent that has acknowledged something since is alive.
pub type Absent = (String, Option<String>, Option<i64>);

/// Since when this leader has known it of which nodes.
#[derive(Debug, Default)]
pub struct AbsentNodes {
    since: BTreeMap<Absent, Instant>,
}

/// The Nodes that are not Ready.
pub fn not_ready<'a>(nodes: impl Iterator<Item = &'a Node>) -> impl Iterator<Item = Absent> {
    let absent = nodes.filter(|node| !is_ready(node));
    absent.map(|node| (node.name_any(), node.uid(), None))
}

/// The NodeNetworks whose generation no agent has acknowledged.
pub fn silent<'a>(networks: impl Iterator<Item = &'a NodeNetwork>) -> impl Iterator<Item = Absent> {
    networks.filter_map(|network| {
        let status = network.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        let lags = observed.is_none() || observed != network.metadata.generation;
        lags.then(|| (network.name_any(), network.uid(), observed))
    })
}

impl AbsentNodes {
    /// Clears the state when another operator leads.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Takes note of who is absent at `now`, and returns for how long each has been, by name.
    pub fn observe(
        &mut self,
        absent: impl Iterator<Item = Absent>,
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

    /// How long until the next of them has been absent for one of `deadlines`; `None`: all that could have, have.
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

/// A Node that says nothing about it is not one whose kubelet has gone silent.
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
        let silent = node("a", "Unknown");
        assert_eq!(
            observe(&silent, start + second),
            (Some(Duration::ZERO), Some(second * 5))
        );
        assert_eq!(
            observe(&silent, start + second * 7),
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
    fn agent_is_silent_until_first_acknowledgement() {
        let mut absences = AbsentNodes::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut observe = |generation, observed, at| {
            let network = network(generation, observed);
            let absent = silent([&network].into_iter());
            absences.observe(absent, at).get("one").copied()
        };
        assert_eq!(observe(1, None, start), Some(Duration::ZERO));
        // Specs that change meanwhile are no word of the agent.
        assert_eq!(observe(2, None, start + second), Some(second));
        assert_eq!(observe(2, Some(2), start + second * 2), None);
        assert_eq!(
            observe(3, Some(2), start + second * 3),
            Some(Duration::ZERO)
        );
        assert_eq!(observe(4, Some(2), start + second * 5), Some(second * 2));
        // It is behind, and alive.
        assert_eq!(
            observe(5, Some(4), start + second * 6),
            Some(Duration::ZERO)
        );
        // A new leader counts anew.
        absences.clear();
        let network = network(1, None);
        let observe = absences.observe(silent([&network].into_iter()), start + second * 9);
        assert_eq!(observe["one"], Duration::ZERO);
    }
}
