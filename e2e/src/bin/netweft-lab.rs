//! Command line of the namespace lab: nodes in network namespaces, connected by a segment or a fabric, with the released binaries.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use netweft_e2e::lab::scenarios::fabric::{self, Routers};
use netweft_e2e::lab::scenarios::mode_changes::{self, Tour};
use netweft_e2e::lab::scenarios::scale::{self, ConfigSource};
use netweft_e2e::lab::scenarios::{
    Kind, Scenario, abuse, agent_failures, bgp, drift, growth, reconfiguration,
};
use netweft_e2e::lab::{self, Families, LabMode, Options};
use netweft_e2e::traffic::matrix::Matrix;

/// Runs scenarios in clusters whose nodes are network namespaces.
#[derive(Parser)]
#[command(name = "netweft-lab", version)]
struct Command {
    /// Scenarios, one lab for each.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "connectivity"
    )]
    scenario: Vec<Scenario>,
    /// Modes, one lab for each; by default the modes of the scenario.
    #[arg(long, value_delimiter = ',', value_enum)]
    mode: Vec<LabMode>,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t = PodInterface::Routed)]
    pod_interface: PodInterface,
    /// IP families of nodes and pods: 4, 6, or 46 for both; one lab for each.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "4")]
    family: Vec<Families>,
    /// Values of the nodes' rp_filter, one lab for each; fabrics use strict mode, 1.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0,1,2")]
    rp_filter: Vec<u8>,
    /// BGP implementations of a fabric's routers, one lab for each.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "frr")]
    routers: Vec<Routers>,
    /// Order of mode changes: a ring, or all ordered pairs.
    #[arg(long, value_enum, default_value = "ring")]
    tour: Tour,
    /// Milliseconds between two pings of a pair; at least 10, except for mode changes.
    #[arg(long, default_value_t = 1)]
    interval: u64,
    /// Seconds of attacks, with running agents and again with killed agents.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// In reconfigurations, also change the clock of this machine by days. Only for machines without other use.
    #[arg(long)]
    set_clock: bool,
    /// Keep the last lab running and print commands to enter its nodes.
    #[arg(long)]
    keep: bool,
    /// Folder with snapshots of the kernel state, to compare with.
    #[arg(long)]
    snapshots: Option<PathBuf>,
    /// Print the kernel state instead of comparing, for hack/snapshots.sh.
    #[arg(long = "tell-snapshots", requires = "snapshots")]
    print_snapshots: bool,
    /// Folder with the binaries; by default the folder of this program.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Folder with `bird` and `birdc`, as e2e/cluster/bird.sh prints; for modes that use BIRD.
    #[arg(long, env = "NETWEFT_BIRD_BIN")]
    bird: Option<PathBuf>,
    /// Root folder of a fabric's routers, as e2e/routers/root.sh prints.
    #[arg(long, env = "NETWEFT_ROUTERS")]
    routers_root: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PodInterface {
    Routed,
    Bridge,
}

/// A lab to run.
enum Job {
    Nodes {
        scenario: Scenario,
        options: Options,
        set_clock: bool,
        attack_time: Duration,
    },
    ModeChanges(Options, mode_changes::Plan),
    Fabric(fabric::Options),
    Bgp(bgp::Options),
    Scale(scale::Options),
}

impl Job {
    fn run(&self, keep: bool) -> anyhow::Result<Vec<Matrix>> {
        let no_matrices = |()| Vec::new();
        match self {
            Self::Nodes {
                scenario,
                options,
                set_clock,
                attack_time,
            } => match scenario {
                Scenario::Abuse => abuse::run(options, *attack_time, keep).map(no_matrices),
                Scenario::Growth => growth::run(options, keep).map(no_matrices),
                Scenario::Drift => drift::run(options, keep).map(no_matrices),
                Scenario::AgentFailures => agent_failures::run(options, keep).map(no_matrices),
                Scenario::Reconfiguration => {
                    reconfiguration::run(options, *set_clock, keep).map(no_matrices)
                }
                _ => lab::run(options, keep),
            },
            Self::ModeChanges(options, plan) => {
                mode_changes::run(options, plan, keep).map(no_matrices)
            }
            Self::Fabric(options) => fabric::run(options, keep),
            Self::Bgp(options) => bgp::run(options, keep).map(no_matrices),
            Self::Scale(options) => scale::run(options, keep).map(|(_, matrix)| vec![matrix]),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Nodes {
                scenario, options, ..
            } => match scenario {
                Scenario::Connectivity => options.to_string(),
                _ => format!("{scenario}: {options}"),
            },
            Self::ModeChanges(options, _) => format!("{}: {options}", Scenario::ModeChanges),
            Self::Fabric(options) => options.to_string(),
            Self::Bgp(options) => options.to_string(),
            Self::Scale(options) => options.to_string(),
        }
    }
}

