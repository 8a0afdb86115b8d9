//! External changes on this node that the agent repairs (drift): they are detected, attributed to a process, and counted, and
//! repeated ones are repaired less often.
//!
//! ```text
//!   netlink ──writers──▶ record_writers ────────┐
//!   diff ──operations──▶ classify ──────────────┼─▶ now or deferred ──▶ repaired ──▶ status, log, metrics
//!   last clean sync ──desired state──▶ baseline ┘
//! ```
//!
//! An object has drifted if it was correct after the last clean sync, its desired state is the same as then, and its actual state
//! differs.

mod classify;
mod contention;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use netweft_crds::DriftStatus;
use netweft_netstate::events::{NetlinkPortId, Writers};
use netweft_netstate::model::NetworkState;
use netweft_netstate::object_ref::ObjectRef;
use netweft_netstate::op::Op;
use tracing::warn;

use crate::apply::nft::{self, TableFamily};
use crate::desired::Desired;
use crate::status::problem::{Problem, sentence};
use crate::telemetry::metrics::Metrics;

pub use crate::drift::classify::{Difference, link_of};
use crate::drift::contention::Contentions;

/// Detects drift and records repairs.
pub struct DriftTracker {
    baseline: Option<Desired>,
    writers: BTreeMap<ObjectRef, String>,
    contentions: Contentions,
    metrics: Metrics,
    /// Number of repairs since the agent started.
    repairs: i64,
    /// Time and descriptions of the repairs of the last sync that had any.
    last_repairs: Option<(Timestamp, Vec<String>)>,
    /// Whether the present sync has repaired nothing yet.
    no_repair_yet: bool,
    /// The shortest remaining delay of the deferred repairs of the present sync.
    shortest_delay: Option<Duration>,
}

/// Operations, classified by their indexes.
#[derive(Debug, Default)]
pub struct Classified {
    /// The operations that repair drift.
    pub drift: BTreeMap<usize, Difference>,
    /// The operations that are deferred because of contention.
    pub deferred: BTreeSet<usize>,
}

