//! The demo and the suite on a real cluster. Run it where kubectl, helm and docker reach the cluster:
//! `e2e/cluster/cluster.sh exec netweft-e2e …`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use netweft_e2e::cluster::{Checks, Cluster, Install, Probes, install, run};
use netweft_e2e::command::{output, words};
use netweft_e2e::lab::{Families, LabMode};

/// Installs netweft on a cluster and shows or checks what it does.
#[derive(Parser)]
#[command(name = "netweft-e2e", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install, ping, show.
    Demo(Target),
    /// Install and check.
    Suite(Suite),
}

#[derive(Args)]
struct Target {
    /// The project's folder.
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
struct Suite {
    #[command(flatten)]
    target: Target,
    /// What to check.
    #[arg(long, value_enum, default_value_t = Checks::Life)]
    checks: Checks,
    /// Only checks with this in their name.
    #[arg(long, default_value = "")]
    only: String,
    /// How packets travel: the mode of the examples, changed to this.
    #[arg(long, value_enum, default_value_t = LabMode::Vxlan)]
    mode: LabMode,
    /// How pods are attached: the pool of the examples, changed to this.
    #[arg(long, default_value = "routed")]
    pod_interface: String,
    /// IP families of the pools, which the cluster must have: of the examples' pools those.
    #[arg(long, value_enum, default_value_t = Families::V4)]
    family: Families,
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse().verb {
        Verb::Demo(target) => demo(target),
        Verb::Suite(suite) => check(suite),
    }
}

fn prepare(
    target: Target,
    (mode, families): (LabMode, Families),
    pod_interface: &str,
    direct: bool,
) -> anyhow::Result<Cluster> {
    let Target {
        project,
        tag,
        bird_tag,
    } = target;
    let image = format!("netweft/testbox:{tag}");
    println!("install the chart and the examples ...");
    let took = install(&Install {
        project: project.clone(),
        tag: tag.clone(),
        bird_tag: bird_tag.clone(),
        mode,
        direct,
        pod_interface: pod_interface.to_owned(),
        families,
    })?;
    println!(
        "every node is Ready {:.1} s after `helm install`",
        took.as_secs_f32()
    );
    println!("start the test pods ...");
    Ok(Cluster {
        probes: Probes::create(&image)?,
        image,
        project,
        mode,
        tag,
        bird_tag,
    })
}

fn demo(target: Target) -> anyhow::Result<ExitCode> {
    let cluster = prepare(target, (LabMode::Vxlan, Families::V4), "routed", false)?;
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
    let mut cluster = prepare(target, (mode, family), &pod_interface, true)?;
    let (passed, failed) = run(&mut cluster, checks, &only);
    println!("kind: {passed} passed, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

const GUIDE: &str = "
The cluster stays up. To look around:
  e2e/cluster/cluster.sh exec bash                                       a shell with kubectl, helm and docker
  e2e/cluster/cluster.sh exec kubectl get ippools,networkmodes,nodesubnets,nodenetworks
  e2e/cluster/cluster.sh exec kubectl -n netweft-e2e get pods -o wide    the pods that pinged
  e2e/cluster/cluster.sh exec docker exec netweft-worker ip route        what the agent made of it
To take it all away:
  make down";
