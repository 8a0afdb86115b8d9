//! BGP of many nodes: that all learn of all, and what it costs.
//!
//! ```text
//!   mesh         node-1 ⇄ node-2 ⇄ … ⇄ node-50, each with each
//!   reflectors   node-3, …, node-202 with node-1 and node-2, which reflect
//! ```
//!
//! All nodes are on one link. Agents write the configuration and end, then all BIRDs start together: 200 agents on one machine
//! would be what is measured. When all is known everywhere, they come back as after a release. For comparison the same sessions
//! can be had from a configuration as one would write it by hand, without agents.

mod figures;
mod plain;

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
use crate::lab::cluster::nodes::Site;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::topology::segment::Segment;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::matrix::Matrix;

pub use crate::lab::scenarios::scale::figures::Figures;

/// The topology of BGP sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// 50 nodes, each with each.
    Mesh,
    /// 200 nodes with two more, which reflect.
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

/// The author of BIRD's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The agents.
    Agents,
    /// The lab: the shortest configuration that works.
    Plain,
}

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// The topology of BGP sessions.
    pub topology: Topology,
    /// The author of BIRD's configuration.
    pub author: Author,
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
        match self.author {
            Author::Agents => Ok(()),
            Author::Plain => f.write_str(", written by hand"),
        }
    }
}

const REFLECTORS: u8 = 2;
const LABEL: &str = "reflector";
const UPLINK: &str = "eth0";
/// How long agents, BIRDs or sessions may take: a machine that is small has many of them.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How often the kernels' tables are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

struct Lab {
    site: Site,
    segment: Segment,
    options: Options,
}

/// Build a lab, let all learn of all, and say what it took. There are pods on three nodes for the matrix, if agents take part.
///
/// # Errors
/// Something does not work; logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<(Figures, Matrix)> {
    let started = Instant::now();
    println!("{options}");
    let mut site = Site::new(&options.binaries, options.bird.as_deref())?;
    site.bird_programs()?;
    let segment = Segment::make(&mut site.run)?;
    let mut lab = Lab {
        site,
        segment,
        options: options.clone(),
    };
    let outcome = lab.measure();
    lab.site.conclude(started, outcome, keep)
}

impl Lab {
    fn measure(&mut self) -> anyhow::Result<(Figures, Matrix)> {
        self.make_nodes()?;
        match self.options.author {
            Author::Agents => self.let_agents_write()?,
            Author::Plain => plain::write(&self.site)?,
        }
        let mut figures = self.start_birds()?;
        let mut matrix = Matrix::default();
        if self.options.author == Author::Agents {
            self.return_agents()?;
            matrix = self.ping()?;
        }
        // Two cores are busy for a minute with 200 agents that each get 200 blocks: that would measure no BGP.
        if self.options.author == Author::Agents && self.options.topology == Topology::Mesh {
            figures.edit = Some(self.add_pool()?);
        }
        println!("{figures}");
        Ok((figures, matrix))
    }

    fn make_nodes(&mut self) -> anyhow::Result<()> {
        let run = &mut self.site.run;
        for number in 1..=self.options.topology.nodes() {
            let mut node = Node::make(run, &format!("node-{number}"), 1)?;
            let nets = addresses(Families::V4, Subnet::Near, number);
            self.segment.attach(&node.space, UPLINK, &nets)?;
            node.addresses = nets.iter().map(IpNet::addr).collect();
            self.site.nodes.push(node);
        }
        self.site.register_nodes();
        let underlay = match self.options.topology {
            Topology::Mesh => json!({}),
            Topology::Reflectors => {
                for number in 1..=REFLECTORS {
                    self.site.label(&format!("node-{number}"), LABEL, "yes");
                }
                json!({ "nodeToNodeMesh": false, "routeReflectors": [{
                    "nodeSelector": { "matchLabels": { LABEL: "yes" } }, "clusterID": "10.0.0.250" }] })
            }
        };
        let store = &mut self.site.store;
        store.modes = vec![objects::mode(
            &json!({ "mode": "underlay", "underlay": underlay }),
        )?];
        store.pools = objects::pools(Families::V4, PodInterface::Routed, true)?;
        self.site.settle()?;
        self.introduce()
    }

    /// All nodes know who speaks with them on the link. The kernel counts the neighbours of all namespaces together and has
    /// room for 1024 (`gc_thresh3`), but for permanent ones; nodes are machines of their own elsewhere.
    fn introduce(&self) -> anyhow::Result<()> {
        for node in &self.site.nodes {
            let mut batch = String::new();
            for peer in self.peers(node)? {
                let mac = fs::read_to_string(peer.space.file("/sys/class/net/eth0/address"))?;
                for address in &peer.addresses {
                    batch += &format!(
                        "neigh replace {address} lladdr {} nud permanent dev {UPLINK}\n",
                        mac.trim()
                    );
                }
            }
            feed(node.space.command("ip").args(["-batch", "-"]), &batch)?;
        }
        Ok(())
    }

