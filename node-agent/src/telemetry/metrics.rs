//! The metrics of /metrics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The metrics that the main loop updates and the HTTP server reads.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    syncs: Family<[(&'static str, &'static str); 1], Counter>,
    operations: Family<[(&'static str, &'static str); 1], Counter>,
    restored: Family<[(&'static str, &'static str); 1], Counter>,
    reclaimed: Family<[(&'static str, &'static str); 1], Counter>,
    drifted: Family<[(&'static str, &'static str); 1], Counter>,
    problems: Family<[(&'static str, &'static str); 1], Gauge>,
    last_success: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Metrics without values.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("netweft_agent");
        let (syncs, operations, last_success) =
            (Family::default(), Family::default(), Gauge::default());
        let (restored, reclaimed, drifted) =
            (Family::default(), Family::default(), Family::default());
        let problems = Family::default();
        registry.register(
            "syncs",
            "Syncs of the node with its desired state, by result",
            Family::clone(&syncs),
        );
        registry.register(
            "kernel_operations",
            "Netlink operations that changed the kernel, by kind",
            Family::clone(&operations),
        );
        registry.register(
            "pods_restored",
            "Restored objects of pods, by kind",
            Family::clone(&restored),
        );
        registry.register(
            "pods_reclaimed",
            "Reclaimed objects without a pod, by kind",
            Family::clone(&reclaimed),
        );
        registry.register(
            "drift_repairs",
            "External changes that the agent has repaired, by kind",
            Family::clone(&drifted),
        );
        registry.register(
            "problems",
            "Present problems of the node, by kind",
            Family::clone(&problems),
        );
        let help = "Time of the last sync without a failure";
        registry.register_with_unit(
            "last_success_timestamp",
            help,
            Unit::Seconds,
            Gauge::clone(&last_success),
        );
        Self {
            inner: Arc::new(Inner {
                registry,
                syncs,
                operations,
                restored,
                reclaimed,
                drifted,
                problems,
                last_success,
            }),
        }
    }

    /// Counts a sync.
    pub fn synced(&self, clean: bool) {
        self.inner
            .syncs
            .get_or_create(&[("result", if clean { "clean" } else { "failed" })])
            .inc();
        if clean {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            self.inner.last_success.set(now.as_secs_f64());
        }
    }

    /// Counts a netlink operation.
    pub fn applied(&self, kind: &'static str) {
        self.inner.operations.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a restored object of a pod.
    pub fn restored(&self, kind: &'static str) {
        self.inner.restored.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a reclaimed object.
    pub fn reclaimed(&self, kind: &'static str) {
        self.inner.reclaimed.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a repaired external change.
    pub fn drifted(&self, kind: &'static str) {
        self.inner.drifted.get_or_create(&[("kind", kind)]).inc();
    }

    /// Sets the number of present problems of each kind.
    pub fn set_problems(&self, counts: impl IntoIterator<Item = (&'static str, i64)>) {
        for (kind, count) in counts {
            let labels = [("kind", kind)];
            self.inner.problems.get_or_create(&labels).set(count);
        }
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.inner.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
