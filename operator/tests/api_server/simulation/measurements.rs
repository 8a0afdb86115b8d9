//! Cost of the operators: time, API calls, bytes, memory.
//!
//! The API calls are the lines of the audit log for the service account of both operators. The bytes are counted on the
//! connections between both operators and the API server, with TLS and in both directions ([`ByteCountingProxy`]).
//!
//! [`ByteCountingProxy`]: super::byte_counting_proxy::ByteCountingProxy

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::operator_pair::OperatorPair;
use crate::audit;
use crate::control_plane::ControlPlane;

/// All measurements.
pub struct Measurements {
    nodes: usize,
    last: Counters,
    phases: Vec<Phase>,
    values: BTreeMap<&'static str, f64>,
}

/// The counters at one time.
struct Counters {
    at: Instant,
    bytes: (u64, u64),
    calls: BTreeMap<String, u64>,
    /// Name of the leader, planning time in seconds, and number of plans.
    planning: (String, f64, f64),
}

struct Phase {
    name: &'static str,
    seconds: f64,
    sent: u64,
    received: u64,
    calls: BTreeMap<String, u64>,
    /// Mean planning time in seconds; `None`: the leader has changed.
    plan: Option<f64>,
}

impl Counters {
    async fn now(plane: &ControlPlane, pair: &OperatorPair) -> Self {
        Self {
            at: Instant::now(),
            bytes: pair.proxy.bytes(),
            calls: audit::count_requests(plane, "netweft-operator"),
            planning: pair.planning_time().await,
        }
    }
}

impl Measurements {
    /// Starts the first phase.
    pub async fn start(nodes: usize, plane: &ControlPlane, pair: &OperatorPair) -> Self {
        Self {
            nodes,
            last: Counters::now(plane, pair).await,
            phases: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    /// Ends the current phase with this name, and starts the next one.
    pub async fn end_phase(
        &mut self,
        name: &'static str,
        plane: &ControlPlane,
        pair: &OperatorPair,
    ) {
        let now = Counters::now(plane, pair).await;
        let last = std::mem::replace(&mut self.last, now);
        let now = &self.last;
        let calls = now.calls.iter().map(|(call, count)| {
            let before = last.calls.get(call).copied().unwrap_or_default();
            (call.clone(), count - before)
        });
        let (seconds, plans) = (
            now.planning.1 - last.planning.1,
            now.planning.2 - last.planning.2,
        );
        self.phases.push(Phase {
            name,
            seconds: (now.at - last.at).as_secs_f64(),
            sent: now.bytes.0 - last.bytes.0,
            received: now.bytes.1 - last.bytes.1,
            calls: calls.filter(|(_, count)| *count > 0).collect(),
            plan: (plans >= 1.0 && last.planning.0 == now.planning.0).then(|| seconds / plans),
        });
    }

    /// Adds a single value.
    pub fn add(&mut self, what: &'static str, value: f64) {
        self.values.insert(what, value);
    }

    /// Prints a table.
    pub fn print(&self) {
        println!(
            "{} nodes; calls and bytes of both operators, for each of these nodes",
            self.nodes
        );
        println!(
            "{:<14}{:>9}{:>9}{:>12}{:>12}{:>10}",
            "phase", "seconds", "calls", "KiB sent", "received", "plan ms"
        );
        for phase in &self.phases {
            let calls: u64 = phase.calls.values().sum();
            let plan = phase
                .plan
                .map_or("-".to_owned(), |plan| format!("{:.1}", plan * 1000.0));
            println!(
                "{:<14}{:>9.1}{:>9.2}{:>12.2}{:>12.2}{plan:>10}",
                phase.name,
                phase.seconds,
                self.each(calls),
                self.each(phase.sent) / 1024.0,
                self.each(phase.received) / 1024.0,
            );
        }
        for phase in &self.phases {
            let frequent = phase
                .calls
                .iter()
                .filter(|(_, count)| self.each(**count) >= 0.05);
            let frequent = frequent.map(|(call, count)| format!("{call} {:.2}", self.each(*count)));
            println!(
                "{}: {}",
                phase.name,
                frequent.collect::<Vec<_>>().join(", ")
            );
        }
        for (what, value) in &self.values {
            println!("{what}: {value:.1}");
        }
    }

    /// All measurements as JSON.
    pub fn json(&self) -> Value {
        let phases = self.phases.iter().map(|phase| {
            let calls: u64 = phase.calls.values().sum();
            json!({
                "name": phase.name,
                "seconds": tenths(phase.seconds),
                "callsPerNode": hundredths(self.each(calls)),
                "bytesSentPerNode": self.each(phase.sent).round(),
                "bytesReceivedPerNode": self.each(phase.received).round(),
                "calls": phase.calls,
                "planMilliseconds": phase.plan.map(|plan| tenths(plan * 1000.0)),
            })
        });
        let values = self
            .values
            .iter()
            .map(|(what, value)| (*what, tenths(*value)));
        json!({
            "nodes": self.nodes,
            "phases": phases.collect::<Vec<_>>(),
            "more": values.collect::<BTreeMap<_, _>>(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "the values are rounded anyway")]
    fn each(&self, sum: u64) -> f64 {
        sum as f64 / self.nodes as f64
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
