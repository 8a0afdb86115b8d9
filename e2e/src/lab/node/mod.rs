//! A node: namespaces, the agent, BIRD.

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
    pub space: Namespace,
    agent: Option<Child>,
    bird: Option<Bird>,
}

impl Node {
    /// A node that is connected to nothing yet.
    pub fn make(run: &mut Run, name: &str, rp_filter: u8) -> anyhow::Result<Self> {
        let space = Namespace::node(run)?;
        for scope in ["all", "default"] {
            space.sysctl(
                &format!("net.ipv4.conf.{scope}.rp_filter"),
                &rp_filter.to_string(),
            )?;
        }
        Ok(Self {
            name: name.to_owned(),
            addresses: Vec::new(),
            space,
            agent: None,
            bird: None,
        })
    }

    /// Start BIRD.
    pub fn start_bird(&mut self, run: &mut Run, programs: &Path) -> anyhow::Result<()> {
        let bird = Bird::start(run, &self.name, &self.space, programs)?;
        self.bird = Some(bird);
        Ok(())
    }

    /// Start BIRD, and do not wait for it.
    pub fn launch_bird(&mut self, run: &mut Run, programs: &Path) -> anyhow::Result<()> {
        let bird = Bird::launch(run, &self.name, &self.space, programs)?;
        self.bird = Some(bird);
        Ok(())
    }

    /// BIRD's process.
    pub fn bird_pid(&self) -> anyhow::Result<u32> {
        let bird = self.bird.as_ref().context("BIRD runs on the node")?;
        Ok(bird.pid())
    }

    /// BIRD, for a caller that ends it.
    pub fn take_bird(&mut self) -> anyhow::Result<Bird> {
        self.bird.take().context("BIRD runs on the node")
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> anyhow::Result<u32> {
        let agent = self.agent.as_ref().context("an agent runs on the node")?;
        Ok(agent.id())
    }

    /// SIGKILL for the agent.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        let mut agent = self.agent.take().context("an agent runs on the node")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Start the released relay.
    pub fn start_relay(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.space.command(binaries.join("netweft-udp-relay"));
        command.args(["run", "--run-dir", "/run/netweft"]);
        let log = run.folder().join(format!("{}-relay.log", self.name));
        self.space.start(run, &mut command, &log).map(drop)
    }

    /// The node's address of the same family.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        let same = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same).copied()
    }

    /// Start the released agent on the folder of objects; with BIRD's programs it gets their folder and one of passwords.
    pub fn start_agent(
        &mut self,
        run: &mut Run,
        binaries: &Path,
        objects: &Path,
        bird: Option<&Path>,
    ) -> anyhow::Result<()> {
        let mut command = self.space.command(binaries.join("netweft-agent"));
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
        self.agent = Some(self.space.start(run, &mut command, &log)?);
        Ok(())
    }

    /// Nothing is out of place, as the agent's own check sees it.
    pub fn check(&self, binaries: &Path, objects: &Path) -> anyhow::Result<()> {
        let mut command = self.space.command(binaries.join("netweft-agent"));
        let places = ["--node", &self.name, "--cni-conf-dir", "/run/cni"];
        command
            .arg("check")
            .args(places)
            .arg("--inputs")
            .arg(objects);
        let output = command.output().context("start netweft-agent")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        anyhow::ensure!(output.status.success(), "{}", said.trim());
        Ok(())
    }

    /// Where the agent's words go.
    pub fn agent_log(&self, run: &Run) -> PathBuf {
        run.folder().join(format!("{}.log", self.name))
    }

    /// What the agent says.
    pub fn status(&self) -> anyhow::Result<NodeNetworkStatus> {
        let text = std::fs::read_to_string(self.space.file("/run/netweft/status.yaml"))?;
        Ok(serde_saphyr::from_str(&text)?)
    }

    /// Wait until the agent says that the node is ready and the runtime could add pods.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.wait_until_open("to be ready", |status| is_true(&status.conditions, READY))
    }

    /// Wait until the runtime could add pods and the agent's status is as `wanted`.
    pub fn wait_until_open(
        &self,
        what: &str,
        wanted: impl Fn(&NodeNetworkStatus) -> bool,
    ) -> anyhow::Result<()> {
        until(&format!("{} {what}", self.name), DEADLINE, || {
            let status = self.status()?;
            let said: Vec<&str> = status
                .conditions
                .iter()
                .map(|condition| condition.message.as_str())
                .collect();
            anyhow::ensure!(
                wanted(&status),
                "the agent says: {}",
                said.first().unwrap_or(&"nothing")
            );
            anyhow::ensure!(
                self.space.file(CONFLIST).exists(),
                "there is no CNI configuration"
            );
            Ok(())
        })
    }

    /// The kernel's routes that BIRD has made, one a line.
    pub fn bgp_routes(&self) -> anyhow::Result<Vec<String>> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let lines = self.space.ip(&format!("{family} route show proto bird"))?;
            // The host's own BIRD has another metric.
            let ours = lines.lines().filter(|line| line.contains(" metric 78"));
            routes.extend(ours.map(|line| line.trim_end().to_owned()));
        }
        Ok(routes)
    }

    /// Whether `node.json` has a pool.
    pub fn plugin_has_pool(&self, pool: &str) -> anyhow::Result<bool> {
        let text = std::fs::read_to_string(self.space.file("/run/netweft/node.json"))?;
        let config: serde_json::Value = serde_json::from_str(&text)?;
        let pools = config.get("pools").and_then(|pools| pools.as_array());
        let mut names = pools.into_iter().flatten().map(|pool| pool.get("name"));
        Ok(names.any(|name| name.is_some_and(|name| name == pool)))
    }

    /// The CNI configuration that the agent has written.
    pub fn conflist(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(
            self.space.file(CONFLIST),
        )?)?)
    }
}

/// Folder of BGP passwords in the run's.
pub const PASSWORDS: &str = "bgp-passwords";
const DEADLINE: Duration = Duration::from_secs(20);
const CONFLIST: &str = "/run/cni/10-netweft.conflist";
