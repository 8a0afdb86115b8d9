//! Failures of agents, and nodes that join, leave and reboot, while all pods exchange traffic. No other node loses a packet.

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
use crate::lab::traffic::load::ExpectedLoss;
use crate::lab::{Lab, Options, run_scenario};

/// How long agents are killed.
const KILL_TIME: Duration = Duration::from_secs(20);
/// Time between two kills.
const KILL_INTERVAL: Duration = Duration::from_millis(200);
/// Limit until a new pod is reachable, which takes one or two seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Number and uplink of the node that joins.
const NEW_NODE: (u8, &str) = (4, "enp4s0");
/// Host numbers of Nodes that are created while an agent is suspended. Half of them are deleted before it resumes.
const TEMPORARY_NODES: std::ops::Range<u8> = 100..150;

/// Gives a node the state after a boot: no kernel objects of the agent, and an empty `/run`. The CNI configuration stays, which is on
/// the disk of a real node.
const REBOOT: &str = "for link in $(ip -o link show | sed -n 's/^[0-9]*: \\(nw[^:@]*\\).*/\\1/p'); do ip link delete $link; done; \
    for family in -4 -6; do for protocol in 78 79; do ip $family route flush proto $protocol; done; done; \
    nft delete table inet netweft; rm -r /run/netweft; sysctl -qw net.ipv4.ip_forward=0";

/// Builds a lab and runs all failures, one after the other.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(
        options.clone(),
        &title(options),
        keep,
        Lab::run_agent_failures,
    )
}

/// The title of the lab.
#[must_use]
pub fn title(options: &Options) -> String {
    format!("failures of nodes and agents, {options}")
}

impl Lab {
    fn run_agent_failures(&mut self) -> anyhow::Result<()> {
        self.cluster.start_servers(true)?;
        let none = ExpectedLoss::None;
        self.expect_loss("agents were killed every 200 ms", none, Self::kill_agents)?;
        self.expect_loss("a node joined", none, Self::join_node)?;
        self.expect_loss(
            "an agent was suspended while nodes joined and left",
            none,
            Self::suspend_agent,
        )?;
        self.expect_loss(
            "a node was deleted while an agent was stopped",
            none,
            Self::delete_node_without_agent,
        )?;
        let last = self
            .cluster
            .nodes
            .last()
            .context("the node does not exist")?
            .name
            .clone();
        // A reboot ends the pods of the node and its own connections.
        self.cluster.pods.retain(|pod| pod.node != last);
        self.expect_loss(
            "a node rebooted",
            ExpectedLoss::PacketsAndConnections(&last),
            Self::reboot,
        )
    }

    fn kill_agents(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        for kills in 1.. {
            for number in 1..=self.cluster.nodes.len() {
                self.cluster.node_mut(number)?.0.kill_agent()?;
            }
            self.cluster.start_agents()?;
            let next = started + KILL_INTERVAL * kills;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            if started.elapsed() >= KILL_TIME {
                break;
            }
        }
        Ok(started.elapsed())
    }

    /// A new node gets an agent, one block of each pool, and a pod.
    fn join_node(&mut self) -> anyhow::Result<Duration> {
        let (number, uplink) = NEW_NODE;
        let blocks = self.cluster.store.blocks();
        let name = format!("node-{number}");
        let mut node = Node::create(&mut self.cluster.run, &name, self.options.rp_filter)?;
        let subnet = self.underlay.subnet_of(number);
        self.underlay.connect(&mut node, uplink, subnet, number)?;
        self.cluster.nodes.push(node);
        self.cluster.register_nodes();
        self.cluster.reconcile()?;
        self.cluster.start_agent(usize::from(number))?;
        let took = self.add_first_pod(number)?;
        let families = self.options.families.pools().count();
        ensure!(
            self.cluster.store.blocks() == blocks + families,
            "the new node received {} blocks",
            self.cluster.store.blocks() - blocks
        );
        Ok(took)
    }

