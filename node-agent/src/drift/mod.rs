//! What somebody else changes on this node and the agent puts right: recognised, named, counted, and not fought over
//! without end.
//!
//! ```text
//!   netlink ──who wrote what──▶ record_writers ─┐
//!   diff ──operations──▶ judge ──────────┼─▶ done now, or waits ──▶ repaired ──▶ status, log, metrics
//!   the last clean sync ──▶ settled ─────┘
//! ```
//!
//! Drift is what was right after the last sync without a failure, is wanted as it was wanted then, and is right no more.

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

/// Memory of what was right, who wrote what, and what has been put right.
pub struct Drifts {
    settled: Option<Desired>,
    writers: BTreeMap<ObjectRef, String>,
    contentions: Contentions,
    metrics: Metrics,
    count: i64,
    /// What was put right in the last sync that had to, in sentences.
    last: Option<(Timestamp, Vec<String>)>,
    /// Whether nothing has been put right in this sync yet.
    fresh: bool,
    /// How long the first waits that was left as it is in this sync.
    waits: Option<Duration>,
}

/// What is to become of operations, by their places.
#[derive(Debug, Default)]
pub struct Judgement {
    /// The operations that repair external changes.
    pub drift: BTreeMap<usize, Difference>,
    /// Those that wait, because they have been done too often.
    pub held: BTreeSet<usize>,
}

impl Drifts {
    /// Nothing is settled yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            settled: None,
            writers: BTreeMap::new(),
            contentions: Contentions::default(),
            metrics,
            count: 0,
            last: None,
            fresh: true,
            waits: None,
        }
    }

    /// Records which process changed which object. To be called soon: the name of a process is known while the process lives.
    pub fn record_writers(&mut self, writers: Writers) {
        let named = writers
            .into_iter()
            .filter_map(|(object, port)| Some((object, who(port)?)));
        self.writers.extend(named);
    }

    /// A sync begins.
    pub fn begin(&mut self, now: Instant) {
        self.contentions.observe(now);
        self.fresh = true;
        self.waits = None;
    }

    /// What the node was like when it was last settled.
    #[must_use]
    pub fn settled(&self) -> Option<&Desired> {
        self.settled.as_ref()
    }

    /// What is to become of the operations that turn `actual` into `desired`.
    pub fn judge(
        &mut self,
        ops: &[Op],
        actual: &NetworkState,
        desired: &NetworkState,
        now: Instant,
    ) -> Judgement {
        let Some(settled) = &self.settled else {
            return Judgement::default();
        };
        let drift = classify::drift(ops, &settled.kernel, actual, desired);
        let held: BTreeSet<usize> = drift
            .keys()
            .copied()
            .filter(|at| {
                let what = ops.get(*at).map(|op| op.object().to_string());
                what.is_some_and(|what| self.has_to_wait(&what, now))
            })
            .collect();
        let left: Vec<&Op> = held.iter().filter_map(|at| ops.get(*at)).collect();
        let hangs = |op: &Op| left.iter().any(|left| classify::needs(op, left));
        let hanging = ops.iter().enumerate().filter(|(_, op)| hangs(op));
        let hanging: Vec<usize> = hanging.map(|(at, _)| at).collect();
        let held = hanging.into_iter().chain(held).collect();
        Judgement { drift, held }
    }

    /// Whether `what` has been put right too often to be put right now.
    pub fn has_to_wait(&mut self, what: &str, now: Instant) -> bool {
        let wait = self.contentions.wait(what, now);
        self.waits = self.waits.into_iter().chain(wait).min();
        wait.is_some()
    }

    /// An operation has repaired an external change.
    pub fn repaired(&mut self, op: &Op, difference: &Difference, now: Instant) {
        self.put_right(&op.object(), &op.object().to_string(), difference, now);
        self.metrics.drifted(op.kind());
    }

    /// An nft table has been repaired.
    pub fn table_repaired(&mut self, family: TableFamily, difference: &Difference, now: Instant) {
        self.put_right(
            &ObjectRef::Table(nft::TABLE.to_owned()),
            family.title(),
            difference,
            now,
        );
        self.metrics.drifted("nft");
    }

    /// A kernel parameter or a file has been repaired. The process that changed it is not known.
    pub fn thing_repaired(
        &mut self,
        kind: &'static str,
        what: &str,
        difference: &Difference,
        now: Instant,
    ) {
        self.record(what, difference, None, now);
        self.metrics.drifted(kind);
    }

    fn put_right(&mut self, object: &ObjectRef, what: &str, difference: &Difference, now: Instant) {
        let by = self.writers.get(object).cloned();
        self.record(what, difference, by.as_deref(), now);
    }

    fn record(&mut self, what: &str, difference: &Difference, by: Option<&str>, now: Instant) {
        let Difference { found, wanted } = difference;
        warn!(what, found, wanted, by, "repaired external change");
        self.contentions.note(what, by, now);
        self.count += 1;
        let by = by.map(|by| format!(", by {by}")).unwrap_or_default();
        let sentence = format!("{what} (found: {found}; wanted: {wanted}{by})");
        match &mut self.last {
            Some((_, sentences)) if !self.fresh => sentences.push(sentence),
            last => *last = Some((Timestamp::now(), vec![sentence])),
        }
        self.fresh = false;
    }

    /// A sync has ended, without a failure if there is a `settled` state. Who wrote what before it is no longer asked.
    pub fn end(&mut self, settled: Option<Desired>) {
        self.settled = settled;
        self.writers.clear();
    }

    /// When to look again: something waits, or a contention may be over.
    #[must_use]
    pub fn again(&self, now: Instant) -> Option<Duration> {
        self.waits
            .into_iter()
            .chain(self.contentions.over(now))
            .min()
    }

    /// What is fought over.
    pub fn contentions(&self) -> impl Iterator<Item = Problem> {
        self.contentions.problems()
    }

    /// For the node's status; `None` while nothing has drifted.
    #[must_use]
    pub fn status(&self) -> Option<DriftStatus> {
        let (at, what) = self.last.as_ref()?;
        Some(DriftStatus {
            repairs: self.count,
            last_repair_time: Some(Time(*at)),
            message: sentence(what)?,
        })
    }
}

/// A process in words. The number is that of the writer's own PID namespace, so its name can be looked up only by an agent
/// that shares one with others.
fn who(port: NetlinkPortId) -> Option<String> {
    let process = port.process()?;
    let own = std::process::id();
    if process == own {
        return None;
    }
    let alone = own == 1;
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    Some(match name {
        Ok(name) if !alone => format!("process {process} ({})", name.trim()),
        _ => format!("process {process}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_names_living_process_but_not_agent() {
        assert_eq!(who(NetlinkPortId(std::process::id())), None);
        assert_eq!(who(NetlinkPortId(0)), None);
        let sleeper = std::process::Command::new("sleep").arg("60").spawn();
        let mut sleeper = sleeper.unwrap();
        let id = sleeper.id();
        // It has its name once it has been executed.
        let named = || who(NetlinkPortId(id)).unwrap() == format!("process {id} (sleep)");
        assert!((0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            named()
        }));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(who(NetlinkPortId(id)).unwrap(), format!("process {id}"));
    }
}
