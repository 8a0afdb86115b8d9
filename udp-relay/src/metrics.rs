//! The metrics of /metrics. The counters of the workers are added only for a request.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::counters::{Count, Counters, DropReason, TunnelCounters};

/// The metrics, shared by the control loop, which adds and removes tunnels, and the HTTP server, which reads the values.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    tunnels: Tunnels,
    serving: Gauge,
}

#[derive(Clone, Debug, Default)]
struct Tunnels(Arc<Mutex<BTreeMap<String, TunnelCounters>>>);

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TunnelCounters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics {
    /// Without tunnels.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("netweft_udp_relay");
        let (tunnels, serving) = (Tunnels::default(), Gauge::default());
        registry.register(
            "serving",
            "Whether this relay forwards packets: 0 while a successor forwards them",
            serving.clone(),
        );
        registry.register_collector(Box::new(tunnels.clone()));
        Self {
            registry: Arc::new(registry),
            tunnels,
            serving,
        }
    }

    /// Adds the counters of a tunnel.
    pub fn add_tunnel(&self, link: &str, counters: TunnelCounters) {
        self.tunnels.lock().insert(link.to_owned(), counters);
    }

    /// Removes the counters of a tunnel.
    pub fn remove_tunnel(&self, link: &str) {
        self.tunnels.lock().remove(link);
    }

    /// Sets whether this relay forwards packets.
    pub fn set_serving(&self, serving: bool) {
        self.serving.set(serving.into());
    }

    /// Numbers of dropped packets, by link and in the order of [`DropReason::ALL`].
    pub fn drops(&self) -> BTreeMap<String, [u64; DropReason::ALL.len()]> {
        let tunnels = self.tunnels.lock();
        tunnels
            .iter()
            .map(|(link, counters)| (link.clone(), counters.drops()))
            .collect()
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

type CounterOf = fn(&Counters) -> &Count;

/// The counters by link and direction: name, help text and value.
const BY_DIRECTION: [(&str, &str, CounterOf); 5] = [
    ("packets", "Forwarded packets", |counters| &counters.packets),
    (
        "packet_bytes",
        "Bytes of forwarded packets, without the outer headers",
        |counters| &counters.bytes,
    ),
    (
        "reads",
        "Reads from the link (out), receive calls (in)",
        |counters| &counters.reads,
    ),
    (
        "writes",
        "Messages sent (out), writes to the link (in), of one packet or several",
        |counters| &counters.writes,
    ),
    (
        "gso_refused",
        "Messages for which the kernel refused segmentation, sent packet by packet",
        |counters| &counters.refused_gso,
    ),
];

impl Collector for Tunnels {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let tunnels = self.lock();
        for (name, help, counter_of) in BY_DIRECTION {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (link, counters) in &*tunnels {
                for (direction, workers) in [("out", &counters.outbound), ("in", &counters.inbound)]
                {
                    let sum: u64 = workers.iter().map(|worker| counter_of(worker).get()).sum();
                    let labels = [("link", link.as_str()), ("direction", direction)];
                    ConstCounter::new(sum).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Packets dropped, by reason";
        let mut family = encoder.encode_descriptor("drops", help, None, MetricType::Counter)?;
        for (link, counters) in &*tunnels {
            for (reason, drops) in DropReason::ALL.into_iter().zip(counters.drops()) {
                let labels = [("link", link.as_str()), ("reason", reason.label())];
                ConstCounter::new(drops).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_sum_counters_of_all_threads() {
        let (metrics, counters) = (Metrics::new(), TunnelCounters::new(2, 1));
        metrics.add_tunnel("nw-udp1", counters.clone());
        counters.outbound[0].packets.add(2);
        counters.outbound[1].packets.add(3);
        counters.inbound[0].dropped(DropReason::NotAPeer, 7);
        let text = metrics.encode();
        for line in [
            r#"netweft_udp_relay_packets_total{link="nw-udp1",direction="out"} 5"#,
            r#"netweft_udp_relay_packets_total{link="nw-udp1",direction="in"} 0"#,
            r#"netweft_udp_relay_drops_total{link="nw-udp1",reason="not_a_peer"} 7"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
        metrics.remove_tunnel("nw-udp1");
        assert!(!metrics.encode().contains("nw-udp1"));
    }
}