    /// The first node's agent is suspended while fifty nodes join and half of them leave. Meanwhile the plugin adds a pod. After that the
    /// agent resumes and applies all changes.
    fn suspend_agent(&mut self) -> anyhow::Result<Duration> {
        let agent = self.cluster.node(1)?.agent_pid()?;
        let agent = Pid::from_raw(agent.cast_signed());
        kill(agent, Signal::SIGSTOP)?;
        let permanent = self.cluster.store.nodes.len();
        for number in TEMPORARY_NODES {
            let nets = addresses(self.options.families, Subnet::Near, number);
            let nets: Vec<_> = nets.iter().map(ipnet::IpNet::addr).collect();
            let node = objects::node(&format!("temporary-{number}"), &nets, Default::default());
            self.cluster.store.nodes.push(node);
        }
        self.cluster.reconcile()?;
        self.cluster
            .store
            .nodes
            .truncate(permanent + TEMPORARY_NODES.len() / 2);
        self.cluster.reconcile()?;
        let node = self
            .cluster
            .nodes
            .first()
            .context("the node does not exist")?;
        let pod = Pod::add(
            &mut self.cluster.run,
            node,
            "pod-late",
            &self.options.binaries,
        )?;
        kill(agent, Signal::SIGCONT)?;
        let resumed = Instant::now();
        self.cluster.wait_for_desired_state()?;
        pod.delete(self.cluster.node(1)?, &self.options.binaries)?;
        self.cluster.store.nodes.truncate(permanent);
        self.cluster.reconcile()?;
        Ok(resumed.elapsed())
    }

    /// A Node is deleted while an agent is stopped: the agent starts with kernel objects for a Node that does not exist any more.
    fn delete_node_without_agent(&mut self) -> anyhow::Result<Duration> {
        let nets = addresses(self.options.families, Subnet::Near, TEMPORARY_NODES.start);
        let nets: Vec<_> = nets.iter().map(ipnet::IpNet::addr).collect();
        let node = objects::node("temporary", &nets, Default::default());
        self.cluster.store.nodes.push(node);
        self.cluster.reconcile()?;
        self.cluster.wait_for_desired_state()?;
        self.cluster.node_mut(1)?.0.kill_agent()?;
        self.cluster.store.nodes.pop();
        self.cluster.reconcile()?;
        let started = Instant::now();
        self.cluster.start_agent(1)?;
        self.cluster.wait_for_desired_state()?;
        Ok(started.elapsed())
    }

    /// The last node reboots. The plugin adds no pod before the agent runs, and no address of a previous pod stays allocated.
    fn reboot(&mut self) -> anyhow::Result<Duration> {
        let (number, _) = NEW_NODE;
        let (node, _) = self.cluster.node_mut(usize::from(number))?;
        node.kill_agent()?;
        output(node.namespace.command("sh").args(["-ec", REBOOT]))?;
        let added = self.cluster.add_pod(usize::from(number));
        let error = added
            .err()
            .context("a pod got an address on a node without an agent")?;
        ensure!(
            error.to_string().contains("\"code\": 11") || error.to_string().contains("\"code\":11"),
            "the plugin does not return code 11, try again later: {error:#}"
        );
        self.cluster.start_agent(usize::from(number))?;
        let took = self.add_first_pod(number)?;
        let node = self.cluster.node(usize::from(number))?;
        let records = fs::read_dir(node.namespace.file("/run/netweft/attachments"))?.count();
        let families = self.options.families.pools().count();
        ensure!(
            records == families,
            "the node has {records} attachment records for one pod"
        );
        Ok(took)
    }

    /// Adds a pod to a node whose agent has just started. Returns the time from the readiness of the agent until all nodes reach the pod.
    fn add_first_pod(&mut self, number: u8) -> anyhow::Result<Duration> {
        let node = usize::from(number);
        self.cluster.node(node)?.wait_until_ready()?;
        let ready = Instant::now();
        self.cluster.add_pod(node)?;
        let pod = self.cluster.pods.last().context("the pod does not exist")?;
        let addresses = pod.addresses.clone();
        self.cluster.start_servers(true)?;
        for source in &self.cluster.nodes {
            until("an answer of the new pod", TIMEOUT, || {
                let answers = source.namespace.ping(&self.cluster.binaries, &addresses)?;
                let unanswered = answers.iter().find(|answer| answer.received == 0);
                ensure!(unanswered.is_none(), "{unanswered:?}");
                Ok(())
            })?;
        }
        Ok(ready.elapsed())
    }
}
