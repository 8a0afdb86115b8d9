//! [`OperatorPair`]: a leader and a standby. The leader is killed or stopped, and replaced.

use std::sync::Arc;

use kube::Client;

use super::byte_counting_proxy::ByteCountingProxy;
use crate::control_plane::ControlPlane;
use crate::invariants::{InvariantChecker, InvariantMonitor};
use crate::objects::eventually;
use crate::operator::{Operator, WAIT_TIMEOUT, leader};

/// A leader and a standby.
pub struct OperatorPair {
    plane: Arc<ControlPlane>,
    admin: Client,
    monitor: Arc<InvariantMonitor>,
    flags: Vec<String>,
    running: Vec<(String, Operator)>,
    started: usize,
    /// The proxy to the API server of both.
    pub proxy: ByteCountingProxy,
    term: usize,
}

impl OperatorPair {
    /// Starts both. Returns when one is the leader and the other one is ready.
    pub async fn start(
        plane: &Arc<ControlPlane>,
        monitor: &Arc<InvariantMonitor>,
        flags: Vec<String>,
    ) -> Self {
        let mut pair = Self {
            plane: plane.clone(),
            admin: plane.admin(),
            monitor: monitor.clone(),
            flags,
            running: Vec::new(),
            started: 0,
            proxy: ByteCountingProxy::start(plane).await,
            term: 0,
        };
        pair.start_operator().await;
        pair.wait_for_other_leader(None).await;
        pair.start_operator().await;
        pair
    }

    async fn start_operator(&mut self) {
        self.started += 1;
        let name = format!("operator-{}", self.started);
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let operator = Operator::start_with_url(&self.plane, &self.proxy.url, &name, &flags).await;
        eventually("an operator is ready", WAIT_TIMEOUT, async || {
            operator.is_ready().await
        })
        .await;
        self.running.push((name, operator));
    }

    /// Waits until a running operator other than `other` is the leader. A new leader has not observed any release.
    async fn wait_for_other_leader(&mut self, other: Option<&str>) {
        let next = eventually("another operator is the leader", WAIT_TIMEOUT, async || {
            let holder = leader(&self.admin).await?;
            let running = self
                .running
                .iter()
                .find(|(name, _)| *name == holder && Some(&**name) != other);
            let (name, operator) = running?;
            operator.has_metric("netweft_operator_leader 1").await?;
            Some(name.clone())
        })
        .await;
        println!("  {next} is the leader");
        self.monitor.with(InvariantChecker::reset_leader);
        self.term = self.leadership_changes();
    }

    async fn leader_index(&self) -> usize {
        eventually("an operator is the leader", WAIT_TIMEOUT, async || {
            let holder = leader(&self.admin).await?;
            self.running.iter().position(|(name, _)| *name == holder)
        })
        .await
    }

    /// Kills the leader. A new operator becomes the standby, and the standby the leader.
    pub async fn kill_leader(&mut self) {
        let index = self.leader_index().await;
        let (name, mut operator) = self.running.swap_remove(index);
        operator.process.kill();
        println!("  {name} was killed");
        self.start_operator().await;
        self.wait_for_other_leader(Some(&name)).await;
    }

    /// Stops the leader with SIGSTOP. Returns its name when the standby is the leader.
    pub async fn stop_leader(&mut self) -> String {
        let index = self.leader_index().await;
        let (name, operator) = &self.running[index];
        operator.process.signal("STOP");
        let name = name.clone();
        println!("  {name} was stopped");
        self.wait_for_other_leader(Some(&name)).await;
        name
    }

    /// Continues a stopped operator with SIGCONT. It acts as leader for a moment.
    pub fn resume(&self, name: &str) {
        let (_, operator) = self
            .running
            .iter()
            .find(|(running_name, _)| running_name == name)
            .unwrap();
        operator.process.signal("CONT");
        println!("  {name} was resumed");
    }

    /// Waits until a continued operator has noticed that it is not the leader.
    pub async fn wait_until_not_leader(&mut self, name: &str) {
        let (_, operator) = self
            .running
            .iter()
            .find(|(running_name, _)| running_name == name)
            .unwrap();
        eventually(
            "the stopped operator is not the leader",
            WAIT_TIMEOUT,
            async || operator.has_metric("netweft_operator_leader 0").await,
        )
        .await;
        self.wait_for_other_leader(Some(name)).await;
    }

    /// Waits until the leader makes no more plans.
    pub async fn wait_until_idle(&self) {
        let (_, operator) = &self.running[self.leader_index().await];
        operator.wait_until_idle().await;
    }

    /// Whether the leader has not changed since the last call.
    pub fn has_same_leader(&mut self) -> bool {
        let before = self.term;
        self.term = self.leadership_changes();
        before == self.term
    }

    /// Counts changes of leadership in the logs. An operator that loses the lease and acquires it again has cleared its
    /// state.
    fn leadership_changes(&self) -> usize {
        let names = (1..=self.started).map(|number| format!("operator-{number}.log"));
        let logs = names.filter_map(|name| std::fs::read(self.plane.dir.path().join(name)).ok());
        let count = |log: Vec<u8>| {
            String::from_utf8_lossy(&log)
                .matches("leadership changed")
                .count()
        };
        logs.map(count).sum()
    }

    /// Name of the leader, total planning time in seconds, and number of plans.
    pub async fn planning_time(&self) -> (String, f64, f64) {
        let (name, operator) = &self.running[self.leader_index().await];
        let metrics = operator.get("/metrics").await.unwrap_or_default();
        let value = |metric: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(metric));
            line.and_then(|value| value.trim().parse().ok())
                .unwrap_or_default()
        };
        (
            name.clone(),
            value("netweft_operator_plan_seconds_sum"),
            value("netweft_operator_plan_seconds_count"),
        )
    }

    /// Peak memory of the leader in MiB.
    pub async fn memory(&self) -> u64 {
        let (_, operator) = &self.running[self.leader_index().await];
        let status = format!("/proc/{}/status", operator.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib >> 10
    }
}
