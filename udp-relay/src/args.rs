//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use netweft_telemetry::logging::LogArgs;

/// The UDP relay of netweft: forwards packets between TUN links of this node and the relays of other nodes.
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
    /// Serve the tunnels of udp.json, and take them over from a running relay.
    Run(RunArgs),
    /// Check whether the relay of this container serves the tunnels of udp.json. The exit code is 0 if it does.
    Ready(ProbeArgs),
    /// Check whether the relay of this container replies. The exit code is 0 if it does.
    Alive(ProbeArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Folder with udp.json and the socket for the handover between relays.
    #[arg(long, default_value = "/run/netweft")]
    pub run_dir: PathBuf,
    /// Number of queues of a new tunnel, with one thread per queue and direction. Default: one per core, at most 4. A tunnel that is taken
    /// over keeps its number.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub queues: Option<u8>,
    /// Address and port of /livez and /metrics.
    #[arg(long, default_value = "127.0.0.1:9472")]
    pub admin_address: SocketAddr,
}

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Folder with the socket of the relay.
    #[arg(long, default_value = "/run/netweft")]
    pub run_dir: PathBuf,
}
