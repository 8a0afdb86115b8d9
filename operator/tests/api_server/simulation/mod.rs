//! A simulation with many nodes, which exist only for the API server, and two operators. Nodes are created, deleted and
//! recreated, and change their addresses, while leaders are killed and stopped.
//!
//! The [`InvariantMonitor`] checks every event of NodeSubnets from before the first Node. API server, etcd and
//! operators are the real programs. Agents, kubelets and the garbage collector are simulated.
//!
//! | variable | meaning |
//! |---|---|
//! | `NETWEFT_SIM_NODES` | number of Nodes, 200 by default |
//! | `NETWEFT_SIM_SEED` | seed of the random choices; the same seed gives the same choices |
//! | `NETWEFT_SIM_JSON` | output file of the measurements |

mod agents;
mod byte_counting_proxy;
mod churn;
mod measurements;
mod nodes;
mod operator_pair;
mod pods;
mod pools;
pub mod random;

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::control_plane::{CHART, ControlPlane};
use crate::invariants::{InvariantChecker, InvariantConfig, InvariantMonitor};
use agents::Agents;
use churn::{LeaderEvent, share};
use measurements::Measurements;
use nodes::Nodes;
use operator_pair::OperatorPair;
use random::Random;

/// Maximum difference between the arrival times of simultaneous events.
const EVENT_LAG: Duration = Duration::from_secs(1);

/// A simulated cluster.
struct Simulation {
    /// Dropped first: the tasks use the API server.
    _tasks: JoinSet<()>,
    nodes: Nodes,
    agents: Agents,
    pair: OperatorPair,
    monitor: Arc<InvariantMonitor>,
    plane: Arc<ControlPlane>,
    measurements: Measurements,
    random: Random,
    /// Number of Nodes at the start.
    size: usize,
    /// Numbers of the existing Nodes.
    existing: Vec<usize>,
    /// Numbers of the existing Nodes with more pods than one block has addresses.
    full: Vec<usize>,
    /// Number of the next new Node.
    next: usize,
    grace: Duration,
    observation_interval: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_with_killed_leaders_keep_unique_block_owners() {
    let size = from_environment("NETWEFT_SIM_NODES", 200);
    let seed = from_environment("NETWEFT_SIM_SEED", 1);
    println!("simulation: NETWEFT_SIM_NODES={size} NETWEFT_SIM_SEED={seed}");
    let mut events = vec![
        LeaderEvent::Killed,
        LeaderEvent::Stopped,
        LeaderEvent::Killed,
    ];
    if size >= 1000 {
        events.extend([LeaderEvent::Killed, LeaderEvent::Stopped]);
    }
    let mut simulation = Simulation::start(size, seed, events.len()).await;
    simulation.create_all_nodes().await;
    simulation.acknowledge().await;
    simulation.pods().await;
    for (number, event) in events.into_iter().enumerate() {
        simulation.round(number, event).await;
    }
    simulation.end_phase("churn").await;
    simulation.assign_released_blocks().await;
    simulation.end_phase("reuse").await;
    simulation.converge("the end", true).await;
    simulation.finish(seed).await;
}

impl Simulation {
    async fn start(size: usize, seed: u64, rounds: usize) -> Self {
        let plane = Arc::new(ControlPlane::start().await);
        let no_pools = ["--set-json", "pools=[]"];
        plane.helm(
            &[
                &["install", "netweft", CHART, "--create-namespace"],
                &no_pools[..],
            ]
            .concat(),
        );
        let admin = plane.admin();
        // Enough blocks for the maximum in use, and no more, so that released blocks must be assigned again.
        let count = size + 60 + share(size) * (4 * rounds + 2);
        let seconds = |scale: usize, least: u64| least + u64::try_from(size / scale).unwrap();
        let (grace, observation_interval) = (seconds(250, 3), seconds(500, 1));
        let (grace, observation_interval) = (
            Duration::from_secs(grace),
            Duration::from_secs(observation_interval),
        );
        let config = InvariantConfig {
            grace: Some(grace),
            event_lag: EVENT_LAG,
            observation_interval,
            blocks: pools::create_all(&admin, count).await,
            ..InvariantConfig::default()
        };
        let monitor = Arc::new(InvariantMonitor::start_with(&admin, config).await);
        let mut tasks = JoinSet::new();
        tasks.spawn(nodes::collect_garbage(admin.clone(), monitor.clone()));
        tasks.spawn(print_progress(monitor.clone()));
        let flags = ["--lease-duration=2s", "--surplus-delay=2s"].map(str::to_owned);
        let flags = [
            flags.to_vec(),
            vec![format!("--orphan-grace={}s", grace.as_secs())],
        ];
        let pair = OperatorPair::start(&plane, &monitor, flags.concat()).await;
        Self {
            nodes: Nodes::new(&admin, &monitor),
            agents: Agents::new(&admin, &monitor),
            measurements: Measurements::start(size, &plane, &pair).await,
            pair,
            monitor,
            plane,
            random: Random::from_seed(seed),
            size,
            existing: (0..size).collect(),
            full: Vec::new(),
            next: size,
            grace,
            observation_interval,
            _tasks: tasks,
        }
    }

