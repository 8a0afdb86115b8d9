//! [`Pair`]: a leader and a standby, of which the leader is killed or stopped, and replaced.

use std::sync::Arc;

use kube::Client;

use super::wire::Wire;
use crate::control_plane::ControlPlane;
use crate::ledger::{Book, Ledger};
use crate::objects::eventually;
use crate::operator::{Operator, WAIT_TIMEOUT, leader};

/// Two operators.
pub struct Pair {
    plane: Arc<ControlPlane>,
    admin: Client,
    ledger: Arc<Ledger>,
    flags: Vec<String>,
    running: Vec<(String, Operator)>,
    started: usize,
    /// How both reach the API server.
    pub wire: Wire,
    term: usize,
}

impl Pair {
    /// Starts both; returns when one leads and the other is ready to.
    pub async fn start(
        plane: &Arc<ControlPlane>,
        ledger: &Arc<Ledger>,
        flags: Vec<String>,
    ) -> Self {
        let mut pair = Self {
            plane: plane.clone(),
            admin: plane.admin(),
            ledger: ledger.clone(),
            flags,
            running: Vec::new(),
            started: 0,
            wire: Wire::to(plane).await,
            term: 0,
        };
        pair.start_one().await;
        pair.until_another_leads(None).await;
        pair.start_one().await;
        pair
    }

    async fn start_one(&mut self) {
        self.started += 1;
        let name = format!("operator-{}", self.started);
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let operator = Operator::start_by(&self.plane, &self.wire.url, &name, &flags).await;
        eventually("an operator is ready", WAIT_TIMEOUT, async || {
            operator.is_ready().await
        })
        .await;
        self.running.push((name, operator));
    }

    /// Waits until an operator that runs leads, and not `other`; whatever the ledger knows of freed blocks, it does not.
    async fn until_another_leads(&mut self, other: Option<&str>) {
        let next = eventually("another leads", WAIT_TIMEOUT, async || {
            let holder = leader(&self.admin).await?;
            let led = self
                .running
                .iter()
                .find(|(name, _)| *name == holder && Some(&**name) != other);
            let (name, operator) = led?;
            operator.counts("netweft_operator_leader 1").await?;
            Some(name.clone())
        })
        .await;
        println!("  {next} leads");
        self.ledger.with(Book::leads_anew);
        self.term = self.changes_of_leadership();
    }

    async fn place_of_leader(&self) -> usize {
        eventually("somebody leads", WAIT_TIMEOUT, async || {
            let holder = leader(&self.admin).await?;
            self.running.iter().position(|(name, _)| *name == holder)
        })
        .await
    }

    /// SIGKILL of the leader; another takes its place in the pair, and the standby the lead.
    pub async fn kill_leader(&mut self) {
        let place = self.place_of_leader().await;
        let (name, mut operator) = self.running.swap_remove(place);
        operator.process.kill();
        println!("  {name} was killed");
        self.start_one().await;
        self.until_another_leads(Some(&name)).await;
    }

    /// SIGSTOP of the leader; returns its name when the standby leads.
    pub async fn stop_leader(&mut self) -> String {
        let place = self.place_of_leader().await;
        let (name, operator) = &self.running[place];
        operator.process.signal("STOP");
        let name = name.clone();
        println!("  {name} was stopped");
        self.until_another_leads(Some(&name)).await;
        name
    }

    /// SIGCONT of one that was stopped; it believes in its lease for a moment.
    pub fn resume(&self, name: &str) {
        let (_, operator) = self.running.iter().find(|(own, _)| own == name).unwrap();
        operator.process.signal("CONT");
        println!("  {name} was resumed");
    }

    /// Waits until one that was resumed knows that it leads no more.
    pub async fn until_resigned(&mut self, name: &str) {
        let (_, operator) = self.running.iter().find(|(own, _)| own == name).unwrap();
        eventually(
            "the one that was stopped has stepped down",
            WAIT_TIMEOUT,
            async || operator.counts("netweft_operator_leader 0").await,
        )
        .await;
        self.until_another_leads(Some(name)).await;
    }

    /// Waits until the leader has seen what there is.
    pub async fn until_at_rest(&self) {
        let (_, operator) = &self.running[self.place_of_leader().await];
        operator.until_at_rest().await;
    }

    /// Whether the one that led when this was last asked has led all the time.
    pub fn same_leader(&mut self) -> bool {
        let before = self.term;
        self.term = self.changes_of_leadership();
        before == self.term
    }

    /// By the operators' own words: one that lost the lease and has it again has forgotten what it knew.
    fn changes_of_leadership(&self) -> usize {
        let names = (1..=self.started).map(|number| format!("operator-{number}.log"));
        let logs = names.filter_map(|name| std::fs::read(self.plane.dir.path().join(name)).ok());
        let count = |log: Vec<u8>| {
            String::from_utf8_lossy(&log)
                .matches("leadership changed")
                .count()
        };
        logs.map(count).sum()
    }

    /// Who leads, and what it says it took to make plans: seconds in all, and how many.
    pub async fn planning(&self) -> (String, f64, f64) {
        let (name, operator) = &self.running[self.place_of_leader().await];
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

    /// The most memory that the leader has had, in MiB.
    pub async fn memory(&self) -> u64 {
        let (_, operator) = &self.running[self.place_of_leader().await];
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
