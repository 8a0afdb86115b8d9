//! The demo and the test suite on a kind cluster. This program needs kubectl, helm and docker with access to the cluster:
//! `e2e/cluster/cluster.sh exec netweft-e2e …`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use netweft_e2e::harness::command::{output, words};
use netweft_e2e::kind::{
    Checks, Cluster, Install, Probes, Residue, install, is_installed, run, upgrade,
};
use netweft_e2e::lab::{Families, LabMode};

/// Installs netweft on a cluster and demonstrates or tests it.
#[derive(Parser)]
#[command(name = "netweft-e2e", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install netweft, show its objects, and ping between all pods and nodes.
    Demo(Target),
    /// Install netweft and run checks.
    Suite(Suite),
    /// Install the previous version, upgrade, downgrade, and upgrade partially.
    Upgrade(Upgrade),
}

#[derive(Args)]
struct Target {
    /// Folder of the project.
    #[arg(long, default_value = ".")]
    project: PathBuf,
    /// Tag of the images in the cluster.
    #[arg(long)]
    tag: String,
    /// Tag of BIRD's image.
    #[arg(long)]
    bird_tag: String,
}

#[derive(Args)]
struct Upgrade {
    #[command(flatten)]
    target: Target,
    /// Folder of the project at the previous version.
    #[arg(long)]
    old_project: PathBuf,
    /// Tag of the previous version's images.
    #[arg(long)]
    old_tag: String,
    /// Tag of the previous version's BIRD image.
    #[arg(long)]
    old_bird_tag: String,
    /// The mode.
    #[arg(long, value_enum, default_value_t = LabMode::Vxlan)]
    mode: LabMode,
}

#[derive(Args)]
struct Suite {
    #[command(flatten)]
    target: Target,
    /// The set of checks.
    #[arg(long, value_enum, default_value_t = Checks::Life)]
    checks: Checks,
    /// Run only checks whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// The mode, which replaces the mode of e2e/manifests.
    #[arg(long, value_enum, default_value_t = LabMode::Vxlan)]
    mode: LabMode,
    /// The podInterface of the pools, which replaces the value of e2e/manifests.
    #[arg(long, default_value = "routed")]
    pod_interface: String,
    /// IP families, which the cluster must have. Only the pools of these families are created.
    #[arg(long, value_enum, default_value_t = Families::V4)]
    family: Families,
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse().verb {
        Verb::Demo(target) => demo(target),
        Verb::Suite(suite) => check(suite),
        Verb::Upgrade(versions) => change_version(versions),
    }
}

/// The installation of a version.
fn version(target: Target, mode: LabMode, families: Families) -> Install {
    let Target {
        project,
        tag,
        bird_tag,
    } = target;
    Install {
        project,
        tag,
        bird_tag,
        mode,
        direct: true,
        pod_interface: "routed".to_owned(),
        families,
    }
}

/// Installs a version, and starts the test pods from the image with the tag `tag`.
fn prepare(version: &Install, tag: &str) -> anyhow::Result<Cluster> {
    let image = format!("netweft/testbox:{tag}");
    let before = if is_installed() {
        None
    } else {
        Some(Residue::bare()?)
    };
    println!("install the chart, a NetworkMode and an IPPool ...");
    let took = install(version)?;
    println!(
        "every node is Ready {:.1} s after `helm install`",
        took.as_secs_f32()
    );
    println!("start the test pods ...");
    Ok(Cluster {
        probes: Probes::create(&image)?,
        image,
        project: version.project.clone(),
        mode: version.mode,
        tag: version.tag.clone(),
        bird_tag: version.bird_tag.clone(),
        before,
    })
}

fn change_version(versions: Upgrade) -> anyhow::Result<ExitCode> {
    let Upgrade {
        target,
        old_project,
        old_tag,
        old_bird_tag,
        mode,
    } = versions;
    let old = Target {
        project: old_project,
        tag: old_tag,
        bird_tag: old_bird_tag,
    };
    let (old, new) = (
        version(old, mode, Families::V4),
        version(target, mode, Families::V4),
    );
    let cluster = prepare(&old, &new.tag)?;
    let outcome = upgrade(&cluster, &old, &new);
    if let Err(error) = &outcome {
        println!("{error:#}");
    }
    let (passed, failed) = if outcome.is_ok() { (1, 0) } else { (0, 1) };
    Ok(print_summary(passed, failed))
}

/// Prints the numbers of passed and failed checks in the format that tests/run.sh parses.
fn print_summary(passed: usize, failed: usize) -> ExitCode {
    println!("kind: {passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn demo(target: Target) -> anyhow::Result<ExitCode> {
    let version = Install {
        direct: false,
        ..version(target, LabMode::Vxlan, Families::V4)
    };
    let cluster = prepare(&version, &version.tag)?;
    for kinds in [
        "nodes",
        "ippools",
        "networkmodes",
        "nodesubnets",
        "nodenetworks",
    ] {
        println!(
            "\n$ kubectl get {kinds}\n{}",
            output(&mut words(&format!("kubectl get {kinds}")))?.trim_end()
        );
    }
    println!("\nEvery pod pings every pod and every node, every node pings every pod:\n");
    let matrix = cluster.probes.matrix(&[])?;
    println!("{matrix}");
    matrix.check()?;
    println!("{GUIDE}");
    Ok(ExitCode::SUCCESS)
}

fn check(suite: Suite) -> anyhow::Result<ExitCode> {
    let Suite {
        target,
        checks,
        only,
        mode,
        pod_interface,
        family,
    } = suite;
    let version = Install {
        pod_interface,
        ..version(target, mode, family)
    };
    let mut cluster = prepare(&version, &version.tag)?;
    let (passed, failed) = run(&mut cluster, checks, &only);
    Ok(print_summary(passed, failed))
}

const GUIDE: &str = "
The cluster keeps running. To inspect it:
  e2e/cluster/cluster.sh exec bash                                       a shell with kubectl, helm and docker
  e2e/cluster/cluster.sh exec kubectl get ippools,networkmodes,nodesubnets,nodenetworks
  e2e/cluster/cluster.sh exec kubectl -n netweft-e2e get pods -o wide    the test pods
  e2e/cluster/cluster.sh exec docker exec netweft-worker ip route        the routes of a node
To remove the cluster:
  make down";
