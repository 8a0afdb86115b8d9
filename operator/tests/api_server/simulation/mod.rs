//! Many nodes, which exist for the API server only, and two operators: the life of nodes as far as addresses go.
//!
//! Every event of NodeSubnets is held against the rules of the [`Ledger`] from before the first Node on. Agents, kubelets and the
//! garbage collector are played; API server, etcd and operators are the real programs.
//!
//! | variable | meaning |
//! |---|---|
//! | `NETWEFT_SIM_NODES` | how many Nodes; 200 by default |
//! | `NETWEFT_SIM_SEED` | what chance begins with; the same gives the same choices |
//! | `NETWEFT_SIM_JSON` | a file for the figures |

mod agents;
mod churn;
mod figures;
mod nodes;
mod operators;
mod pods;
mod pools;
pub mod random;
mod wire;

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::control_plane::{CHART, ControlPlane};
use crate::ledger::{Book, Ledger, Rules};
use agents::Agents;
use churn::{Fate, share};
use figures::Figures;
use nodes::Nodes;
use operators::Pair;
use random::Random;

/// By how much one event may reach the ledger later than another.
const LAG: Duration = Duration::from_secs(1);

/// A cluster of many nodes.
struct Simulation {
    /// Ended before what they ask is.
    _tasks: JoinSet<()>,
    nodes: Nodes,
    agents: Agents,
    pair: Pair,
    ledger: Arc<Ledger>,
    plane: Arc<ControlPlane>,
    figures: Figures,
    random: Random,
    /// Nodes at the beginning.
    size: usize,
    /// Nodes that are there.
    live: Vec<usize>,
    /// Those of them that have more pods than go into one block.
    full: Vec<usize>,
    /// Number of the next new Node.
    next: usize,
    grace: Duration,
    look: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_with_dying_leaders_keep_unique_block_owners() {
    let size = from_environment("NETWEFT_SIM_NODES", 200);
    let seed = from_environment("NETWEFT_SIM_SEED", 1);
    println!("simulation: NETWEFT_SIM_NODES={size} NETWEFT_SIM_SEED={seed}");
    let mut fates = vec![Fate::Killed, Fate::Stopped, Fate::Killed];
    if size >= 1000 {
        fates.extend([Fate::Killed, Fate::Stopped]);
    }
    let mut simulation = Simulation::begin(size, seed, fates.len()).await;
    simulation.join_all().await;
    simulation.acknowledge().await;
    simulation.pods().await;
    for (number, fate) in fates.into_iter().enumerate() {
        simulation.round(number, fate).await;
    }
    simulation.end_of("churn").await;
    simulation.reuse().await;
    simulation.end_of("reuse").await;
    simulation.settle("the end", true).await;
    simulation.finish(seed).await;
}

impl Simulation {
    async fn begin(size: usize, seed: u64, rounds: usize) -> Self {
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
        // Room for all that is held at a time, and no more: what was given back has to be given again.
        let count = size + 60 + share(size) * (4 * rounds + 2);
        let seconds = |scale: usize, least: u64| least + u64::try_from(size / scale).unwrap();
        let (grace, look) = (seconds(250, 3), seconds(500, 1));
        let (grace, look) = (Duration::from_secs(grace), Duration::from_secs(look));
        let rules = Rules {
            grace: Some(grace),
            lag: LAG,
            look,
            blocks: pools::make(&admin, count).await,
            ..Rules::default()
        };
        let ledger = Arc::new(Ledger::begin_by(&admin, rules).await);
        let mut tasks = JoinSet::new();
        tasks.spawn(nodes::collect(admin.clone(), ledger.clone()));
        tasks.spawn(tell_progress(ledger.clone()));
        let flags = ["--lease-duration=2s", "--surplus-delay=2s"].map(str::to_owned);
        let flags = [
            flags.to_vec(),
            vec![format!("--orphan-grace={}s", grace.as_secs())],
        ];
        let pair = Pair::start(&plane, &ledger, flags.concat()).await;
        Self {
            nodes: Nodes::new(&admin, &ledger),
            agents: Agents::new(&admin, &ledger),
            figures: Figures::begin(size, &plane, &pair).await,
            pair,
            ledger,
            plane,
            random: Random::of(seed),
            size,
            live: (0..size).collect(),
            full: Vec::new(),
            next: size,
            grace,
            look,
            _tasks: tasks,
        }
    }

