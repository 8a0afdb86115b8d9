//! [`Graces`]: how long the NodeSubnets of deleted Nodes have been orphaned, as this leader has seen it.
//!
//! The times are of the monotonic clock and live in memory: a new leader starts again, so a clock that jumps or a
//! leader that was away can only keep a block for longer, never give it away too early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use netweft_crds::{NodeSubnet, SubnetState};

/// Since when this leader has known NodeSubnets to be orphaned.
#[derive(Debug)]
pub struct Graces {
    grace: Duration,
    /// By name and UID: a new NodeSubnet of an old name begins anew.
    since: BTreeMap<(String, Option<String>), Instant>,
}

impl Graces {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            since: BTreeMap::new(),
        }
    }

    /// Forgets everything: somebody else leads.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Takes note of what is orphaned at `now`, and names the blocks whose grace has run out.
    pub fn look<'a>(
        &mut self,
        subnets: impl Iterator<Item = &'a NodeSubnet>,
        now: Instant,
    ) -> BTreeSet<String> {
        let orphaned = subnets.filter(|subnet| subnet.spec.state == SubnetState::Orphaned);
        let orphaned = orphaned.map(|subnet| (subnet.name_any(), subnet.uid()));
        let since = orphaned.map(|key| {
            let since = self.since.get(&key).copied().unwrap_or(now);
            (key, since)
        });
        self.since = since.collect();
        let expired = self
            .since
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= self.grace);
        expired.map(|((name, _), _)| name.clone()).collect()
    }

    /// How long until the next grace runs out; `None`: none is running.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = self.since.values().map(|since| {
            self.grace
                .saturating_sub(now.saturating_duration_since(*since))
        });
        // One that has run out was in the plan already; its turn comes again with the retry of a failed write.
        left.filter(|left| !left.is_zero()).min()
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::{NodeAddresses, NodeSubnetSpec};

    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    fn subnet(cidr: &str, state: SubnetState) -> NodeSubnet {
        let spec = NodeSubnetSpec {
            cidr: cidr.parse().unwrap(),
            pool: "default-v4".to_owned(),
            node: "worker-1".to_owned(),
            node_addresses: NodeAddresses::default(),
            as_number: None,
            state,
        };
        spec.into_object()
    }

    #[test]
    fn a_block_expires_when_its_grace_has_run_out() {
        let mut graces = Graces::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        assert!(graces.look([&orphan].into_iter(), start).is_empty());
        assert_eq!(graces.next(start), Some(GRACE));
        assert!(
            graces
                .look([&orphan].into_iter(), start + GRACE / 2)
                .is_empty()
        );
        assert_eq!(
            graces.look([&orphan].into_iter(), start + GRACE),
            ["10-244-0-0-26".to_owned()].into()
        );
        assert_eq!(graces.next(start + GRACE), None);
    }

    #[test]
    fn a_node_that_came_back_starts_the_grace_again() {
        let mut graces = Graces::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        let active = subnet("10.244.0.0/26", SubnetState::Active);
        graces.look([&orphan].into_iter(), start);
        graces.look([&active].into_iter(), start + GRACE / 2);
        assert!(graces.look([&orphan].into_iter(), start + GRACE).is_empty());
    }

    #[test]
    fn a_new_leader_starts_the_grace_again() {
        let mut graces = Graces::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        graces.look([&orphan].into_iter(), start);
        graces.clear();
        assert!(graces.look([&orphan].into_iter(), start + GRACE).is_empty());
    }
}
