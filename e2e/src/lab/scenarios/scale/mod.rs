//! BGP convergence of many nodes, and its cost.
//!
//! ```text
//!   mesh         node-1 ⇄ node-2 ⇄ … ⇄ node-50, full mesh
//!   reflectors   node-3, …, node-202 with the route reflectors node-1 and node-2
//! ```
//!
//! All nodes are on one link. The agents write the configuration and end before all BIRDs start together, because 200 agents on one
//! machine would distort the measurement. After convergence the agents start again, as after an upgrade. For comparison, the same
//! sessions can use a minimal configuration without agents.

mod figures;
mod minimal;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use k8s_openapi::jiff::civil::DateTime;
use netweft_crds::PodInterface;
use netweft_crds::condition::{READY, is_true};
use serde_json::{Value, json};

use crate::harness::command::feed;
use crate::harness::poll::until;
use crate::lab::cluster::families::{Families, POOL_V4};
use crate::lab::cluster::nodes::Cluster;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::topology::segment::Segment;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::matrix::Matrix;

pub use crate::lab::scenarios::scale::figures::{Figures, PoolChange};

/// The BGP topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// 50 nodes in a full mesh.
    Mesh,
    /// 200 nodes with two route reflectors.
    Reflectors,
}

impl Topology {
    const fn nodes(self) -> u8 {
        match self {
            Self::Mesh => 50,
            Self::Reflectors => REFLECTORS + 200,
        }
    }
}

/// The source of BIRD's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// The agents.
    Agents,
    /// The lab, which writes a minimal configuration.
    Minimal,
}

/// The options of a scale lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// The BGP topology.
    pub topology: Topology,
    /// The source of BIRD's configuration.
    pub config_source: ConfigSource,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with `bird` and `birdc`.
    pub bird: Option<PathBuf>,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.topology.nodes();
        match self.topology {
            Topology::Mesh => write!(f, "BGP, {nodes} nodes in a mesh")?,
            Topology::Reflectors => {
                let behind = nodes - REFLECTORS;
                write!(f, "BGP, {behind} nodes behind {REFLECTORS} reflectors")?;
            }
        }
        match self.config_source {
            ConfigSource::Agents => Ok(()),
            ConfigSource::Minimal => f.write_str(", minimal configuration"),
        }
    }
}

const REFLECTORS: u8 = 2;
const LABEL: &str = "reflector";
const UPLINK: &str = "eth0";
/// Limit for agents, BIRDs and sessions. Many of them share one machine.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Interval of polling the kernels' routes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

struct Lab {
    cluster: Cluster,
    segment: Segment,
    options: Options,
}

/// Builds a lab, measures convergence, and with agents pings between pods on three nodes.
///
/// # Errors
/// The lab cannot be built, or a check fails. The logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<(Figures, Matrix)> {
    let started = Instant::now();
    println!("{options}");
    let mut cluster = Cluster::new(&options.binaries, options.bird.as_deref())?;
    cluster.bird_programs()?;
    let segment = Segment::create(&mut cluster.run)?;
    let mut lab = Lab {
        cluster,
        segment,
        options: options.clone(),
    };
    let outcome = lab.measure();
    lab.cluster.finish(started, outcome, keep)
}

impl Lab {
    fn measure(&mut self) -> anyhow::Result<(Figures, Matrix)> {
        self.create_nodes()?;
        match self.options.config_source {
            ConfigSource::Agents => self.write_configuration_with_agents()?,
            ConfigSource::Minimal => minimal::write(&self.cluster)?,
        }
        let mut figures = self.start_birds()?;
        let mut matrix = Matrix::default();
        if self.options.config_source == ConfigSource::Agents {
            self.restart_agents()?;
            matrix = self.ping()?;
        }
        // Not with 200 agents: processing 200 blocks in each takes a minute of two cores, which would dominate the result.
        if self.options.config_source == ConfigSource::Agents
            && self.options.topology == Topology::Mesh
        {
            figures.pool_change = Some(self.add_pool()?);
        }
        println!("{figures}");
        Ok((figures, matrix))
    }

    fn create_nodes(&mut self) -> anyhow::Result<()> {
        let run = &mut self.cluster.run;
        for number in 1..=self.options.topology.nodes() {
            let mut node = Node::create(run, &format!("node-{number}"), 1)?;
            let nets = addresses(Families::V4, Subnet::Near, number);
            self.segment.attach(&node.namespace, UPLINK, &nets)?;
            node.addresses = nets.iter().map(IpNet::addr).collect();
            self.cluster.nodes.push(node);
        }
        self.cluster.register_nodes();
        let underlay = match self.options.topology {
            Topology::Mesh => json!({}),
            Topology::Reflectors => {
                for number in 1..=REFLECTORS {
                    self.cluster.label(&format!("node-{number}"), LABEL, "yes");
                }
                json!({ "nodeToNodeMesh": false, "routeReflectors": [{
                    "nodeSelector": { "matchLabels": { LABEL: "yes" } }, "clusterID": "10.0.0.250" }] })
            }
        };
        let store = &mut self.cluster.store;
        store.modes = vec![objects::mode(
            &json!({ "mode": "underlay", "underlay": underlay }),
        )?];
        store.pools = objects::pools(Families::V4, PodInterface::Routed, true)?;
        self.cluster.reconcile()?;
        self.add_neighbours()
    }

