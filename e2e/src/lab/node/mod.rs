//! A node: namespaces, agent and BIRD.

pub mod bird;
pub mod host_bird;
pub mod kernel_features;
pub mod kernel_snapshot;
pub mod pod;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::Context;
use netweft_crds::NodeNetworkStatus;
use netweft_crds::condition::{READY, is_true};

use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::node::bird::Bird;
use crate::lab::topology::namespace::Namespace;

/// A node of the lab.
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub namespace: Namespace,
    agent: Option<Child>,
    bird: Option<Bird>,
}

impl Node {
    /// Creates a node without an uplink.
    pub fn create(run: &mut Run, name: &str, rp_filter: u8) -> anyhow::Result<Self> {
        let namespace = Namespace::node(run)?;
        for scope in ["all", "default"] {
            namespace.sysctl(
                &format!("net.ipv4.conf.{scope}.rp_filter"),
                &rp_filter.to_string(),
            )?;
        }
        Ok(Self {
            name: name.to_owned(),
            addresses: Vec::new(),
            namespace,
            agent: None,
            bird: None,
        })
    }

    /// Starts BIRD and waits until it answers.
    pub fn start_bird(&mut self, run: &mut Run, programs: &Path) -> anyhow::Result<()> {
        let bird = Bird::start(run, &self.name, &self.namespace, programs)?;
        self.bird = Some(bird);
        Ok(())
    }

    /// Starts BIRD without waiting.
    pub fn spawn_bird(&mut self, run: &mut Run, programs: &Path) -> anyhow::Result<()> {
        let bird = Bird::spawn(run, &self.name, &self.namespace, programs)?;
        self.bird = Some(bird);
        Ok(())
    }

    /// The process ID of BIRD.
    pub fn bird_pid(&self) -> anyhow::Result<u32> {
        let bird = self
            .bird
            .as_ref()
            .context("BIRD does not run on the node")?;
        Ok(bird.pid())
    }

    /// The running BIRD, for a caller that ends it.
    pub fn take_bird(&mut self) -> anyhow::Result<Bird> {
        self.bird.take().context("BIRD does not run on the node")
    }

    /// The process ID of the agent.
    pub fn agent_pid(&self) -> anyhow::Result<u32> {
        let agent = self.agent.as_ref().context("no agent runs on the node")?;
        Ok(agent.id())
    }

    /// Sends SIGKILL to the agent and waits for its end.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        let mut agent = self.agent.take().context("no agent runs on the node")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Starts the released relay.
    pub fn start_relay(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.namespace.command(binaries.join("netweft-udp-relay"));
        command.args(["run", "--run-dir", "/run/netweft"]);
        let log = run.folder().join(format!("{}-relay.log", self.name));
        self.namespace.start(run, &mut command, &log).map(drop)
    }

    /// The node's address of the family of `other`.
    pub fn address_of_family(&self, other: IpAddr) -> Option<IpAddr> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same_family).copied()
    }

    /// Starts the released agent with the objects of a folder. With `bird`, the folder of BIRD's programs, the agent also gets the folder
    /// of BGP passwords.
    pub fn start_agent(
        &mut self,
        run: &mut Run,
        binaries: &Path,
        objects: &Path,
        bird: Option<&Path>,
    ) -> anyhow::Result<()> {
        let mut command = self.namespace.command(binaries.join("netweft-agent"));
        command
            .args([
                "run",
                "--node",
                &self.name,
                "--cni-conf-dir",
                "/run/cni",
                "--inputs",
            ])
            .arg(objects);
        if let Some(programs) = bird {
            command.arg("--bird").arg(programs.join("bird"));
            command
                .arg("--bgp-passwords")
                .arg(run.folder().join(PASSWORDS));
        }
        let log = self.agent_log(run);
        self.agent = Some(self.namespace.start(run, &mut command, &log)?);
        Ok(())
    }

    /// The node has its desired state according to `netweft-agent check`.
    pub fn check(&self, binaries: &Path, objects: &Path) -> anyhow::Result<()> {
        let mut command = self.namespace.command(binaries.join("netweft-agent"));
        let arguments = ["--node", &self.name, "--cni-conf-dir", "/run/cni"];
        command
            .arg("check")
            .args(arguments)
            .arg("--inputs")
            .arg(objects);
        let output = command.output().context("start netweft-agent")?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        anyhow::ensure!(output.status.success(), "{}", text.trim());
        Ok(())
    }

    /// Path of the agent's log.
    pub fn agent_log(&self, run: &Run) -> PathBuf {
        run.folder().join(format!("{}.log", self.name))
    }

    /// The status of the NodeNetwork that the agent has written.
    pub fn status(&self) -> anyhow::Result<NodeNetworkStatus> {
        let text = std::fs::read_to_string(self.namespace.file("/run/netweft/status.yaml"))?;
        Ok(serde_saphyr::from_str(&text)?)
    }

    /// Waits for the condition Ready and the CNI configuration.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.wait_for_status("the condition Ready", |status| {
            is_true(&status.conditions, READY)
        })
    }

    /// Waits until the CNI configuration exists and the status satisfies `expected`.
    pub fn wait_for_status(
        &self,
        what: &str,
        expected: impl Fn(&NodeNetworkStatus) -> bool,
    ) -> anyhow::Result<()> {
        until(&format!("{what} on {}", self.name), DEADLINE, || {
            let status = self.status()?;
            let condition = status.conditions.first();
            let message = condition.map_or("none", |condition| condition.message.as_str());
            anyhow::ensure!(expected(&status), "first condition: {message}");
            anyhow::ensure!(
                self.namespace.file(CONFLIST).exists(),
                "there is no CNI configuration"
            );
            Ok(())
        })
    }

    /// The kernel routes of the cluster's BIRD, one element for each.
    pub fn bgp_routes(&self) -> anyhow::Result<Vec<String>> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let lines = self
                .namespace
                .ip(&format!("{family} route show proto bird"))?;
            // Routes of the BIRD of the node's owner have another metric.
            let added = lines.lines().filter(|line| line.contains(" metric 78"));
            routes.extend(added.map(|line| line.trim_end().to_owned()));
        }
        Ok(routes)
    }

    /// Whether `node.json`, the input of the plugin, lists a pool.
    pub fn plugin_lists_pool(&self, pool: &str) -> anyhow::Result<bool> {
        let text = std::fs::read_to_string(self.namespace.file("/run/netweft/node.json"))?;
        let input: serde_json::Value = serde_json::from_str(&text)?;
        let pools = input.get("pools").and_then(|pools| pools.as_array());
        let mut names = pools.into_iter().flatten().map(|pool| pool.get("name"));
        Ok(names.any(|name| name.is_some_and(|name| name == pool)))
    }

    /// The CNI configuration that the agent has written.
    pub fn conflist(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(
            self.namespace.file(CONFLIST),
        )?)?)
    }
}

/// Folder of BGP passwords, in the folder of the run.
pub const PASSWORDS: &str = "bgp-passwords";
const DEADLINE: Duration = Duration::from_secs(20);
const CONFLIST: &str = "/run/cni/10-netweft.conflist";
