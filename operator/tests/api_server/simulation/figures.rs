//! What the operators cost: time, calls, bytes, memory.
//!
//! Calls are the API server's own count: the lines of its audit log about the operator's account, that of the standby included.
//! Bytes are counted on the connections between both operators and the API server, TLS included, in both directions ([`Wire`]).
//!
//! [`Wire`]: super::wire::Wire

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::operators::Pair;
use crate::audit;
use crate::control_plane::ControlPlane;

/// All figures.
pub struct Figures {
    nodes: usize,
    last: Mark,
    phases: Vec<Phase>,
    more: BTreeMap<&'static str, f64>,
}

/// How much there was at a moment.
struct Mark {
    at: Instant,
    bytes: (u64, u64),
    calls: BTreeMap<String, u64>,
    /// Of which leader, seconds of planning and number of plans.
    planning: (String, f64, f64),
}

struct Phase {
    name: &'static str,
    seconds: f64,
    sent: u64,
    received: u64,
    calls: BTreeMap<String, u64>,
    /// Seconds of a plan, on average; `None`: the leader changed.
    plan: Option<f64>,
}

impl Mark {
    async fn now(plane: &ControlPlane, pair: &Pair) -> Self {
        Self {
            at: Instant::now(),
            bytes: pair.wire.bytes(),
            calls: audit::calls(plane, "netweft-operator"),
            planning: pair.planning().await,
        }
    }
}

impl Figures {
    /// From now on.
    pub async fn begin(nodes: usize, plane: &ControlPlane, pair: &Pair) -> Self {
        Self {
            nodes,
            last: Mark::now(plane, pair).await,
            phases: Vec::new(),
            more: BTreeMap::new(),
        }
    }

    /// What has been since the end of the last phase is called `name`.
    pub async fn end_of(&mut self, name: &'static str, plane: &ControlPlane, pair: &Pair) {
        let now = Mark::now(plane, pair).await;
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

    /// A figure of its own.
    pub fn note(&mut self, what: &'static str, value: f64) {
        self.more.insert(what, value);
    }

    /// A table for humans.
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
            let most = phase
                .calls
                .iter()
                .filter(|(_, count)| self.each(**count) >= 0.05);
            let most = most.map(|(call, count)| format!("{call} {:.2}", self.each(*count)));
            println!("{}: {}", phase.name, most.collect::<Vec<_>>().join(", "));
        }
        for (what, value) in &self.more {
            println!("{what}: {value:.1}");
        }
    }

    /// The same for programs.
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
        let more = self
            .more
            .iter()
            .map(|(what, value)| (*what, tenths(*value)));
        json!({
            "nodes": self.nodes,
            "phases": phases.collect::<Vec<_>>(),
            "more": more.collect::<BTreeMap<_, _>>(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are rounded anyway")]
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
