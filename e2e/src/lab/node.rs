//! A node: namespaces, an uplink, the agent.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use netweft_crds::NodeNetworkStatus;
use netweft_crds::condition::{READY, is_true};

use super::namespace::Namespace;
use super::underlay::{Subnet, Underlay};
use crate::poll::until;
use crate::run::Run;

/// A node of the lab.
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub space: Namespace,
    number: u8,
    uplink: &'static str,
    subnet: Subnet,
}

impl Node {
    /// Node number `number` with an uplink of this name.
    pub fn make(
        run: &mut Run,
        underlay: &Underlay,
        number: u8,
        uplink: &'static str,
        rp_filter: u8,
    ) -> anyhow::Result<Self> {
        let space = Namespace::node(run)?;
        for scope in ["all", "default"] {
            space.sysctl(
                &format!("net.ipv4.conf.{scope}.rp_filter"),
                &rp_filter.to_string(),
            )?;
        }
        let subnet = underlay.subnet_of(number);
        let nets = underlay.connect(&space, uplink, subnet, number)?;
        Ok(Self {
            name: format!("node-{number}"),
            addresses: nets.iter().map(IpNet::addr).collect(),
            space,
            number,
            uplink,
            subnet,
        })
    }

    /// Unplug the node and plug it in elsewhere, where it has other addresses.
    pub fn move_to(&mut self, underlay: &Underlay, subnet: Subnet) -> anyhow::Result<()> {
        underlay.disconnect(&self.space, self.subnet)?;
        let nets = underlay.connect(&self.space, self.uplink, subnet, self.number)?;
        self.addresses = nets.iter().map(IpNet::addr).collect();
        self.subnet = subnet;
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

    /// Start the released agent on the folder of objects.
    pub fn start_agent(
        &mut self,
        run: &mut Run,
        binaries: &Path,
        objects: &Path,
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
        let log = self.agent_log(run);
        self.space.start(run, &mut command, &log)?;
        Ok(())
    }

    /// Where the agent's words go.
    pub fn agent_log(&self, run: &Run) -> PathBuf {
        run.folder().join(format!("{}.log", self.name))
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
            let text = std::fs::read_to_string(self.space.file("/run/netweft/status.yaml"))?;
            let status: NodeNetworkStatus = serde_saphyr::from_str(&text)?;
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

    /// The CNI configuration that the agent has written.
    pub fn conflist(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(
            self.space.file(CONFLIST),
        )?)?)
    }
}

const DEADLINE: Duration = Duration::from_secs(20);
const CONFLIST: &str = "/run/cni/10-netweft.conflist";
