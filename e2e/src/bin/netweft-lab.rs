//! The namespace lab: nodes made of namespaces, a shared segment or a fabric, the released binaries, and the ping matrix in seconds.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use netweft_e2e::lab::bgp::{self, Story};
use netweft_e2e::lab::drift;
use netweft_e2e::lab::fabric::{self, Routers};
use netweft_e2e::lab::faults;
use netweft_e2e::lab::growth;
use netweft_e2e::lab::migrate::{self, Tour};
use netweft_e2e::lab::scale::{self, Author, Shape};
use netweft_e2e::lab::trouble;
use netweft_e2e::lab::{self, Families, LabMode, Options};
use netweft_e2e::matrix::Matrix;

/// Nodes made of namespaces, some pods each, and who reaches whom.
#[derive(Parser)]
#[command(name = "netweft-lab", version)]
struct Command {
    /// How packets travel between nodes; one lab for each. "fabric" is underlay over routers that are not ours,
    /// "bgp" what BGP has to bear, "scale" BGP of many nodes, "growth" nodes that get blocks and give them back, "migrate" changes
    /// from mode to mode.
    #[arg(long, value_delimiter = ',', value_parser = what, default_value = "vxlan")]
    mode: Vec<What>,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t = PodInterface::Routed)]
    pod_interface: PodInterface,
    /// IP families of nodes and pods: 4, 6, or 46 for both; one lab for each.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "4")]
    family: Vec<Families>,
    /// The nodes' own rp_filter, one lab for each; fabrics have the strict one.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0,1,2")]
    rp_filter: Vec<u8>,
    /// Whose routers a fabric is made of, one lab for each.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "frr")]
    routers: Vec<Routers>,
    /// What happens in labs of mode bgp, one lab for each.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "restarts,edits,hostile"
    )]
    story: Vec<Story>,
    /// Who speaks with whom in labs of mode scale, one lab for each.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "mesh,reflectors"
    )]
    shape: Vec<Shape>,
    /// The modes that labs of mode migrate change to and from.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "vxlan,udp,host-gw,vxlan-cross-subnet,underlay,udp-cross-subnet"
    )]
    between: Vec<LabMode>,
    /// Every ordered pair of these, or a ring.
    #[arg(long, value_enum, default_value = "ring")]
    tour: Tour,
    /// Milliseconds between two pings of a pair in labs of mode migrate; in those of modes faults and trouble 10 at least.
    #[arg(long, default_value_t = 1)]
    interval: u64,
    /// In labs of mode trouble, set the machine's clock forth and back by days: where nobody else lives by it.
    #[arg(long)]
    set_clock: bool,
    /// Leave the (last) lab up and say how to enter its nodes.
    #[arg(long)]
    keep: bool,
    /// Folder with texts of what the kernel should look like: compare.
    #[arg(long)]
    snapshots: Option<PathBuf>,
    /// Do not compare but print what the kernel looks like, for hack/snapshots.sh.
    #[arg(long, requires = "snapshots")]
    tell_snapshots: bool,
    /// Folder with the binaries; default: where this program is.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Folder with BIRD's programs, for modes that need them: what e2e/cluster/bird.sh prints.
    #[arg(long, env = "NETWEFT_BIRD_BIN")]
    bird: Option<PathBuf>,
    /// Folder with the routers of a fabric: what e2e/routers/root.sh prints.
    #[arg(long, env = "NETWEFT_ROUTERS")]
    routers_root: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PodInterface {
    Routed,
    Bridge,
}

/// A kind of lab.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Three nodes and one mode.
    Mode(LabMode),
    /// Racks and routers.
    Fabric,
    /// Three nodes in a mesh, and what happens to them.
    Bgp,
    /// Many nodes.
    Scale,
    /// Three nodes and VXLAN: one fills and empties, and one has a pod that asks for another pool.
    Growth,
    /// Three nodes that change from mode to mode.
    Migrate,
    /// Three nodes and VXLAN: somebody tampers with one.
    Drift,
    /// The same: agents die, a node joins, one is booted.
    Faults,
    /// Three nodes: one gets another uplink, another address, another time.
    Trouble,
}

fn what(text: &str) -> Result<What, String> {
    match text {
        "fabric" => Ok(What::Fabric),
        "bgp" => Ok(What::Bgp),
        "scale" => Ok(What::Scale),
        "growth" => Ok(What::Growth),
        "migrate" => Ok(What::Migrate),
        "drift" => Ok(What::Drift),
        "faults" => Ok(What::Faults),
        "trouble" => Ok(What::Trouble),
        _ => LabMode::from_str(text, false).map(What::Mode).map_err(|_| {
            let modes = LabMode::value_variants().iter().map(ToString::to_string);
            format!(
                "write fabric, bgp, scale, growth, migrate, drift, faults, trouble, or one of {}",
                modes.collect::<Vec<_>>().join(", ")
            )
        }),
    }
}

/// A lab to run.
enum Job {
    Mode(Options),
    Fabric(fabric::Options),
    Bgp(bgp::Options),
    Scale(scale::Options),
    Growth(Options),
    Drift(Options),
    Faults(Options),
    Trouble(Options, bool),
    Migrate(Options, migrate::Plan),
}

