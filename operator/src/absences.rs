//! [`Absences`]: which Nodes are not Ready, and for how long this leader has seen that.
//!
//! The times are of the monotonic clock and live in memory: a new leader starts again, so it can only wait longer for a node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

/// Since when this leader has known it of which Nodes.
#[derive(Debug, Default)]
pub struct Absences {
    /// By name and UID: a Node that comes back under an old name is another.
    since: BTreeMap<(String, Option<String>), Instant>,
}

impl Absences {
    /// Forgets everything: somebody else leads.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Takes note of the Nodes that are not Ready at `now`, and tells for how long they have not been.
    pub fn look<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a Node>,
        now: Instant,
    ) -> BTreeMap<String, Duration> {
        let absent = nodes.filter(|node| !is_ready(node)).map(|node| {
            let key = (node.name_any(), node.uid());
            let since = self.since.get(&key).copied().unwrap_or(now);
            (key, since)
        });
        self.since = absent.collect();
        let absent = self.since.iter();
        absent
            .map(|((name, _), since)| (name.clone(), now.saturating_duration_since(*since)))
            .collect()
    }

    /// How long until the next of them has not been Ready for one of `deadlines`; `None`: all that could have, have.
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
    fn time_counts_from_when_a_node_was_seen_not_to_be_ready() {
        let mut absences = Absences::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let deadlines = [second * 5, second * 60];
        let mut look = |node: &Node, at| {
            let absent = absences.look([node].into_iter(), at);
            (absent.get("one").copied(), absences.next(&deadlines, at))
        };
        assert_eq!(look(&node("a", "True"), start), (None, None));
        let silent = node("a", "Unknown");
        assert_eq!(
            look(&silent, start + second),
            (Some(Duration::ZERO), Some(second * 5))
        );
        assert_eq!(
            look(&silent, start + second * 7),
            (Some(second * 6), Some(second * 54))
        );
        let other = node("b", "False");
        assert_eq!(look(&other, start + second * 8).0, Some(Duration::ZERO));
        assert_eq!(look(&node("b", "True"), start + second * 9), (None, None));
    }
}
