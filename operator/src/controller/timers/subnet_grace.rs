//! [`GraceTracker`]: for how long this leader has observed a state of NodeSubnets: orphaned, or surplus.
//!
//! The times are of the monotonic clock and in memory. A new leader starts from zero, so a clock change or a change of
//! the leader can only keep a block for longer, and never releases it too early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use netweft_crds::NodeSubnet;

/// Name, UID and resource version of a NodeSubnet.
type Version = (String, Option<String>, Option<String>);

/// The start of the state of each NodeSubnet.
#[derive(Debug)]
pub struct GraceTracker {
    grace: Duration,
    /// Time after which a NodeSubnet can be reclaimed before its grace period is over.
    reclaimable_after: Duration,
    /// The resource version is part of the key: a NodeSubnet that was written or created again starts from zero,
    /// because it may have left the state between two observations.
    since: BTreeMap<Version, Instant>,
}

impl GraceTracker {
    /// No NodeSubnet is in the state.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            reclaimable_after: grace,
            since: BTreeMap::new(),
        }
    }

    /// Makes NodeSubnets reclaimable after a part of the grace period.
    #[must_use]
    pub fn with_reclaimable_after(self, reclaimable_after: Duration) -> Self {
        let reclaimable_after = reclaimable_after.min(self.grace);
        Self {
            reclaimable_after,
            ..self
        }
    }

    /// Names of the reclaimable NodeSubnets, the longest in the state first.
    #[must_use]
    pub fn reclaimable(&self, now: Instant) -> Vec<String> {
        let since = self.since.iter();
        let reclaimable = since
            .filter(|(_, since)| now.saturating_duration_since(**since) >= self.reclaimable_after);
        let mut reclaimable: Vec<_> = reclaimable
            .map(|((name, ..), since)| (since, name))
            .collect();
        reclaimable.sort();
        reclaimable
            .into_iter()
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Clears the state when another operator is the leader.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Records which NodeSubnets are in the state at `now`, and returns the names of those whose grace period is over.
    /// `is_in_state` returns `None` if the state is unknown; the recorded start then stays.
    pub fn observe<'a>(
        &mut self,
        subnets: impl Iterator<Item = &'a NodeSubnet>,
        is_in_state: impl Fn(&NodeSubnet) -> Option<bool>,
        now: Instant,
    ) -> BTreeSet<String> {
        let since = subnets.filter_map(|subnet| {
            let key = (subnet.name_any(), subnet.uid(), subnet.resource_version());
            let recorded = self.since.get(&key).copied();
            let since = match is_in_state(subnet) {
                Some(true) => recorded.unwrap_or(now),
                Some(false) => return None,
                None => recorded?,
            };
            Some((key, since))
        });
        self.since = since.collect();
        let expired = self
            .since
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= self.grace);
        expired.map(|((name, ..), _)| name.clone()).collect()
    }

    /// Time until the next grace period is over or the next NodeSubnet becomes reclaimable; `None`: no period is
    /// running.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = self.since.values().flat_map(|since| {
            let elapsed = now.saturating_duration_since(*since);
            [self.reclaimable_after, self.grace].map(|end| end.saturating_sub(elapsed))
        });
        // Elapsed periods are already in the plan. The retry of a failed write covers them.
        left.filter(|left| !left.is_zero()).min()
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::{NodeAddresses, NodeSubnetSpec, SubnetState};

    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    fn subnet(cidr: &str, state: SubnetState) -> NodeSubnet {
        let spec = NodeSubnetSpec {
            cidr: cidr.parse().unwrap(),
            pool: "default-v4".to_owned(),
            node: "worker-1".to_owned(),
            node_addresses: NodeAddresses::default(),
            as_number: None,
            link_mtu: None,
            state,
        };
        spec.into_object()
    }

    fn observe(tracker: &mut GraceTracker, subnet: &NodeSubnet, now: Instant) -> BTreeSet<String> {
        let orphaned = |subnet: &NodeSubnet| Some(subnet.spec.state == SubnetState::Orphaned);
        tracker.observe([subnet].into_iter(), orphaned, now)
    }

    #[test]
    fn orphaned_block_expires_after_grace() {
        let mut tracker = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        assert!(observe(&mut tracker, &orphan, start).is_empty());
        assert_eq!(tracker.next(start), Some(GRACE));
        assert!(observe(&mut tracker, &orphan, start + GRACE / 2).is_empty());
        assert_eq!(
            observe(&mut tracker, &orphan, start + GRACE),
            ["10-244-0-0-26".to_owned()].into()
        );
        assert_eq!(tracker.next(start + GRACE), None);
    }

    #[test]
    fn reclaimable_blocks_are_ordered_by_orphaning_time() {
        let reclaimable_after = GRACE / 10;
        let mut tracker = GraceTracker::new(GRACE).with_reclaimable_after(reclaimable_after);
        let start = Instant::now();
        let [one, other] =
            ["10.244.0.64/26", "10.244.0.0/26"].map(|cidr| subnet(cidr, SubnetState::Orphaned));
        observe(&mut tracker, &one, start);
        let orphaned = |_: &NodeSubnet| Some(true);
        tracker.observe(
            [&one, &other].into_iter(),
            orphaned,
            start + reclaimable_after / 2,
        );
        assert_eq!(
            tracker.next(start + reclaimable_after / 2),
            Some(reclaimable_after / 2)
        );
        assert_eq!(
            tracker.reclaimable(start + reclaimable_after),
            ["10-244-0-64-26"]
        );
        let both = ["10-244-0-64-26", "10-244-0-0-26"];
        assert_eq!(tracker.reclaimable(start + reclaimable_after * 2), both);
    }

    #[test]
    fn returned_node_restarts_grace() {
        let mut tracker = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        let active = subnet("10.244.0.0/26", SubnetState::Active);
        observe(&mut tracker, &orphan, start);
        observe(&mut tracker, &active, start + GRACE / 2);
        assert!(observe(&mut tracker, &orphan, start + GRACE).is_empty());
    }

    /// Another leader has restored and orphaned the block while this one was stopped.
    #[test]
    fn changed_resource_version_restarts_grace() {
        let mut tracker = GraceTracker::new(GRACE);
        let start = Instant::now();
        let mut orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        orphan.metadata.resource_version = Some("5".to_owned());
        observe(&mut tracker, &orphan, start);
        orphan.metadata.resource_version = Some("7".to_owned());
        assert!(observe(&mut tracker, &orphan, start + GRACE).is_empty());
        assert_eq!(observe(&mut tracker, &orphan, start + GRACE * 2).len(), 1);
    }

    #[test]
    fn new_leader_restarts_grace() {
        let mut tracker = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        observe(&mut tracker, &orphan, start);
        tracker.clear();
        assert!(observe(&mut tracker, &orphan, start + GRACE).is_empty());
    }

    #[test]
    fn unknown_state_neither_starts_nor_ends_grace() {
        let mut tracker = GraceTracker::new(GRACE);
        let start = Instant::now();
        let block = subnet("10.244.0.0/26", SubnetState::Active);
        let mut observe = |is_in_state, now| {
            tracker
                .observe([&block].into_iter(), |_| is_in_state, now)
                .len()
        };
        assert_eq!(observe(None, start), 0);
        assert_eq!(observe(Some(true), start + GRACE), 0);
        assert_eq!(observe(None, start + GRACE * 2), 1);
        assert_eq!(observe(Some(false), start + GRACE * 2), 0);
        assert_eq!(observe(None, start + GRACE * 3), 0);
    }
}
