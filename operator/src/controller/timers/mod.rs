//! State of the leader between two plans: since when conditions hold, and what was reported last. All of it is in
//! memory. A new leader starts without it.

pub mod absent_nodes;
pub mod drift_events;
pub mod released_blocks;
pub mod subnet_grace;
pub mod usage_writes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_crds::{NodeSubnet, SubnetState};

use crate::controller::snapshot::Snapshot;
use crate::controller::timers::absent_nodes::AbsentNodes;
use crate::controller::timers::drift_events::DriftEvents;
use crate::controller::timers::released_blocks::ReleasedBlocks;
use crate::controller::timers::subnet_grace::GraceTracker;
use crate::controller::timers::usage_writes::UsageWriteTimes;
use crate::plan::ipam::utilization::Utilization;

/// Minimum time that an orphaned block is kept, even if no other block is free. A Node that was deleted by mistake can
/// register again within this time.
const RECLAIM_AFTER: Duration = Duration::from_secs(30);

/// All timers of the leader.
#[derive(Debug)]
pub struct Timers {
    /// Orphaned NodeSubnets.
    orphans: GraceTracker,
    /// Empty NodeSubnets that their nodes do not need.
    surplus: GraceTracker,
    /// Nodes that are not Ready.
    not_ready: AbsentNodes,
    /// Nodes whose agent has not acknowledged its NodeNetwork.
    unacknowledged: AbsentNodes,
    /// Released blocks, in the order of their release.
    released: ReleasedBlocks,
    /// Times of the last status writes of IPPools.
    pub usage_writes: UsageWriteTimes,
    /// Events about repaired drift.
    pub drift_events: DriftEvents,
}

/// The results of the timers for a snapshot; the fields are those of the cluster state.
#[derive(Debug, Default)]
pub struct Elapsed {
    /// Names of orphaned NodeSubnets whose grace period is over.
    pub expired: BTreeSet<String>,
    /// Names of orphaned NodeSubnets that can be reclaimed, the longest orphaned first.
    pub reclaimable: Vec<String>,
    /// Names of NodeSubnets that have been surplus for the whole delay.
    pub surplus: BTreeSet<String>,
    /// Nodes that are not Ready, and for how long.
    pub not_ready: BTreeMap<String, Duration>,
    /// Nodes whose agent has not acknowledged its NodeNetwork, and for how long.
    pub unacknowledged: BTreeMap<String, Duration>,
    /// IPPools whose utilization was written within the last seconds.
    pub recent_usage_writes: BTreeSet<String>,
    /// Released blocks, the first released first.
    pub released: Vec<IpNet>,
}

impl Timers {
    /// Timers with the grace period of orphaned blocks and the delay of surplus blocks.
    #[must_use]
    pub fn new(orphan_grace: Duration, surplus_delay: Duration) -> Self {
        Self {
            orphans: GraceTracker::new(orphan_grace).with_reclaimable_after(RECLAIM_AFTER),
            surplus: GraceTracker::new(surplus_delay),
            not_ready: AbsentNodes::default(),
            unacknowledged: AbsentNodes::default(),
            released: ReleasedBlocks::default(),
            usage_writes: UsageWriteTimes::default(),
            drift_events: DriftEvents::default(),
        }
    }

    /// Clears all state: changes by another leader are unknown.
    pub fn clear(&mut self) {
        self.orphans.clear();
        self.surplus.clear();
        self.not_ready.clear();
        self.unacknowledged.clear();
        self.released.clear();
        self.usage_writes.clear();
        self.drift_events.clear();
    }

    /// Records a snapshot, and returns what has elapsed.
    pub fn observe(&mut self, snapshot: &Snapshot, now: Instant) -> Elapsed {
        let subnets: Vec<_> = snapshot.subnets().collect();
        let networks: Vec<_> = snapshot.networks().collect();
        let utilization = Utilization::observe(&subnets, &networks);
        let orphaned = |subnet: &NodeSubnet| Some(subnet.spec.state == SubnetState::Orphaned);
        let surplus = |subnet: &NodeSubnet| utilization.is_surplus(subnet);
        Elapsed {
            expired: self.orphans.observe(snapshot.subnets(), orphaned, now),
            reclaimable: self.orphans.reclaimable(now),
            surplus: self.surplus.observe(snapshot.subnets(), surplus, now),
            not_ready: self
                .not_ready
                .observe(absent_nodes::not_ready(snapshot.nodes()), now),
            unacknowledged: self
                .unacknowledged
                .observe(absent_nodes::unacknowledged(snapshot.networks()), now),
            recent_usage_writes: self.usage_writes.recent(now),
            released: self
                .released
                .observe(snapshot.subnets().map(|subnet| subnet.spec.cidr)),
        }
    }

    /// The time until the first timer ends, and the name of that timer. `deadlines` are the progress deadlines of all NetworkModes.
    pub fn next(&self, deadlines: &[Duration], now: Instant) -> Option<(Duration, &'static str)> {
        let timers = [
            (self.orphans.next(now), "orphan grace"),
            (self.surplus.next(now), "surplus delay"),
            (self.not_ready.next(deadlines, now), "node not ready"),
            (
                self.unacknowledged.next(deadlines, now),
                "agent not acknowledging",
            ),
            (self.drift_events.next(now), "drift event"),
            (self.usage_writes.next(now), "usage write"),
        ];
        let timers = timers.into_iter();
        timers.filter_map(|(end, name)| Some((end?, name))).min()
    }
}
