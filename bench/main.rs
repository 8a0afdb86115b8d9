//! `make bench`: benchmarks of netweft and comparable software on the same machine.
//!
//! Only ratios are comparable between machines. The candidates take turns, so that other load on the machine affects all of them.
//! Benchmarks are not tests: a slow result is not a failure.

mod agent;
mod bgp;
mod drift;
mod filter;
mod load;
mod namespace;
mod numbers;
mod plugin;
mod tunnel;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Measures netweft in comparison with other software.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// File for the figures, as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Benchmark {
    /// ADD and DEL of netweft's plugin and of the reference plugins.
    Plugin(plugin::Options),
    /// Throughput of the udp relay, of VXLAN in the kernel and of Flannel's udp backend.
    Tunnel(tunnel::Options),
    /// Cost of BGP with many nodes, with the agents' configuration of BIRD and with a minimal one.
    Bgp(bgp::Options),
    /// Throughput and connection rate over VXLAN with and without the filter of the agent.
    Filter(filter::Options),
    /// Time until the agent has repaired external changes on a node.
    Drift(drift::Options),
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark creates network namespaces and needs root: use sudo"
    );
    // The benchmarks must not change the network of the machine.
    unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace")?;
    let scratch = Scratch::new()?;
    let figures = match &options.benchmark {
        Benchmark::Plugin(options) => plugin::run(options, &scratch.0)?,
        Benchmark::Tunnel(options) => tunnel::run(options, &scratch.0)?,
        Benchmark::Bgp(options) => bgp::run(options)?,
        Benchmark::Filter(options) => filter::run(options, &scratch.0)?,
        Benchmark::Drift(options) => drift::run(options, &scratch.0)?,
    };
    match &options.json {
        Some(path) => write(path, &figures),
        None => Ok(()),
    }
}

fn write(path: &Path, figures: &[Value]) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(figures)? + "\n";
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// A temporary folder that exists as long as this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("netweft-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Remaining temporary files are not a failure of the benchmark.
        let _ = fs::remove_dir_all(&self.0);
    }
}