impl DriftTracker {
    /// The tracker before the first sync.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            baseline: None,
            writers: BTreeMap::new(),
            contentions: Contentions::default(),
            metrics,
            repairs: 0,
            last_repairs: None,
            no_repair_yet: true,
            shortest_delay: None,
        }
    }

    /// Records which process changed which object. Must be called soon, because the name of a process is readable only while the
    /// process runs.
    pub fn record_writers(&mut self, writers: Writers) {
        let named = writers
            .into_iter()
            .filter_map(|(object, port)| Some((object, process_name(port)?)));
        self.writers.extend(named);
    }

    /// Starts a sync.
    pub fn begin_sync(&mut self, now: Instant) {
        self.contentions.expire(now);
        self.no_repair_yet = true;
        self.shortest_delay = None;
    }

    /// The desired state of the last sync, if that was clean.
    #[must_use]
    pub fn baseline(&self) -> Option<&Desired> {
        self.baseline.as_ref()
    }

    /// Classifies the operations that turn `actual` into `desired`.
    pub fn classify(
        &mut self,
        ops: &[Op],
        actual: &NetworkState,
        desired: &NetworkState,
        now: Instant,
    ) -> Classified {
        let Some(baseline) = &self.baseline else {
            return Classified::default();
        };
        let drift = classify::drift(ops, &baseline.kernel, actual, desired);
        let contended: BTreeSet<usize> = drift
            .keys()
            .copied()
            .filter(|index| {
                let object = ops.get(*index).map(|op| op.object().to_string());
                object.is_some_and(|object| self.must_wait(&object, now))
            })
            .collect();
        let deferred_ops = contended.iter().filter_map(|index| ops.get(*index));
        let deferred_ops: Vec<&Op> = deferred_ops.collect();
        let is_dependent = |op: &Op| {
            let mut deferred = deferred_ops.iter();
            deferred.any(|deferred| classify::depends_on(op, deferred))
        };
        let dependent = ops.iter().enumerate().filter(|(_, op)| is_dependent(op));
        let dependent: Vec<usize> = dependent.map(|(index, _)| index).collect();
        let deferred = dependent.into_iter().chain(contended).collect();
        Classified { drift, deferred }
    }

    /// Whether the next repair of an object is deferred because of contention.
    pub fn must_wait(&mut self, object: &str, now: Instant) -> bool {
        let delay = self.contentions.delay(object, now);
        self.shortest_delay = self.shortest_delay.into_iter().chain(delay).min();
        delay.is_some()
    }

    /// Records that an operation has repaired drift.
    pub fn op_repaired(&mut self, op: &Op, difference: &Difference, now: Instant) {
        let writer = self.writers.get(&op.object()).cloned();
        self.record(&op.object().to_string(), difference, writer.as_deref(), now);
        self.metrics.drifted(op.kind());
    }

    /// Records that an nftables table has been repaired.
    pub fn table_repaired(&mut self, family: TableFamily, difference: &Difference, now: Instant) {
        let table = ObjectRef::Table(nft::TABLE.to_owned());
        let writer = self.writers.get(&table).cloned();
        self.record(family.title(), difference, writer.as_deref(), now);
        self.metrics.drifted("nft");
    }

    /// Records that a sysctl or a file has been repaired. The process that changed it is unknown.
    pub fn other_repaired(
        &mut self,
        kind: &'static str,
        object: &str,
        difference: &Difference,
        now: Instant,
    ) {
        self.record(object, difference, None, now);
        self.metrics.drifted(kind);
    }

    fn record(&mut self, object: &str, difference: &Difference, by: Option<&str>, now: Instant) {
        let Difference { found, wanted } = difference;
        warn!(object, found, wanted, by, "repaired external change");
        self.contentions.add_repair(object, by, now);
        self.repairs += 1;
        let by = by.map(|by| format!(", by {by}")).unwrap_or_default();
        let description = format!("{object} (found: {found}; wanted: {wanted}{by})");
        match &mut self.last_repairs {
            Some((_, descriptions)) if !self.no_repair_yet => descriptions.push(description),
            last => *last = Some((Timestamp::now(), vec![description])),
        }
        self.no_repair_yet = false;
    }

    /// Ends a sync. `desired` is its desired state if the sync was clean. The recorded writers are dropped.
    pub fn end_sync(&mut self, desired: Option<Desired>) {
        self.baseline = desired;
        self.writers.clear();
    }

    /// Delay of the next sync: a repair is deferred, or a contention may have ended.
    #[must_use]
    pub fn requeue_after(&self, now: Instant) -> Option<Duration> {
        self.shortest_delay
            .into_iter()
            .chain(self.contentions.next_end(now))
            .min()
    }

    /// The problems of objects that another program changes repeatedly.
    pub fn contentions(&self) -> impl Iterator<Item = Problem> {
        self.contentions.problems()
    }

    /// The drift in the node's status; `None` before the first repair.
    #[must_use]
    pub fn status(&self) -> Option<DriftStatus> {
        let (at, descriptions) = self.last_repairs.as_ref()?;
        Some(DriftStatus {
            repairs: self.repairs,
            last_repair_time: Some(Time(*at)),
            message: sentence(descriptions)?,
        })
    }
}

/// A process in messages; `None` for the agent itself. The ID belongs to the PID namespace of the writer, so the name is readable
/// only if the agent shares that namespace.
fn process_name(port: NetlinkPortId) -> Option<String> {
    let process = port.process()?;
    let own = std::process::id();
    if process == own {
        return None;
    }
    let has_own_namespace = own == 1;
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    Some(match name {
        Ok(name) if !has_own_namespace => format!("process {process} ({})", name.trim()),
        _ => format!("process {process}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_names_living_process_but_not_agent() {
        assert_eq!(process_name(NetlinkPortId(std::process::id())), None);
        assert_eq!(process_name(NetlinkPortId(0)), None);
        let sleeper = std::process::Command::new("sleep").arg("60").spawn();
        let mut sleeper = sleeper.unwrap();
        let id = sleeper.id();
        // The process has its name after it has executed its program.
        let named = || process_name(NetlinkPortId(id)).unwrap() == format!("process {id} (sleep)");
        assert!((0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            named()
        }));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(
            process_name(NetlinkPortId(id)).unwrap(),
            format!("process {id}")
        );
    }
}