    fn peers(&self, node: &Node) -> anyhow::Result<Vec<&Node>> {
        let network = self.site.store.network(&node.name)?;
        let sessions = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let has = |address: IpAddr| {
            let mut nodes = self.site.nodes.iter();
            let node = nodes.find(|node| node.addresses.contains(&address));
            node.with_context(|| format!("{address} is a node's"))
        };
        sessions.map(|session| has(session.peer)).collect()
    }

    fn let_agents_write(&mut self) -> anyhow::Result<()> {
        self.site.start_agents_alone()?;
        let written = format!("{}/bird.conf", crate::lab::node::bird::FOLDER);
        until("all agents", TIMEOUT, || {
            for node in &self.site.nodes {
                let conditions = node.status()?.conditions;
                ensure!(
                    is_true(&conditions, READY),
                    "{} is not ready: {conditions:?}",
                    node.name
                );
                let file = node.space.file(&written);
                ensure!(file.exists(), "{} has no configuration", node.name);
            }
            Ok(())
        })?;
        self.site.nodes.iter_mut().try_for_each(Node::kill_agent)
    }

    /// They find all sessions established, and leave them so.
    fn return_agents(&mut self) -> anyhow::Result<()> {
        let before = self.site.established()?;
        self.site.start_agents_alone()?;
        self.site.wait_until_established(TIMEOUT)?;
        check_same(&before, &self.site.established()?)
    }

    /// All BIRDs start together; the end is when all kernels have all blocks.
    fn start_birds(&mut self) -> anyhow::Result<Figures> {
        let programs = self.site.bird_programs()?.to_owned();
        let started = Instant::now();
        for node in &mut self.site.nodes {
            node.launch_bird(&mut self.site.run, &programs)?;
        }
        self.wait_for_routes(1)?;
        Figures::look(&self.site, started.elapsed())
    }

    /// Every kernel has the blocks of `pools` pools of all others.
    fn wait_for_routes(&self, pools: usize) -> anyhow::Result<()> {
        let wanted = pools * (self.site.nodes.len() - 1);
        let end = Instant::now() + TIMEOUT;
        for node in &self.site.nodes {
            loop {
                let found = routes(node)?;
                if found == wanted {
                    break;
                }
                ensure!(
                    Instant::now() < end,
                    "{} has {found} of {wanted} routes after {TIMEOUT:?}",
                    node.name
                );
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Pods of the first, the middle and the last node.
    fn ping(&mut self) -> anyhow::Result<Matrix> {
        let nodes = self.site.nodes.len();
        for number in [1, nodes / 2, nodes] {
            self.site.add_pod(number)?;
        }
        let matrix = self
            .site
            .matrix(POOL_V4, |source, target| !source.is_node && !target.is_node)?;
        matrix.check()?;
        Ok(matrix)
    }

    /// All nodes get a block of a second pool, which all must take now that the first is closed. No session begins anew for that.
    fn add_pool(&mut self) -> anyhow::Result<figures::Edit> {
        let before = self.site.established()?;
        let started = Instant::now();
        let spec: Value = json!({ "cidr": "10.245.0.0/16", "networkMode": "default" });
        let more = objects::named_pool("more", &spec)?;
        self.site.store.pools.push(more);
        if let Some(first) = self.site.store.pools.first_mut() {
            first.spec.disabled = true;
        }
        self.site.settle()?;
        let settled = started.elapsed();
        self.wait_for_routes(2)?;
        let edit = figures::Edit {
            planned: settled,
            known: started.elapsed(),
        };
        check_same(&before, &self.site.established()?)?;
        Ok(edit)
    }
}

/// Sessions by node, and since when each has been up.
type Sessions = BTreeMap<String, BTreeMap<String, String>>;

/// What was up has been up since. BIRD reckons the time of day back from how long a session has been up, in whole seconds, so the
/// same session can be a second older or younger each time.
fn check_same(before: &Sessions, after: &Sessions) -> anyhow::Result<()> {
    for (node, sessions) in before {
        for (session, since) in sessions {
            let now = after.get(node).and_then(|sessions| sessions.get(session));
            let was: DateTime = since.parse()?;
            let is: Option<DateTime> = now.map(|now| now.parse()).transpose()?;
            let apart = is.map(|is| is.duration_since(was).as_secs().abs());
            ensure!(
                apart.is_some_and(|seconds| seconds <= 1),
                "{session} of {node} was up since {since} and is so since {now:?}"
            );
        }
    }
    Ok(())
}

/// How many routes BIRD has given a node's kernel: by their metric, in /proc/PID/net/route, as a process for each look would cost more
/// than what is measured.
fn routes(node: &Node) -> anyhow::Result<usize> {
    let table = fs::read_to_string(format!("/proc/{}/net/route", node.space.pid()))?;
    let metric = |line: &&str| line.split_whitespace().nth(6) == Some("78");
    Ok(table.lines().filter(metric).count())
}
