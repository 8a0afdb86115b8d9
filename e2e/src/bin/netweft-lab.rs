//! The namespace lab: three nodes, a shared segment, the released binaries, and the ping matrix in seconds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use netweft_e2e::lab::{self, Families, LabMode, Options};
use netweft_e2e::matrix::Matrix;

/// Three nodes made of namespaces, two pods each, and who reaches whom.
#[derive(Parser)]
#[command(name = "netweft-lab", version)]
struct Command {
    /// How packets travel between nodes.
    #[arg(long, value_enum, default_value_t = LabMode::Vxlan)]
    mode: LabMode,
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
    let lab = |(families, rp_filter)| Options {
        mode,
        pod_interface: match pod_interface {
            PodInterface::Routed => netweft_crds::PodInterface::Routed,
            PodInterface::Bridge => netweft_crds::PodInterface::Bridge,
        },
        families,
        rp_filter,
        binaries: binaries.clone(),
        pods_per_node: 2,
        masquerading,
    };
    let each = |families: &Families| rp_filter.iter().map(|value| (*families, *value)).collect();
    let kinds: Vec<Vec<_>> = family.iter().map(each).collect();
    let labs: Vec<Options> = kinds.into_iter().flatten().map(lab).collect();
    run(&labs, keep)
}

/// One lab after the other.
fn run(labs: &[Options], keep: bool) -> anyhow::Result<ExitCode> {
    let (mut failed, mut reachable, mut pairs) = (0, 0, 0);
    for (n, options) in labs.iter().enumerate() {
        match lab::run(options, keep && n + 1 == labs.len()) {
            Ok(matrices) => {
                reachable += matrices.iter().map(Matrix::reachable).sum::<usize>();
                pairs += matrices.iter().map(Matrix::pairs).sum::<usize>();
            }
            Err(error) => {
                eprintln!("{options}: {error:#}");
                failed += 1;
            }
        }
    }
    println!("lab: {} passed, {failed} failed", labs.len() - failed);
    if failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("reachable: {reachable}/{pairs} pairs");
    Ok(ExitCode::SUCCESS)
}
