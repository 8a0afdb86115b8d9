//! The namespace lab: three nodes, a shared segment, the released binaries, and the ping matrix in seconds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use netweft_e2e::lab::{self, LabMode, Options};

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
    /// IP family.
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=4), default_value_t = 4)]
    family: u8,
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
}

fn main() -> anyhow::Result<ExitCode> {
    let Command {
        mode,
        pod_interface: PodInterface::Routed,
        family: _,
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
    let (mut failed, mut reachable, mut pairs) = (0, 0, 0);
    let last = rp_filter.last().copied();
    for rp_filter in &rp_filter {
        let options = Options {
            mode,
            rp_filter: *rp_filter,
            binaries: binaries.clone(),
            pods_per_node: 2,
        };
        match lab::run(&options, keep && last == Some(*rp_filter)) {
            Ok(matrix) => {
                (reachable, pairs) = (reachable + matrix.reachable(), pairs + matrix.pairs());
            }
            Err(error) => {
                eprintln!("{mode} under rp_filter {rp_filter}: {error:#}");
                failed += 1;
            }
        }
    }
    println!("lab: {} passed, {failed} failed", rp_filter.len() - failed);
    if failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("reachable: {reachable}/{pairs} pairs");
    Ok(ExitCode::SUCCESS)
}