impl Job {
    fn run(&self, keep: bool) -> anyhow::Result<Vec<Matrix>> {
        match self {
            Self::Mode(options) => lab::run(options, keep),
            Self::Fabric(options) => fabric::run(options, keep),
            Self::Bgp(options) => bgp::run(options, keep).map(|()| Vec::new()),
            Self::Growth(options) => growth::run(options, keep).map(|()| Vec::new()),
            Self::Drift(options) => drift::run(options, keep).map(|()| Vec::new()),
            Self::Faults(options) => faults::run(options, keep).map(|()| Vec::new()),
            Self::Trouble(options, may_set_clock) => {
                trouble::run(options, *may_set_clock, keep).map(|()| Vec::new())
            }
            Self::Migrate(options, plan) => migrate::run(options, plan, keep).map(|()| Vec::new()),
            Self::Scale(options) => scale::run(options, keep).map(|(_, matrix)| vec![matrix]),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Mode(options) => options.to_string(),
            Self::Fabric(options) => options.to_string(),
            Self::Bgp(options) => options.to_string(),
            Self::Scale(options) => options.to_string(),
            Self::Growth(options) => growth::about(options),
            Self::Drift(options) => drift::about(options),
            Self::Faults(options) => faults::about(options),
            Self::Trouble(options, _) => trouble::about(options),
            Self::Migrate(options, _) => migrate::about(options),
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Command::parse();
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces and needs root: use sudo"
    );
    let here = std::env::current_exe()?
        .parent()
        .context("this program is in a folder")?
        .to_owned();
    let binaries = command.binaries.clone().unwrap_or(here);
    let masquerading = lab::masquerades()?;
    if !masquerading {
        println!("skipped: pods ping other nodes (this kernel cannot masquerade)");
    }
    let mut jobs = Vec::new();
    for what in &command.mode {
        for families in &command.family {
            match what {
                // One family does not make the other's labs fail.
                What::Mode(mode) if !mode.carries(*families) && command.family.len() > 1 => {}
                What::Mode(mode) => {
                    let options = command.modes(&binaries, masquerading, *mode, *families);
                    jobs.extend(options.into_iter().map(Job::Mode));
                }
                What::Fabric => jobs.extend(command.fabrics(&binaries, *families)?),
                What::Bgp => jobs.extend(command.stories(&binaries, *families)),
                What::Growth | What::Drift | What::Faults => {
                    let mode = LabMode::Vxlan;
                    let options = command.modes(&binaries, masquerading, mode, *families);
                    let job = match what {
                        What::Drift => Job::Drift,
                        What::Faults => Job::Faults,
                        _ => Job::Growth,
                    };
                    jobs.extend(options.into_iter().map(job));
                }
                What::Trouble => {
                    let mode = LabMode::Vxlan;
                    let options = command.modes(&binaries, masquerading, mode, *families);
                    let trouble = |options| Job::Trouble(options, command.set_clock);
                    jobs.extend(options.into_iter().map(trouble));
                }
                What::Migrate => {
                    jobs.extend(command.migrations(&binaries, masquerading, *families));
                }
                What::Scale => jobs.extend(command.shapes(&binaries)),
            }
        }
    }
    run(&jobs, command.keep)
}

impl Command {
    fn modes(
        &self,
        binaries: &Path,
        masquerading: bool,
        mode: LabMode,
        families: Families,
    ) -> Vec<Options> {
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
            binaries: binaries.to_owned(),
            bird: self.bird.clone(),
            snapshots: self
                .snapshots
                .clone()
                .map(|folder| (folder, self.tell_snapshots)),
            sizes: Some(rp_filter) == first,
            pods_per_node: 2,
            pings: Duration::from_millis(self.interval.max(10)),
            later: Vec::new(),
            masquerading,
        };
        self.rp_filter.iter().map(options).collect()
    }

    fn migrations(&self, binaries: &Path, masquerading: bool, families: Families) -> Vec<Job> {
        let modes: Vec<LabMode> = self
            .between
            .iter()
            .copied()
            .filter(|mode| mode.carries(families))
            .collect();
        let plan = migrate::Plan {
            modes,
            tour: self.tour,
            interval: Duration::from_millis(self.interval),
        };
        let options = self.modes(binaries, masquerading, LabMode::Vxlan, families);
        let migration = |options: Options| {
            let options = Options {
                pods_per_node: 1,
                ..options
            };
            Job::Migrate(options, plan.clone())
        };
        options.into_iter().map(migration).collect()
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

    fn stories(&self, binaries: &Path, families: Families) -> Vec<Job> {
        let options = |story: &Story| bgp::Options {
            story: *story,
            families,
            binaries: binaries.to_owned(),
            bird: self.bird.clone(),
        };
        self.story.iter().map(options).map(Job::Bgp).collect()
    }

    fn shapes(&self, binaries: &Path) -> Vec<Job> {
        let options = |shape: &Shape| scale::Options {
            shape: *shape,
            author: Author::Agents,
            binaries: binaries.to_owned(),
            bird: self.bird.clone(),
        };
        self.shape.iter().map(options).map(Job::Scale).collect()
    }
}

/// One lab after the other, and a table at the end.
fn run(jobs: &[Job], keep: bool) -> anyhow::Result<ExitCode> {
    let (mut failed, mut reachable, mut pairs) = (0, 0, 0);
    let mut table = String::new();
    for (n, job) in jobs.iter().enumerate() {
        let started = Instant::now();
        let outcome = job.run(keep && n + 1 == jobs.len());
        let name = job.name();
        let said = match &outcome {
            Ok(matrices) => {
                let answered: usize = matrices.iter().map(Matrix::reachable).sum();
                let asked: usize = matrices.iter().map(Matrix::pairs).sum();
                (reachable, pairs) = (reachable + answered, pairs + asked);
                format!("reachable {answered}/{asked} pairs")
            }
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed += 1;
                "FAILED".to_owned()
            }
        };
        let seconds = started.elapsed().as_secs_f32();
        table += &format!("lab| {name:60} {said:24} {seconds:5.1} s\n");
    }
    print!("{table}");
    println!("lab: {} passed, {failed} failed", jobs.len() - failed);
    if failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("reachable: {reachable}/{pairs} pairs");
    Ok(ExitCode::SUCCESS)
}
