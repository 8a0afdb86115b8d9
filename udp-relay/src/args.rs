//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use netweft_telemetry::logging::LogArgs;

/// Carries packets between this node's udp tunnels and their peers.
#[derive(Debug, Parser)]
#[command(name = "netweft-udp-relay", version)]
pub struct Command {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Do what udp.json says, taking over from the relay that does so now.
    Run(RunArgs),
    /// Say whether the relay of this container does what udp.json says; the exit code too.
    Ready(ProbeArgs),
    /// Say whether the relay of this container answers; the exit code too.
    Alive(ProbeArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where udp.json is, and where relays meet.
    #[arg(long, default_value = "/run/netweft")]
    pub run_dir: PathBuf,
    /// Queues of a new tunnel; each has a thread for either direction. By default one for each core, 4 at most. A tunnel
    /// that is taken over keeps what it has.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub queues: Option<u8>,
    /// Address and port of /livez and /metrics.
    #[arg(long, default_value = "127.0.0.1:9472")]
    pub admin_address: SocketAddr,
}

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Where relays meet.
    #[arg(long, default_value = "/run/netweft")]
    pub run_dir: PathBuf,
}