    /// Creates all Nodes as fast as possible. No agent runs yet.
    async fn create_all_nodes(&mut self) {
        let start = Instant::now();
        self.nodes.create(&self.existing).await;
        self.measurements
            .add("seconds to create all Nodes", start.elapsed().as_secs_f64());
        self.wait_until("every node has its blocks", |checker| {
            checker.differences(|_| 1, false).is_empty()
        })
        .await;
        self.measurements
            .add("seconds to full assignment", start.elapsed().as_secs_f64());
        self.wait_until(
            "every NodeNetwork is Assigned",
            InvariantChecker::all_assigned,
        )
        .await;
        self.end_phase("join").await;
    }

    /// Starts the agents.
    async fn acknowledge(&mut self) {
        self.agents.start();
        self.converge("acknowledged", false).await;
        self.end_phase("acknowledge").await;
    }

    /// Waits until the cluster has converged. Returns whether the assignment order was checked, which requires the same
    /// leader since the last call.
    async fn converge(&mut self, condition: &str, after_grace: bool) -> bool {
        let expected_count = self.agents.expected_count();
        self.wait_until(&format!("converged: {condition}"), |checker| {
            self.agents.have_reported(checker)
                && checker.all_assigned()
                && checker.differences(&expected_count, after_grace).is_empty()
        })
        .await;
        let wrong_blocks = self.monitor.with(|checker| checker.blocks_of_other_nodes());
        assert_eq!(wrong_blocks, [""; 0]);
        let same_leader = self.pair.has_same_leader();
        self.monitor.with(|checker| {
            if same_leader {
                checker.check_converged();
            } else {
                checker.reset_leader();
            }
        });
        self.fail_on_violations();
        same_leader
    }

    /// Waits for a condition of the checker. Fails at the first violation.
    async fn wait_until(&self, condition: &str, is_met: impl Fn(&InvariantChecker) -> bool) {
        let timeout = Duration::from_secs(60 + u64::try_from(self.size / 10).unwrap());
        let start = Instant::now();
        while !self.monitor.with(|checker| is_met(checker)) {
            self.fail_on_violations();
            if start.elapsed() > timeout {
                let differences = self
                    .monitor
                    .with(|checker| checker.differences(self.agents.expected_count(), false));
                let first: Vec<_> = differences.iter().take(5).collect();
                panic!(
                    "{condition}: not within {timeout:?}; {} differences: {first:#?}",
                    differences.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.fail_on_violations();
        println!(
            "  {condition}: after {:.1} s",
            start.elapsed().as_secs_f64()
        );
    }

    fn fail_on_violations(&self) {
        let violations = self.monitor.with(|checker| checker.violations().to_vec());
        let first: Vec<_> = violations.iter().take(10).collect();
        assert!(
            violations.is_empty(),
            "{} violations: {first:#?}",
            violations.len()
        );
    }

    async fn end_phase(&mut self, phase: &'static str) {
        self.measurements
            .end_phase(phase, &self.plane, &self.pair)
            .await;
    }

    async fn finish(mut self, seed: u64) {
        #[expect(clippy::cast_precision_loss, reason = "the values are rounded anyway")]
        let memory = self.pair.memory().await as f64;
        self.measurements.add("MiB of the leader at most", memory);
        let max_blocks = self.monitor.with(|checker| checker.max_blocks());
        self.measurements.print();
        if let Some(file) = std::env::var_os("NETWEFT_SIM_JSON") {
            let mut measurements = self.measurements.json();
            measurements["seed"] = seed.into();
            std::fs::write(file, format!("{measurements:#}\n")).unwrap();
        }
        assert_eq!(max_blocks, 2, "blocks of a node in a pool at most");
        // The checks are only meaningful if blocks were assigned again.
        let assignments = self.monitor.with(|checker| checker.assignment_count());
        assert!(
            assignments > 2 * self.size,
            "only {assignments} blocks were assigned"
        );
    }
}

async fn print_progress(monitor: Arc<InvariantMonitor>) {
    let start = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let [subnets, assignments, networks] = monitor.with(|checker| {
            [
                checker.subnet_count(),
                checker.assignment_count(),
                checker.networks().len(),
            ]
        });
        println!(
            "  {} s: {networks} NodeNetworks, {subnets} NodeSubnets, {assignments} assignments",
            start.elapsed().as_secs()
        );
    }
}

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .ok()
            .unwrap_or_else(|| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}
