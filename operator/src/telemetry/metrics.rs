//! Metrics. Every label has a fixed set of values, or is the name of a pool.

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

/// Everything the operator measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while several series change together: a scrape sees all of the old ones or all of the new ones.
    together: Mutex<()>,
    /// 1 while this operator leads.
    pub leader: Gauge,
    /// How long a plan takes to make.
    pub plan_seconds: Histogram,
    /// Writes by kind and result.
    pub writes: Family<WriteLabels, Counter>,
    /// When the last plan was carried out in full.
    pub last_success: Gauge,
    /// Objects in the last plan's cluster, by kind.
    pub objects: Family<ObjectLabels, Gauge>,
    blocks: Family<ShareLabels, Gauge>,
    addresses: Family<ShareLabels, Gauge>,
    phases: Family<PhaseLabels, Gauge>,
    nodes: Family<ProgressLabels, Gauge>,
}

/// What a write was and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// Kind of the object.
    pub kind: &'static str,
    /// What was done.
    pub verb: &'static str,
    /// What came of it.
    pub result: WriteResult,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
pub enum WriteResult {
    /// It was done.
    done,
    /// It rested on an old picture and was refused.
    stale,
    /// It failed.
    failed,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ObjectLabels {
    /// The kind.
    pub kind: &'static str,
}

/// A part of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShareLabels {
    pool: String,
    share: Share,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
enum Share {
    /// What there is.
    total,
    /// What is assigned to nodes, or given to pods.
    used,
}

/// A mode that is in a phase of its change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    mode: String,
    phase: String,
}

/// The nodes that are to carry a mode, or those that do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgressLabels {
    mode: String,
    nodes: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
enum Progress {
    /// All.
    total,
    /// Those that carry the traffic as it is wanted.
    updated,
}

impl Metrics {
    /// All metrics at their beginning.
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
            "Unix time at which the last plan was carried out in full",
            Unit::Seconds,
            last_success.clone(),
        );
        registry.register("objects", "Objects seen", objects.clone());
        registry.register("pool_blocks", "Blocks of a pool", blocks.clone());
        registry.register("pool_addresses", "Addresses of a pool", addresses.clone());
        registry.register(
            "mode_phase",
            "1 for the phase that a mode's change is in",
            phases.clone(),
        );
        registry.register(
            "mode_nodes",
            "Nodes that are to carry a mode, and those that do",
            nodes.clone(),
        );
        Self {
            registry,
            together: Mutex::new(()),
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
    /// None that a String could give.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let _together = self.together();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts a write.
    pub fn wrote(&self, kind: &'static str, verb: &'static str, result: WriteResult) {
        self.writes
            .get_or_create(&WriteLabels { kind, verb, result })
            .inc();
    }

    /// Sets the utilization of each pool from its status, and removes the previous values.
    pub fn used<'a>(&self, pools: impl IntoIterator<Item = &'a IPPool>) {
        let _together = self.together();
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

    /// Sets how far the modes are that are in use.
    pub fn changing<'a>(&self, modes: impl IntoIterator<Item = &'a NetworkMode>) {
        let _together = self.together();
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

    /// Removes the leader's metrics when another operator leads, so that stale values do not appear next to the new leader's.
    pub fn forget(&self) {
        let _together = self.together();
        self.last_success.set(0);
        self.objects.clear();
        self.blocks.clear();
        self.addresses.clear();
        self.phases.clear();
        self.nodes.clear();
    }

    fn together(&self) -> MutexGuard<'_, ()> {
        // It guards no value that could be half changed for good.
        self.together
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sets how many objects of a kind there are.
    pub fn seen(&self, kind: &'static str, count: usize) {
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

    fn a_pool() -> IPPool {
        let status = "{usage: {blocks: {total: 4, used: 2}, addresses: {total: 256, used: 7}}}";
        yaml(&format!(
            "{{metadata: {{name: p}}, spec: {{cidr: 10.0.0.0/24}}, status: {status}}}"
        ))
    }

    #[test]
    fn scrape_during_update_always_contains_pool() {
        let (metrics, pool) = (Metrics::new(), a_pool());
        metrics.used([&pool]);
        std::thread::scope(|scope| {
            let updates = scope.spawn(|| (0..20_000).for_each(|_| metrics.used([&pool])));
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
        metrics.used([&a_pool()]);
        metrics.seen("Node", 3);
        metrics.last_success.set(7);
        metrics.forget();
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
        metrics.wrote("NodeSubnet", "create", WriteResult::done);
        metrics.seen("Node", 3);
        let pool = |name: &str| {
            let status = "{usage: {blocks: {total: 4, used: 2}, addresses: {total: 256, used: 7}}}";
            yaml::<IPPool>(&format!(
                "{{metadata: {{name: {name}}}, spec: {{cidr: 10.0.0.0/24}}, status: {status}}}"
            ))
        };
        metrics.used([&pool("gone")]);
        metrics.used([&pool("p")]);
        let mode = |phase: &str| {
            let status = format!("{{phase: {phase}, nodes: {{total: 3, updated: 1}}}}");
            yaml::<NetworkMode>(&format!(
                "{{metadata: {{name: m}}, spec: {{mode: host-gw}}, status: {status}}}"
            ))
        };
        metrics.changing([&mode("Preparing")]);
        metrics.changing([&mode("Switching")]);
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
        assert!(!text.contains("gone"), "{text}");
        assert!(!text.contains("Preparing"), "{text}");
    }
}
