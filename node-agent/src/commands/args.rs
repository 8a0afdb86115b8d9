//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use netweft_telemetry::logging::LogArgs;

/// Makes this node's kernel agree with what the netweft operator assigned.
#[derive(Debug, Parser)]
#[command(name = "netweft-agent", version)]
pub struct Command {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Watch the API (or a folder of objects) and keep the kernel as it should be.
    Run(RunArgs),
    /// Put the CNI plugins where the container runtime looks for them.
    Install(InstallArgs),
    /// Say what of pods on this node has leaked or is missing, and, with the Node's name, what else on it is not as it should be,
    /// one sentence a line. The exit code is their number, 100 at most; above, it could not look.
    Check(CheckArgs),
    /// Take all that is netweft's off this node, once its other programs are gone: links, routes, the nft table, files, plugins, and
    /// set kernel parameters to what they were. Waits for pods that have an address of netweft's. The exit code is 0 if nothing is
    /// left.
    Clean(CleanArgs),
}

/// Places on a node.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// Where the agent and the plugin keep what must not outlive a boot.
    #[arg(long, env = "NETWEFT_RUN_DIR", default_value = "/run/netweft")]
    pub run_dir: PathBuf,
    /// Where the container runtime reads its network configuration.
    #[arg(long, env = "NETWEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The node's /proc/sys/net, where it can be written.
    #[arg(long, env = "NETWEFT_SYSCTL_DIR", default_value = "/proc/sys/net")]
    pub sysctl_dir: PathBuf,
}

/// Where plugins come from, and where the container runtime looks for them.
#[derive(Clone, Debug, Args)]
pub struct PluginPaths {
    /// Folder with the plugins, as `install` takes them from.
    #[arg(long, env = "NETWEFT_PLUGINS", default_value = "/opt/netweft/cni")]
    pub plugins: PathBuf,
    /// Where the container runtime looks for plugins. If it is given, those that are missing or changed there are put back.
    #[arg(long, env = "NETWEFT_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of this Node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Read objects from YAML files in this folder, and in one of the Node's name in it, instead of from the API server. A file
    /// is changed by renaming another over it. The status is written beside the plugin's files.
    #[arg(long)]
    pub inputs: Option<PathBuf>,
    #[command(flatten)]
    pub paths: Paths,
    #[command(flatten)]
    pub plugins: PluginPaths,
    /// The BIRD that checks what another is told to read: a program and its first arguments, with blanks between.
    #[arg(long, value_delimiter = ' ', default_value = "bird")]
    pub bird: Vec<String>,
    /// Passwords of BGP sessions, a file for each key.
    #[arg(long, default_value = "/etc/netweft/bgp-passwords")]
    pub bgp_passwords: PathBuf,
    /// Address and port of /livez, /readyz and /metrics. Other agents are asked and answered on the UDP port of the same number.
    #[arg(long, default_value = "127.0.0.1:9471")]
    pub listen: SocketAddr,
    /// Program this node although another pod network has routes in the range of an IPPool here, or its CNI configuration has precedence.
    #[arg(long, env = "NETWEFT_IGNORE_OTHER_NETWORKS")]
    pub ignore_other_networks: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Name of this Node. Without it only the pods' part is looked at, which takes no objects.
    #[arg(long, env = "NODE_NAME")]
    pub node: Option<String>,
    /// Read objects from YAML files in this folder instead of from the API server, as `run` does.
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
    /// Where the container runtime looks for plugins.
    #[arg(long, env = "NETWEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Do not wait for pods: they are cut off.
    #[arg(long)]
    pub force: bool,
    /// Change nothing, say what there is, one sentence a line.
    #[arg(long, conflicts_with_all = ["force", "stay"])]
    pub dry_run: bool,
    /// Try until the node is clean, and end only when told to.
    #[arg(long)]
    pub stay: bool,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Folder with the plugins.
    #[arg(long, default_value = "/opt/netweft/cni")]
    pub from: PathBuf,
    /// Folder of the container runtime.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub to: PathBuf,
}
