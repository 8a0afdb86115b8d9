//! The namespace lab: three nodes, a shared segment, the released binaries, and the ping matrix in seconds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use netweft_e2e::lab::{self, Families, LabMode, Options};
use netweft_e2e::matrix::Matrix;

/// Three nodes made of namespaces, two pods each, and who reaches whom.
#[derive(Parser)]
#[command(name = "netweft-lab", version)]
struct Command {
    /// How packets travel between nodes; one lab for each.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "vxlan")]
    mode: Vec<LabMode>,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t = PodInterface::Routed)]
    pod_interface: PodInterface,
    /// IP families of nodes and pods: 4, 6, or 46 for both; one lab for each.
    #[arg(long, value_delimiter = ',', value_parser = families, default_value = "4")]
    family: Vec<Families>,
    /// The nodes' own rp_filter, one lab for each.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0,1,2")]
    rp_filter: Vec<u8>,
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
}

#[derive(Clone, Copy, ValueEnum)]
enum PodInterface {
    Routed,
    Bridge,
}

fn families(text: &str) -> Result<Families, String> {
    match text {
        "4" => Ok(Families::V4),
        "6" => Ok(Families::V6),
        "46" | "64" => Ok(Families::Both),
        _ => Err("write 4, 6, or 46 for both".to_owned()),
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let Command {
        mode,
        pod_interface,
        family,
        rp_filter,
        keep,
        snapshots,
        tell_snapshots,
        binaries,
    } = Command::parse();
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces and needs root: use sudo"
    );
    let here = std::env::current_exe()?
        .parent()
        .context("this program is in a folder")?
        .to_owned();
    let binaries = binaries.unwrap_or(here);
    let masquerading = lab::masquerades()?;
    if !masquerading {
        println!("skipped: pods ping other nodes (this kernel cannot masquerade)");
    }
    let pod_interface = match pod_interface {
        PodInterface::Routed => netweft_crds::PodInterface::Routed,
        PodInterface::Bridge => netweft_crds::PodInterface::Bridge,
    };
    let mut labs = Vec::new();
    for mode in mode {
        for families in &family {
            // One family does not make the other's labs fail.
            if !mode.carries(*families) && family.len() > 1 {
                continue;
            }
            let first = rp_filter.first().copied();
            labs.extend(rp_filter.iter().map(|rp_filter| Options {
                mode,
                pod_interface,
                families: *families,
                rp_filter: *rp_filter,
                binaries: binaries.clone(),
                snapshots: snapshots.clone().map(|folder| (folder, tell_snapshots)),
                sizes: Some(*rp_filter) == first,
                pods_per_node: 2,
                masquerading,
            }));
        }
    }
    run(&labs, keep)
}

/// One lab after the other, and a table at the end.
fn run(labs: &[Options], keep: bool) -> anyhow::Result<ExitCode> {
    let (mut failed, mut reachable, mut pairs) = (0, 0, 0);
    let mut table = String::new();
    for (n, options) in labs.iter().enumerate() {
        let started = Instant::now();
        let outcome = lab::run(options, keep && n + 1 == labs.len());
        let said = match &outcome {
            Ok(matrices) => {
                let answered: usize = matrices.iter().map(Matrix::reachable).sum();
                let asked: usize = matrices.iter().map(Matrix::pairs).sum();
                (reachable, pairs) = (reachable + answered, pairs + asked);
                format!("reachable {answered}/{asked} pairs")
            }
            Err(error) => {
                eprintln!("{options}: {error:#}");
                failed += 1;
                "FAILED".to_owned()
            }
        };
        let seconds = started.elapsed().as_secs_f32();
        let options = options.to_string();
        table += &format!("lab| {options:60} {said:24} {seconds:5.1} s\n");
    }
    print!("{table}");
    println!("lab: {} passed, {failed} failed", labs.len() - failed);
    if failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("reachable: {reachable}/{pairs} pairs");
    Ok(ExitCode::SUCCESS)
}
