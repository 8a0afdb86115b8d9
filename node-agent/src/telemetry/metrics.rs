//! Numbers for /metrics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Shared by the main loop, which counts, and the HTTP server, which reads.
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
    last_success: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All counts at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("netweft_agent");
        let (syncs, operations, last_success) =
            (Family::default(), Family::default(), Gauge::default());
        let (restored, reclaimed, drifted) =
            (Family::default(), Family::default(), Family::default());
        registry.register(
            "syncs",
            "Comparisons of the kernel with what it should be, by result",
            Family::clone(&syncs),
        );
        registry.register(
            "kernel_operations",
            "Changes made to the kernel, by kind",
            Family::clone(&operations),
        );
        registry.register(
            "pods_restored",
            "What pods' links had lost and was put back, by kind",
            Family::clone(&restored),
        );
        registry.register(
            "pods_reclaimed",
            "What no pod had any more and was taken back, by kind",
            Family::clone(&reclaimed),
        );
        registry.register(
            "drift_repairs",
            "External changes that the agent has repaired, by kind",
            Family::clone(&drifted),
        );
        let help = "When everything was last found or put in place";
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
                last_success,
            }),
        }
    }

    /// A sync has ended.
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

    /// An operation has been applied.
    pub fn applied(&self, kind: &'static str) {
        self.inner.operations.get_or_create(&[("kind", kind)]).inc();
    }

    /// Something a pod had lost has been put back.
    pub fn restored(&self, kind: &'static str) {
        self.inner.restored.get_or_create(&[("kind", kind)]).inc();
    }

    /// Something that no pod had any more has been taken back.
    pub fn reclaimed(&self, kind: &'static str) {
        self.inner.reclaimed.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a repaired external change.
    pub fn drifted(&self, kind: &'static str) {
        self.inner.drifted.get_or_create(&[("kind", kind)]).inc();
    }

    /// All numbers in the OpenMetrics text format.
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
