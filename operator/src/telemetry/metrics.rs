//! Metrics. Every label has a fixed set of values, or is the name of a pool or mode.

use std::sync::{Mutex, MutexGuard};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use kube::ResourceExt;
use netweft_crds::{IPPool, NetworkMode, Usage};

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while several series change: a scrape contains either all old or all new values.
    update_lock: Mutex<()>,
    /// 1 while this operator is the leader.
    pub leader: Gauge,
    /// Duration of planning.
    pub plan_seconds: Histogram,
    /// Writes by kind and result.
    pub writes: Family<WriteLabels, Counter>,
    /// Time at which the last plan was applied completely.
    pub last_success: Gauge,
    /// Objects in the cluster state of the last plan, by kind.
    pub objects: Family<ObjectLabels, Gauge>,
    blocks: Family<ShareLabels, Gauge>,
    addresses: Family<ShareLabels, Gauge>,
    phases: Family<PhaseLabels, Gauge>,
    nodes: Family<ProgressLabels, Gauge>,
}

/// Labels of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// Kind of the object.
    pub kind: &'static str,
    /// Verb of the request.
    pub verb: &'static str,
    /// Result of the request.
    pub result: WriteResult,
}

/// Result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
pub enum WriteResult {
    /// The write succeeded.
    done,
    /// The API server refused the write, because the object has changed since the plan.
    stale,
    /// The write failed for another reason.
    failed,
}

/// Labels of a count of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ObjectLabels {
    /// Kind of the objects.
    pub kind: &'static str,
}

/// Labels of the utilization of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShareLabels {
    pool: String,
    share: Share,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
enum Share {
    /// All blocks or addresses of the pool.
    total,
    /// Blocks assigned to nodes, or addresses in use by pods.
    used,
}

/// Labels of the rollout phase of a mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    mode: String,
    phase: String,
}

/// Labels of the number of nodes of a mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgressLabels {
    mode: String,
    nodes: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
enum Progress {
    /// All nodes.
    total,
    /// Nodes that use the target datapath.
    updated,
}

impl Metrics {
    /// All metrics with their initial values.
    #[must_use]
    pub fn new() -> Self {
        let leader = Gauge::default();
        let plan_seconds = Histogram::new(exponential_buckets(0.0001, 4.0, 9));
        let writes = Family::default();
        let last_success = Gauge::default();
        let objects = Family::default();
        let blocks = Family::default();
        let addresses = Family::default();
        let (phases, nodes) = (Family::default(), Family::default());
        let mut registry = Registry::with_prefix("netweft_operator");
        registry.register(
            "leader",
            "1 while this operator is the leader",
            leader.clone(),
        );
        registry.register_with_unit(
            "plan",
            "Time to make a plan",
            Unit::Seconds,
            plan_seconds.clone(),
        );
        registry.register("writes", "Writes to the API server", writes.clone());
        registry.register_with_unit(
            "last_success_timestamp",
            "Unix time at which the last plan was applied completely",
            Unit::Seconds,
            last_success.clone(),
        );
        registry.register("objects", "Objects in the last plan", objects.clone());
        registry.register("pool_blocks", "Blocks of a pool", blocks.clone());
        registry.register("pool_addresses", "Addresses of a pool", addresses.clone());
        registry.register(
            "mode_phase",
            "1 for the current rollout phase of a mode",
            phases.clone(),
        );
        registry.register(
            "mode_nodes",
            "Nodes of a mode: all, and those that use its datapath",
            nodes.clone(),
        );
        Self {
            registry,
            update_lock: Mutex::new(()),
            leader,
            plan_seconds,
            writes,
            last_success,
            objects,
            blocks,
            addresses,
            phases,
            nodes,
        }
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// Writing to a String does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let _lock = self.lock_updates();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts a write.
    pub fn count_write(&self, kind: &'static str, verb: &'static str, result: WriteResult) {
        self.writes
            .get_or_create(&WriteLabels { kind, verb, result })
            .inc();
    }

    /// Sets the utilization of each pool from its status, and removes the previous values.
    pub fn set_pool_usage<'a>(&self, pools: impl IntoIterator<Item = &'a IPPool>) {
        let _lock = self.lock_updates();
        self.blocks.clear();
        self.addresses.clear();
        for pool in pools {
            let usage = pool.status.as_ref().and_then(|status| status.usage);
            let Some(Usage { blocks, addresses }) = usage else {
                continue;
            };
            for (family, count) in [(&self.blocks, blocks), (&self.addresses, addresses)] {
                for (share, value) in [(Share::total, count.total), (Share::used, count.used)] {
                    let pool = pool.name_any();
                    family
                        .get_or_create(&ShareLabels { pool, share })
                        .set(value);
                }
            }
        }
    }

