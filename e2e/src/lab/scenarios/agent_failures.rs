//! Failures of nodes and agents while all pods and nodes communicate: no packet and no connection may be lost.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::node::pod::Pod;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::lab::traffic::load::Sufferer;
use crate::lab::{Lab, Options, run_scenario};

/// How long agents are killed, and the time between two kills.
const STORM: (Duration, Duration) = (Duration::from_secs(20), Duration::from_millis(200));
/// How long something may take that takes a second or two.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The node that joins, and its uplink.
const JOINS: (u8, &str) = (4, "enp4s0");
/// Nodes that come, of which half go again, by their host numbers.
const PASSERS: std::ops::Range<u8> = 100..150;

/// Makes a node what it is right after it was booted: nothing of ours is in the kernel, nothing is in `/run` but the
/// runtime's configuration, which is on the disk of a real node.
const BOOT: &str = "for link in $(ip -o link show | sed -n 's/^[0-9]*: \\(nw[^:@]*\\).*/\\1/p'); do ip link delete $link; done; \
    for family in -4 -6; do for protocol in 78 79; do ip $family route flush proto $protocol; done; done; \
    nft delete table inet netweft; rm -r /run/netweft; sysctl -qw net.ipv4.ip_forward=0";

/// Build a lab, and see what it endures.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &about(options), keep, Lab::endure)
}

/// What the lab is about.
#[must_use]
pub fn about(options: &Options) -> String {
    format!("failures of nodes and agents, {options}")
}

impl Lab {
    fn endure(&mut self) -> anyhow::Result<()> {
        self.site.start_servers(true)?;
        let none = Sufferer::Nobody;
        self.costs("agents were killed every 200 ms", none, Self::kill_agents)?;
        self.costs("a node joined", none, Self::join)?;
        self.costs(
            "an agent stood still while nodes came and went",
            none,
            Self::stand_still,
        )?;
        self.costs("a node went while an agent was away", none, Self::go_unseen)?;
        let last = self.site.nodes.last().context("a node")?.name.clone();
        // Its pods end with it, and what it had open itself.
        self.site.pods.retain(|pod| pod.node != last);
        self.costs(
            "a node was booted",
            Sufferer::Connections(&last),
            Self::boot,
        )
    }

    fn kill_agents(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for kills in 1.. {
            for number in 1..=self.site.nodes.len() {
                self.site.node_mut(number)?.0.kill_agent()?;
            }
            self.site.start_agents_alone()?;
            let next = began + STORM.1 * kills;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            if began.elapsed() >= STORM.0 {
                break;
            }
        }
        Ok(began.elapsed())
    }

    /// A new node gets an agent, a block of each pool, and a pod.
    fn join(&mut self) -> anyhow::Result<Duration> {
        let (number, uplink) = JOINS;
        let blocks = self.site.store.blocks();
        let name = format!("node-{number}");
        let mut node = Node::make(&mut self.site.run, &name, self.options.rp_filter)?;
        let subnet = self.underlay.subnet_of(number);
        self.underlay.connect(&mut node, uplink, subnet, number)?;
        self.site.nodes.push(node);
        self.site.register_nodes();
        self.site.settle()?;
        self.site.start_agent(usize::from(number))?;
        let took = self.pod_of(number)?;
        let families = self.options.families.pools().count();
        ensure!(
            self.site.store.blocks() == blocks + families,
            "{} blocks have been given to one node",
            self.site.store.blocks() - blocks
        );
        Ok(took)
    }

    /// The first node's agent gets no event while fifty nodes join and half of them leave, and a pod is still added. Then the agent
    /// catches up.
    fn stand_still(&mut self) -> anyhow::Result<Duration> {
        let agent = self.site.node(1)?.agent_pid()?;
        let agent = Pid::from_raw(agent.cast_signed());
        kill(agent, Signal::SIGSTOP)?;
        let own = self.site.store.nodes.len();
        for number in PASSERS {
            let nets = addresses(self.options.families, Subnet::Near, number);
            let nets: Vec<_> = nets.iter().map(ipnet::IpNet::addr).collect();
            let passer = objects::node(&format!("passer-{number}"), &nets, Default::default());
            self.site.store.nodes.push(passer);
        }
        self.site.settle()?;
        self.site.store.nodes.truncate(own + PASSERS.len() / 2);
        self.site.settle()?;
        let at = self.site.nodes.first().context("a node")?;
        let pod = Pod::add(&mut self.site.run, at, "pod-late", &self.options.binaries)?;
        kill(agent, Signal::SIGCONT)?;
        let continued = Instant::now();
        self.site.is_as_wanted()?;
        pod.delete(self.site.node(1)?, &self.options.binaries)?;
        self.site.store.nodes.truncate(own);
        self.site.settle()?;
        Ok(continued.elapsed())
    }

    /// A node is deleted while an agent is down: the agent has its routes and gets no event of the deletion.
    fn go_unseen(&mut self) -> anyhow::Result<Duration> {
        let nets = addresses(self.options.families, Subnet::Near, PASSERS.start);
        let nets: Vec<_> = nets.iter().map(ipnet::IpNet::addr).collect();
        let passer = objects::node("passer", &nets, Default::default());
        self.site.store.nodes.push(passer);
        self.site.settle()?;
        self.site.is_as_wanted()?;
        self.site.node_mut(1)?.0.kill_agent()?;
        self.site.store.nodes.pop();
        self.site.settle()?;
        let began = Instant::now();
        self.site.start_agent(1)?;
        self.site.is_as_wanted()?;
        Ok(began.elapsed())
    }

    /// The last node loses all that a boot takes. It takes no pod before its agent is back, and no address is left from before.
    fn boot(&mut self) -> anyhow::Result<Duration> {
        let (number, _) = JOINS;
        let (node, _) = self.site.node_mut(usize::from(number))?;
        node.kill_agent()?;
        output(node.space.command("sh").args(["-ec", BOOT]))?;
        let too_early = self.site.add_pod(usize::from(number));
        let refusal = too_early
            .err()
            .context("a pod got an address of a node without an agent")?;
        ensure!(
            refusal.to_string().contains("\"code\": 11")
                || refusal.to_string().contains("\"code\":11"),
            "the plugin does not say that it has to be tried again: {refusal:#}"
        );
        self.site.start_agent(usize::from(number))?;
        let took = self.pod_of(number)?;
        let records = self.site.node(usize::from(number))?;
        let records = fs::read_dir(records.space.file("/run/netweft/attachments"))?.count();
        let families = self.options.families.pools().count();
        ensure!(records == families, "one pod has {records} addresses");
        Ok(took)
    }

    /// A pod on a node whose agent has just been started, and the time from the readiness of the agent until all pods and nodes reached the pod.
    fn pod_of(&mut self, number: u8) -> anyhow::Result<Duration> {
        let node = usize::from(number);
        self.site.node(node)?.wait_until_ready()?;
        let ready = Instant::now();
        self.site.add_pod(node)?;
        let added = self.site.pods.last().context("a pod")?.addresses.clone();
        self.site.start_servers(true)?;
        for from in &self.site.nodes {
            until("the new pod to answer", TIMEOUT, || {
                let answers = from.space.ping(&self.site.binaries, &added)?;
                let silent = answers.iter().find(|answer| answer.received == 0);
                ensure!(silent.is_none(), "{silent:?}");
                Ok(())
            })?;
        }
        Ok(ready.elapsed())
    }
}