    /// All Nodes are created as fast as it goes; no agent runs yet.
    async fn join_all(&mut self) {
        let begun = Instant::now();
        self.nodes.join(&self.live).await;
        self.figures
            .note("seconds to create all Nodes", begun.elapsed().as_secs_f64());
        self.until("every node has its blocks", |book| {
            book.unsettled(|_| 1, false).is_empty()
        })
        .await;
        self.figures
            .note("seconds to full assignment", begun.elapsed().as_secs_f64());
        self.until("every node is told", Book::all_assigned).await;
        self.end_of("join").await;
    }

    /// The agents start.
    async fn acknowledge(&mut self) {
        self.agents.start();
        self.settle("acknowledged", false).await;
        self.end_of("acknowledge").await;
    }

    /// Waits until all is as it should be; returns whether the order in which blocks were given could be looked at, which takes
    /// one leader from the last time on.
    async fn settle(&mut self, what: &str, at_last: bool) -> bool {
        let wanted = self.agents.wanted();
        self.until(&format!("settled: {what}"), |book| {
            self.agents.have_said_all(book)
                && book.all_assigned()
                && book.unsettled(&wanted, at_last).is_empty()
        })
        .await;
        let foreign = self.ledger.with(|book| book.foreign());
        assert_eq!(foreign, [""; 0]);
        let same = self.pair.same_leader();
        self.ledger.with(|book| {
            if same {
                book.at_rest();
            } else {
                book.leads_anew();
            }
        });
        self.fail_on_breaches();
        same
    }

    /// Waits for the ledger to say so, and ends with the first breach.
    async fn until(&self, what: &str, so: impl Fn(&Book) -> bool) {
        let patience = Duration::from_secs(60 + u64::try_from(self.size / 10).unwrap());
        let begun = Instant::now();
        while !self.ledger.with(|book| so(book)) {
            self.fail_on_breaches();
            if begun.elapsed() > patience {
                let wrong = self
                    .ledger
                    .with(|book| book.unsettled(self.agents.wanted(), false));
                let some: Vec<_> = wrong.iter().take(5).collect();
                panic!(
                    "{what}: not within {patience:?}; {} are wrong: {some:#?}",
                    wrong.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.fail_on_breaches();
        println!("  {what}: after {:.1} s", begun.elapsed().as_secs_f64());
    }

    fn fail_on_breaches(&self) {
        let breaches = self.ledger.with(|book| book.breaches().to_vec());
        let some: Vec<_> = breaches.iter().take(10).collect();
        assert!(
            breaches.is_empty(),
            "{} breaches: {some:#?}",
            breaches.len()
        );
    }

    async fn end_of(&mut self, phase: &'static str) {
        self.figures.end_of(phase, &self.plane, &self.pair).await;
    }

    async fn finish(mut self, seed: u64) {
        #[expect(clippy::cast_precision_loss, reason = "figures are rounded anyway")]
        let memory = self.pair.memory().await as f64;
        self.figures.note("MiB of the leader at most", memory);
        let most = self.ledger.with(|book| book.most());
        self.figures.print();
        if let Some(file) = std::env::var_os("NETWEFT_SIM_JSON") {
            let mut figures = self.figures.json();
            figures["seed"] = seed.into();
            std::fs::write(file, format!("{figures:#}\n")).unwrap();
        }
        assert_eq!(most, 2, "blocks of a node in a pool at most");
        // What was checked has to have been there.
        let given = self.ledger.with(|book| book.given());
        assert!(given > 2 * self.size, "only {given} blocks were given");
    }
}

async fn tell_progress(ledger: Arc<Ledger>) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let [held, given, networks] =
            ledger.with(|book| [book.held(), book.given(), book.networks().len()]);
        println!(
            "  {} s: {networks} NodeNetworks, {held} NodeSubnets, {given} were given",
            begun.elapsed().as_secs()
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