    /// Adds permanent neighbours for all BGP peers. The kernel limits the neighbours of all namespaces together to 1024 (`gc_thresh3`),
    /// except for permanent ones. Real nodes do not share this limit.
    fn add_neighbours(&self) -> anyhow::Result<()> {
        for node in &self.cluster.nodes {
            let mut batch = String::new();
            for peer in self.peers(node)? {
                let mac = fs::read_to_string(peer.namespace.file("/sys/class/net/eth0/address"))?;
                for address in &peer.addresses {
                    batch += &format!(
                        "neigh replace {address} lladdr {} nud permanent dev {UPLINK}\n",
                        mac.trim()
                    );
                }
            }
            feed(node.namespace.command("ip").args(["-batch", "-"]), &batch)?;
        }
        Ok(())
    }

    fn peers(&self, node: &Node) -> anyhow::Result<Vec<&Node>> {
        let network = self.cluster.store.network(&node.name)?;
        let sessions = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let node_of = |address: IpAddr| {
            let mut nodes = self.cluster.nodes.iter();
            let node = nodes.find(|node| node.addresses.contains(&address));
            node.with_context(|| format!("no node has the address {address}"))
        };
        sessions.map(|session| node_of(session.peer)).collect()
    }

    fn write_configuration_with_agents(&mut self) -> anyhow::Result<()> {
        self.cluster.start_agents()?;
        let written = format!("{}/bird.conf", crate::lab::node::bird::FOLDER);
        until("all agents", TIMEOUT, || {
            for node in &self.cluster.nodes {
                let conditions = node.status()?.conditions;
                ensure!(
                    is_true(&conditions, READY),
                    "{} is not ready: {conditions:?}",
                    node.name
                );
                let file = node.namespace.file(&written);
                ensure!(file.exists(), "{} has no configuration", node.name);
            }
            Ok(())
        })?;
        self.cluster.nodes.iter_mut().try_for_each(Node::kill_agent)
    }

    /// Starts the agents again. They must not restart sessions.
    fn restart_agents(&mut self) -> anyhow::Result<()> {
        let before = self.cluster.established()?;
        self.cluster.start_agents()?;
        self.cluster.wait_until_established(TIMEOUT)?;
        check_not_restarted(&before, &self.cluster.established()?)
    }

    /// Starts all BIRDs together and measures until all kernels have routes to all blocks.
    fn start_birds(&mut self) -> anyhow::Result<Figures> {
        let programs = self.cluster.bird_programs()?.to_owned();
        let started = Instant::now();
        for node in &mut self.cluster.nodes {
            node.spawn_bird(&mut self.cluster.run, &programs)?;
        }
        self.wait_for_routes(1)?;
        Figures::measure(&self.cluster, started.elapsed())
    }

    /// Waits until every kernel has routes to the blocks of all other nodes, for this number of pools.
    fn wait_for_routes(&self, pools: usize) -> anyhow::Result<()> {
        let expected = pools * (self.cluster.nodes.len() - 1);
        let end = Instant::now() + TIMEOUT;
        for node in &self.cluster.nodes {
            loop {
                let found = routes(node)?;
                if found == expected {
                    break;
                }
                ensure!(
                    Instant::now() < end,
                    "{} has {found} of {expected} routes after {TIMEOUT:?}",
                    node.name
                );
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Adds pods to the first, the middle and the last node, and pings between them.
    fn ping(&mut self) -> anyhow::Result<Matrix> {
        let nodes = self.cluster.nodes.len();
        for number in [1, nodes / 2, nodes] {
            self.cluster.add_pod(number)?;
        }
        let matrix = self
            .cluster
            .matrix(POOL_V4, |source, target| !source.is_node && !target.is_node)?;
        matrix.check()?;
        Ok(matrix)
    }

    /// Disables the first pool and adds a second, so that all nodes get a block of the second. No session may restart.
    fn add_pool(&mut self) -> anyhow::Result<PoolChange> {
        let before = self.cluster.established()?;
        let started = Instant::now();
        let spec: Value = json!({ "cidr": "10.245.0.0/16", "networkMode": "default" });
        let more = objects::named_pool("more", &spec)?;
        self.cluster.store.pools.push(more);
        if let Some(first) = self.cluster.store.pools.first_mut() {
            first.spec.disabled = true;
        }
        self.cluster.reconcile()?;
        let planned = started.elapsed();
        self.wait_for_routes(2)?;
        let change = PoolChange {
            planned,
            converged: started.elapsed(),
        };
        check_not_restarted(&before, &self.cluster.established()?)?;
        Ok(change)
    }
}

/// The time of establishment of each session, by node and name.
type Sessions = BTreeMap<String, BTreeMap<String, String>>;

/// Checks that no session has restarted. BIRD computes the time of establishment from the age in whole seconds, so that the time of the
/// same session can differ by a second between two calls.
fn check_not_restarted(before: &Sessions, after: &Sessions) -> anyhow::Result<()> {
    for (node, sessions) in before {
        for (session, since) in sessions {
            let now = after.get(node).and_then(|sessions| sessions.get(session));
            let old: DateTime = since.parse()?;
            let new: Option<DateTime> = now.map(|now| now.parse()).transpose()?;
            let difference = new.map(|new| new.duration_since(old).as_secs().abs());
            ensure!(
                difference.is_some_and(|seconds| seconds <= 1),
                "{session} of {node} was established at {since} and now at {now:?}"
            );
        }
    }
    Ok(())
}

/// The number of BIRD's routes in a node's kernel, found by metric. It is read from /proc/PID/net/route, because starting a process for
/// each node would cost more than what is measured.
fn routes(node: &Node) -> anyhow::Result<usize> {
    let table = fs::read_to_string(format!("/proc/{}/net/route", node.namespace.pid()))?;
    let metric = |line: &&str| line.split_whitespace().nth(6) == Some("78");
    Ok(table.lines().filter(metric).count())
}