    /// Sets the rollout phase and the numbers of nodes of all modes in use.
    pub fn set_mode_progress<'a>(&self, modes: impl IntoIterator<Item = &'a NetworkMode>) {
        let _lock = self.lock_updates();
        self.phases.clear();
        self.nodes.clear();
        for mode in modes {
            let status = mode.status.as_ref();
            if let Some(phase) = status.and_then(|status| status.phase) {
                let labels = PhaseLabels {
                    mode: mode.name_any(),
                    phase: format!("{phase:?}"),
                };
                self.phases.get_or_create(&labels).set(1);
            }
            let Some(progress) = status.and_then(|status| status.nodes.as_ref()) else {
                continue;
            };
            for (nodes, value) in [
                (Progress::total, progress.total),
                (Progress::updated, progress.updated),
            ] {
                let mode = mode.name_any();
                self.nodes
                    .get_or_create(&ProgressLabels { mode, nodes })
                    .set(value);
            }
        }
    }

    /// Removes the leader's metrics when another operator is the leader, so that stale values do not appear next to the new leader's.
    pub fn clear_leader_metrics(&self) {
        let _lock = self.lock_updates();
        self.last_success.set(0);
        self.objects.clear();
        self.blocks.clear();
        self.addresses.clear();
        self.phases.clear();
        self.nodes.clear();
    }

    fn lock_updates(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data, so a panic of a holder leaves nothing inconsistent.
        self.update_lock
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sets the number of objects of a kind.
    pub fn set_objects(&self, kind: &'static str, count: usize) {
        self.objects
            .get_or_create(&ObjectLabels { kind })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn pool_with_usage() -> IPPool {
        let status = "{usage: {blocks: {total: 4, used: 2}, addresses: {total: 256, used: 7}}}";
        yaml(&format!(
            "{{metadata: {{name: p}}, spec: {{cidr: 10.0.0.0/24}}, status: {status}}}"
        ))
    }

    #[test]
    fn scrape_during_update_always_contains_pool() {
        let (metrics, pool) = (Metrics::new(), pool_with_usage());
        metrics.set_pool_usage([&pool]);
        std::thread::scope(|scope| {
            let updates = scope.spawn(|| (0..20_000).for_each(|_| metrics.set_pool_usage([&pool])));
            while !updates.is_finished() {
                let text = metrics.text().unwrap();
                for line in ["blocks", "addresses"] {
                    let line = format!("netweft_operator_pool_{line}{{pool=\"p\",share=\"used\"}}");
                    assert!(text.contains(&line), "{line} is not in\n{text}");
                }
            }
        });
    }

    #[test]
    fn former_leader_exports_no_pool_and_mode_metrics() {
        let metrics = Metrics::new();
        metrics.set_pool_usage([&pool_with_usage()]);
        metrics.set_objects("Node", 3);
        metrics.last_success.set(7);
        metrics.clear_leader_metrics();
        let text = metrics.text().unwrap();
        assert!(
            !text.contains("pool=") && !text.contains("kind=\"Node\""),
            "{text}"
        );
        assert!(text.contains("netweft_operator_last_success_timestamp_seconds 0"));
    }

    #[test]
    fn metric_names_have_prefix_and_unit() {
        let metrics = Metrics::new();
        metrics.count_write("NodeSubnet", "create", WriteResult::done);
        metrics.set_objects("Node", 3);
        let pool = |name: &str| {
            let status = "{usage: {blocks: {total: 4, used: 2}, addresses: {total: 256, used: 7}}}";
            yaml::<IPPool>(&format!(
                "{{metadata: {{name: {name}}}, spec: {{cidr: 10.0.0.0/24}}, status: {status}}}"
            ))
        };
        metrics.set_pool_usage([&pool("deleted")]);
        metrics.set_pool_usage([&pool("p")]);
        let mode = |phase: &str| {
            let status = format!("{{phase: {phase}, nodes: {{total: 3, updated: 1}}}}");
            yaml::<NetworkMode>(&format!(
                "{{metadata: {{name: m}}, spec: {{mode: host-gw}}, status: {status}}}"
            ))
        };
        metrics.set_mode_progress([&mode("Preparing")]);
        metrics.set_mode_progress([&mode("Switching")]);
        let text = metrics.text().unwrap();
        for line in [
            "netweft_operator_leader 0",
            "netweft_operator_plan_seconds_count 0",
            "netweft_operator_writes_total{kind=\"NodeSubnet\",verb=\"create\",result=\"done\"} 1",
            "netweft_operator_last_success_timestamp_seconds 0",
            "netweft_operator_objects{kind=\"Node\"} 3",
            "netweft_operator_mode_phase{mode=\"m\",phase=\"Switching\"} 1",
            "netweft_operator_mode_nodes{mode=\"m\",nodes=\"total\"} 3",
            "netweft_operator_mode_nodes{mode=\"m\",nodes=\"updated\"} 1",
            "netweft_operator_pool_blocks{pool=\"p\",share=\"total\"} 4",
            "netweft_operator_pool_blocks{pool=\"p\",share=\"used\"} 2",
            "netweft_operator_pool_addresses{pool=\"p\",share=\"total\"} 256",
            "netweft_operator_pool_addresses{pool=\"p\",share=\"used\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("deleted"), "{text}");
        assert!(!text.contains("Preparing"), "{text}");
    }
}