/// Values that all labs of a run share.
struct Machine {
    binaries: PathBuf,
    masquerading: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Command::parse();
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab creates network namespaces and needs root: use sudo"
    );
    let own_folder = std::env::current_exe()?
        .parent()
        .context("the path of this program has no parent")?
        .to_owned();
    let machine = Machine {
        binaries: command.binaries.clone().unwrap_or(own_folder),
        masquerading: lab::masquerades()?,
    };
    if !machine.masquerading {
        println!("skipped: pods ping other nodes (this kernel cannot masquerade)");
    }
    let mut jobs = Vec::new();
    for scenario in &command.scenario {
        let modes = scenario.in_modes(&command.mode)?;
        for families in &command.family {
            jobs.extend(command.jobs(&machine, *scenario, &modes, *families)?);
        }
    }
    run(&jobs, command.keep)
}

impl Command {
    fn jobs(
        &self,
        machine: &Machine,
        scenario: Scenario,
        modes: &[LabMode],
        families: Families,
    ) -> anyhow::Result<Vec<Job>> {
        Ok(match scenario.kind() {
            Kind::Nodes => {
                // With several families, skip modes that do not support one of them.
                let several = self.family.len() > 1;
                let modes = modes
                    .iter()
                    .filter(|mode| mode.carries(families) || !several);
                let options = modes.flat_map(|mode| self.options(machine, *mode, families));
                options
                    .map(|options| Job::Nodes {
                        scenario,
                        options,
                        set_clock: self.set_clock,
                        attack_time: Duration::from_secs(self.seconds),
                    })
                    .collect()
            }
            Kind::ModeChanges => self.mode_changes(machine, modes, families),
            Kind::Fabric => self.fabrics(&machine.binaries, families)?,
            Kind::Bgp(scenario) => vec![Job::Bgp(bgp::Options {
                scenario,
                families,
                binaries: machine.binaries.clone(),
                bird: self.bird.clone(),
            })],
            Kind::Scale(topology) => vec![Job::Scale(scale::Options {
                topology,
                config_source: ConfigSource::Agents,
                binaries: machine.binaries.clone(),
                bird: self.bird.clone(),
            })],
        })
    }

    fn options(&self, machine: &Machine, mode: LabMode, families: Families) -> Vec<Options> {
        let pod_interface = match self.pod_interface {
            PodInterface::Routed => netweft_crds::PodInterface::Routed,
            PodInterface::Bridge => netweft_crds::PodInterface::Bridge,
        };
        let first = self.rp_filter.first();
        let options = |rp_filter: &u8| Options {
            mode,
            pod_interface,
            families,
            rp_filter: *rp_filter,
            binaries: machine.binaries.clone(),
            bird: self.bird.clone(),
            snapshots: self
                .snapshots
                .clone()
                .map(|folder| (folder, self.print_snapshots)),
            sizes: Some(rp_filter) == first,
            pods_per_node: 2,
            ping_interval: Duration::from_millis(self.interval.max(10)),
            later_modes: Vec::new(),
            masquerading: machine.masquerading,
        };
        self.rp_filter.iter().map(options).collect()
    }

    fn mode_changes(&self, machine: &Machine, modes: &[LabMode], families: Families) -> Vec<Job> {
        let modes = modes.iter().copied();
        let plan = mode_changes::Plan {
            modes: modes.filter(|mode| mode.carries(families)).collect(),
            tour: self.tour,
            interval: Duration::from_millis(self.interval),
        };
        let options = self.options(machine, LabMode::Vxlan, families);
        let job = |options: Options| {
            let options = Options {
                pods_per_node: 1,
                ..options
            };
            Job::ModeChanges(options, plan.clone())
        };
        options.into_iter().map(job).collect()
    }

    fn fabrics(&self, binaries: &Path, families: Families) -> anyhow::Result<Vec<Job>> {
        let root = fabric::root(self.routers_root.as_deref())?;
        let options = |routers: &Routers| fabric::Options {
            routers: *routers,
            families,
            binaries: binaries.to_owned(),
            bird: self.bird.clone(),
            root: root.clone(),
        };
        Ok(self.routers.iter().map(options).map(Job::Fabric).collect())
    }
}

/// Runs all labs one after the other, and prints a table of the results.
fn run(jobs: &[Job], keep: bool) -> anyhow::Result<ExitCode> {
    let (mut failed, mut reachable, mut pairs) = (0, 0, 0);
    let mut table = String::new();
    for (n, job) in jobs.iter().enumerate() {
        let started = Instant::now();
        let outcome = job.run(keep && n + 1 == jobs.len());
        let name = job.name();
        let result = match &outcome {
            Ok(matrices) => {
                let answered: usize = matrices.iter().map(Matrix::reachable).sum();
                let requested: usize = matrices.iter().map(Matrix::pairs).sum();
                (reachable, pairs) = (reachable + answered, pairs + requested);
                format!("reachable {answered}/{requested} pairs")
            }
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed += 1;
                "FAILED".to_owned()
            }
        };
        let seconds = started.elapsed().as_secs_f32();
        table += &format!("lab| {name:60} {result:24} {seconds:5.1} s\n");
    }
    print!("{table}");
    println!("lab: {} passed, {failed} failed", jobs.len() - failed);
    if failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("reachable: {reachable}/{pairs} pairs");
    Ok(ExitCode::SUCCESS)
}
