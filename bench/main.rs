//! `make bench`: how fast things are, beside what others have for the same, and in the same minutes.
//!
//! Ratios say something, absolute figures only of this machine at this hour. The contenders take turns, so that whatever
//! else the machine does hits all alike. Nothing here is a test, and nothing fails for being slow.

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

/// Measures netweft beside others.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// Where to write the figures as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// ADD and DEL of the plugin and of the reference plugins.
    Plugin(plugin::Options),
    /// Throughput of the udp relay, of VXLAN in the kernel and of Flannel's udp backend.
    Tunnel(tunnel::Options),
    /// What BGP of many nodes costs, with the agents' configuration of BIRD and with a plain one.
    Bgp(bgp::Options),
    /// Throughput and connection rate over VXLAN with and without the filter of the agent.
    Filter(filter::Options),
    /// How long it takes until what others have changed on a node is put right.
    Drift(drift::Options),
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces and needs root: use sudo"
    );
    // A node of our own: a network namespace without a way out.
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let scratch = Scratch::new()?;
    let figures = match &options.what {
        What::Plugin(options) => plugin::run(options, &scratch.0)?,
        What::Tunnel(options) => tunnel::run(options, &scratch.0)?,
        What::Bgp(options) => bgp::run(options)?,
        What::Filter(options) => filter::run(options, &scratch.0)?,
        What::Drift(options) => drift::run(options, &scratch.0)?,
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

/// A folder that goes with this value.
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
        // What stays in the folder for temporary files is not worth an error.
        let _ = fs::remove_dir_all(&self.0);
    }
}
