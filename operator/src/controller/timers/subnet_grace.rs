//! [`GraceTracker`]: how long something has been so with NodeSubnets, as this leader has seen it: that their Node is gone, or that
//! their node can do without them.
//!
//! The times are of the monotonic clock and live in memory: a new leader starts again, so a clock that jumps or a
//! leader that was away can only keep a block for longer, never give it away too early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use netweft_crds::NodeSubnet;

/// Name, UID and resource version of a NodeSubnet.
type Version = (String, Option<String>, Option<String>);

/// Since when this leader has known it of which NodeSubnets.
#[derive(Debug)]
pub struct GraceTracker {
    grace: Duration,
    /// From when on a NodeSubnet can be reclaimed before its grace has run out.
    least: Duration,
    /// A new NodeSubnet of an old name begins anew, and so does one that was written to: between two looks somebody else may
    /// have taken it up and let go of it again.
    since: BTreeMap<Version, Instant>,
}

impl GraceTracker {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            least: grace,
            since: BTreeMap::new(),
        }
    }

    /// The same, after `least` of the grace a NodeSubnet is reclaimable.
    #[must_use]
    pub fn reclaimable_after(self, least: Duration) -> Self {
        let least = least.min(self.grace);
        Self { least, ..self }
    }

    /// Names of those of which it has been so for long enough to reclaim them, the longest first.
    #[must_use]
    pub fn reclaimable(&self, now: Instant) -> Vec<String> {
        let since = self.since.iter();
        let long = since.filter(|(_, since)| now.saturating_duration_since(**since) >= self.least);
        let mut long: Vec<_> = long.map(|((name, ..), since)| (since, name)).collect();
        long.sort();
        long.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// Clears the state when another operator leads.
    pub fn clear(&mut self) {
        self.since.clear();
    }

    /// Takes note of which of the NodeSubnets it is so at `now`, and names those of which it has been so for the whole grace.
    /// `None`: that cannot be said now, and what was known stays.
    pub fn observe<'a>(
        &mut self,
        subnets: impl Iterator<Item = &'a NodeSubnet>,
        is_so: impl Fn(&NodeSubnet) -> Option<bool>,
        now: Instant,
    ) -> BTreeSet<String> {
        let since = subnets.filter_map(|subnet| {
            let key = (subnet.name_any(), subnet.uid(), subnet.resource_version());
            let known = self.since.get(&key).copied();
            let since = match is_so(subnet) {
                Some(true) => known.unwrap_or(now),
                Some(false) => return None,
                None => known?,
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

    /// How long until the next grace runs out, or one has run for so long that the NodeSubnet can be reclaimed; `None`: none is running.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = self.since.values().flat_map(|since| {
            let so_far = now.saturating_duration_since(*since);
            [self.least, self.grace].map(|end| end.saturating_sub(so_far))
        });
        // One that has run out was in the plan already; its turn comes again with the retry of a failed write.
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

    fn observe(graces: &mut GraceTracker, subnet: &NodeSubnet, now: Instant) -> BTreeSet<String> {
        let orphaned = |subnet: &NodeSubnet| Some(subnet.spec.state == SubnetState::Orphaned);
        graces.observe([subnet].into_iter(), orphaned, now)
    }

    #[test]
    fn orphaned_block_expires_after_grace() {
        let mut graces = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        assert!(observe(&mut graces, &orphan, start).is_empty());
        assert_eq!(graces.next(start), Some(GRACE));
        assert!(observe(&mut graces, &orphan, start + GRACE / 2).is_empty());
        assert_eq!(
            observe(&mut graces, &orphan, start + GRACE),
            ["10-244-0-0-26".to_owned()].into()
        );
        assert_eq!(graces.next(start + GRACE), None);
    }

    #[test]
    fn reclaimable_blocks_are_ordered_by_orphaning_time() {
        let least = GRACE / 10;
        let mut graces = GraceTracker::new(GRACE).reclaimable_after(least);
        let start = Instant::now();
        let [one, other] =
            ["10.244.0.64/26", "10.244.0.0/26"].map(|cidr| subnet(cidr, SubnetState::Orphaned));
        observe(&mut graces, &one, start);
        let orphaned = |_: &NodeSubnet| Some(true);
        graces.observe([&one, &other].into_iter(), orphaned, start + least / 2);
        assert_eq!(graces.next(start + least / 2), Some(least / 2));
        assert_eq!(graces.reclaimable(start + least), ["10-244-0-64-26"]);
        let both = ["10-244-0-64-26", "10-244-0-0-26"];
        assert_eq!(graces.reclaimable(start + least * 2), both);
    }

    #[test]
    fn returned_node_restarts_grace() {
        let mut graces = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        let active = subnet("10.244.0.0/26", SubnetState::Active);
        observe(&mut graces, &orphan, start);
        observe(&mut graces, &active, start + GRACE / 2);
        assert!(observe(&mut graces, &orphan, start + GRACE).is_empty());
    }

    /// Another leader did both while this one was stopped: it comes back to an orphan that it seems to know.
    #[test]
    fn changed_resource_version_restarts_grace() {
        let mut graces = GraceTracker::new(GRACE);
        let start = Instant::now();
        let mut orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        orphan.metadata.resource_version = Some("5".to_owned());
        observe(&mut graces, &orphan, start);
        orphan.metadata.resource_version = Some("7".to_owned());
        assert!(observe(&mut graces, &orphan, start + GRACE).is_empty());
        assert_eq!(observe(&mut graces, &orphan, start + GRACE * 2).len(), 1);
    }

    #[test]
    fn new_leader_restarts_grace() {
        let mut graces = GraceTracker::new(GRACE);
        let start = Instant::now();
        let orphan = subnet("10.244.0.0/26", SubnetState::Orphaned);
        observe(&mut graces, &orphan, start);
        graces.clear();
        assert!(observe(&mut graces, &orphan, start + GRACE).is_empty());
    }

    #[test]
    fn unknown_state_neither_starts_nor_ends_grace() {
        let mut graces = GraceTracker::new(GRACE);
        let start = Instant::now();
        let block = subnet("10.244.0.0/26", SubnetState::Active);
        let mut observe = |is_so, now| graces.observe([&block].into_iter(), |_| is_so, now).len();
        assert_eq!(observe(None, start), 0);
        assert_eq!(observe(Some(true), start + GRACE), 0);
        assert_eq!(observe(None, start + GRACE * 2), 1);
        assert_eq!(observe(Some(false), start + GRACE * 2), 0);
        assert_eq!(observe(None, start + GRACE * 3), 0);
    }
}
