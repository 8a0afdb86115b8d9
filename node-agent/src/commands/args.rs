//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use netweft_telemetry::logging::LogArgs;

/// The node agent of netweft: programs the kernel of this node according to its NodeNetwork.
#[derive(Debug, Parser)]
#[command(name = "netweft-agent", version)]
pub struct Arguments {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the API server, or a directory of objects, and program the kernel.
    Run(RunArgs),
    /// Install the CNI plugins into the plugin directory of the container runtime.
    Install(InstallArgs),
    /// Check for leaked or missing objects of pods on this node and, if the name of the Node is given, for all other differences from the
    /// desired state. Prints one problem per line. The exit code is the number of problems, at most 100. A higher exit code means that
    /// the check failed.
    Check(CheckArgs),
    /// Remove all objects of netweft from this node: links, routes, the nftables table, files and plugins; and restore sysctls. Stop the
    /// other programs of netweft first. Waits for pods with addresses of netweft. The exit code is 0 if nothing is left.
    Clean(CleanArgs),
}

/// Paths on a node.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// Directory for the state of agent and plugin, which must not survive a reboot.
    #[arg(long, env = "NETWEFT_RUN_DIR", default_value = "/run/netweft")]
    pub run_dir: PathBuf,
    /// Directory with the CNI configuration of the container runtime.
    #[arg(long, env = "NETWEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Path of the node's /proc/sys/net, writable.
    #[arg(long, env = "NETWEFT_SYSCTL_DIR", default_value = "/proc/sys/net")]
    pub sysctl_dir: PathBuf,
}

/// Source and destination of the CNI plugins.
#[derive(Clone, Debug, Args)]
pub struct PluginPaths {
    /// Directory with the plugins to install.
    #[arg(long, env = "NETWEFT_PLUGINS", default_value = "/opt/netweft/cni")]
    pub plugins: PathBuf,
    /// Plugin directory of the container runtime. If set, the agent restores missing or changed plugins there.
    #[arg(long, env = "NETWEFT_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of this Node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Read objects from YAML files in this directory and in its subdirectory with the name of the Node instead of from the API server.
    /// Change a file by renaming another file over it. The agent writes its status to status.yaml in --run-dir.
    #[arg(long)]
    pub inputs: Option<PathBuf>,
    #[command(flatten)]
    pub paths: Paths,
    #[command(flatten)]
    pub plugins: PluginPaths,
    /// BIRD program that checks configurations: a command and its first arguments, separated by blanks.
    #[arg(long, value_delimiter = ' ', default_value = "bird")]
    pub bird: Vec<String>,
    /// Directory with the passwords of BGP sessions, one file per key.
    #[arg(long, default_value = "/etc/netweft/bgp-passwords")]
    pub bgp_passwords: PathBuf,
    /// Address and port of /livez, /readyz and /metrics. Probes between agents use the UDP port with the same number.
    #[arg(long, default_value = "127.0.0.1:9471")]
    pub listen: SocketAddr,
    /// Program this node although another pod network has routes in the range of an IPPool here, or its CNI configuration has precedence.
    #[arg(long, env = "NETWEFT_IGNORE_OTHER_NETWORKS")]
    pub ignore_other_networks: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Name of this Node. Without it, the check covers only objects of pods, and reads no objects of the API.
    #[arg(long, env = "NODE_NAME")]
    pub node: Option<String>,
    /// Read objects from YAML files in this directory instead of from the API server, as `run` does.
    #[arg(long)]
    pub inputs: Option<PathBuf>,
    #[command(flatten)]
    pub paths: Paths,
    #[command(flatten)]
    pub plugins: PluginPaths,
    /// As for `run`.
    #[arg(long, env = "NETWEFT_IGNORE_OTHER_NETWORKS")]
    pub ignore_other_networks: bool,
}

#[derive(Debug, Args)]
pub struct CleanArgs {
    #[command(flatten)]
    pub paths: Paths,
    /// Plugin directory of the container runtime.
    #[arg(long, env = "NETWEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Do not wait for pods. Pods with addresses of netweft lose their network.
    #[arg(long)]
    pub force: bool,
    /// Change nothing, and print what would be removed, one object per line.
    #[arg(long, conflicts_with_all = ["force", "stay"])]
    pub dry_run: bool,
    /// Retry until the node is clean, then wait for a signal to end.
    #[arg(long)]
    pub stay: bool,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Directory with the plugins.
    #[arg(long, default_value = "/opt/netweft/cni")]
    pub from: PathBuf,
    /// Plugin directory of the container runtime.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub to: PathBuf,
}
