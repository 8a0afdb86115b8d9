//! The namespace lab: a cluster without a cluster.
//!
//! ```text
//!        node-1 (uplink eth0)   node-2 (uplink ens5)   node-3 (uplink enp3s0)    outside (host0)
//!              │                      │                      │                        │
//!   ═══════════╧══════════════════════╧══════════════════════╧════════════════════════╧══════  segment, MTU 1400
//! ```
//!
//! Every node is a network and a mount namespace with a /run of its own, every pod a network namespace. The objects
//! are made by the operator's own core, written as files, carried out by the released agent and plugin binaries. The
//! segment is a bridge in a namespace of its own without a way out; it drops frames with a pod's address in the outer
//! header, as an underlay that does not know the pods' network would.

mod namespace;
mod node;
mod objects;
mod pod;
mod segment;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::matrix::{Endpoint, Matrix, Row, targets};
use crate::run::Run;
use node::Node;
use pod::Pod;
use segment::Segment;

pub use objects::LabMode;

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// How packets travel between nodes.
    pub mode: LabMode,
    /// `net.ipv4.conf.all.rp_filter` and `default` of every node: 0, 1 or 2.
    pub rp_filter: u8,
    /// Folder with `netweft-agent`, `netweft` and `netweft-probe`.
    pub binaries: PathBuf,
    /// Pods on each node.
    pub pods_per_node: usize,
}

/// Uplink names differ from node to node: nothing may rely on one.
const UPLINKS: [&str; 3] = ["eth0", "ens5", "enp3s0"];
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// A lab that stands.
pub struct Lab {
    run: Run,
    options: Options,
    segment: Segment,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
}

impl Lab {
    /// Build the segment and the nodes, start the agents, wait until they are ready, add the pods.
    ///
    /// # Errors
    /// Anything that does not work, in words; what was built is removed by the next lab.
    pub fn build(options: Options) -> anyhow::Result<Self> {
        let mut run = Run::begin("lab")?;
        let segment = Segment::make(&mut run, objects::POOL)?;
        let mut lab = Self {
            run,
            options,
            segment,
            nodes: Vec::new(),
            pods: Vec::new(),
        };
        for (index, uplink) in UPLINKS.into_iter().enumerate() {
            let node = Node::make(
                &mut lab.run,
                &lab.segment,
                index + 1,
                uplink,
                lab.options.rp_filter,
            )?;
            lab.nodes.push(node);
        }
        lab.write_objects()?;
        lab.start_agents()?;
        lab.add_pods()?;
        Ok(lab)
    }

    fn write_objects(&self) -> anyhow::Result<()> {
        let folder = self.objects_folder();
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let nodes: BTreeMap<String, IpAddr> = self
            .nodes
            .iter()
            .map(|node| (node.name.clone(), node.address))
            .collect();
        objects::write(&folder, self.options.mode, &nodes).context("write the objects")
    }

    fn objects_folder(&self) -> PathBuf {
        self.run.folder().join("objects")
    }

    fn start_agents(&mut self) -> anyhow::Result<()> {
        let folder = self.objects_folder();
        for node in &mut self.nodes {
            node.start_agent(&mut self.run, &self.options.binaries, &folder)?;
        }
        self.nodes
            .iter()
            .try_for_each(|node| node.wait_until_ready(READY_DEADLINE))
    }

    fn add_pods(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            for letter in ('a'..='z').take(self.options.pods_per_node) {
                let name = format!("{}{letter}", node.name.replace("node-", "pod-"));
                self.pods.push(Pod::add(
                    &mut self.run,
                    node,
                    &name,
                    &self.options.binaries,
                )?);
            }
        }
        Ok(())
    }

    /// Everybody pings everybody.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix(&self) -> anyhow::Result<Matrix> {
        let endpoints: Vec<Endpoint> = self.sources().map(|(endpoint, _)| endpoint).collect();
        let mut matrix = Matrix::default();
        for (source, space) in self.sources() {
            let targets = targets(&source, &endpoints);
            let addresses: Vec<IpAddr> = targets.iter().map(|target| target.address).collect();
            let answers = space.ping(&self.options.binaries, &addresses)?;
            matrix.add(Row {
                source,
                targets,
                answers,
            })?;
        }
        Ok(matrix)
    }

    fn sources(&self) -> impl Iterator<Item = (Endpoint, &namespace::Namespace)> {
        let pods = self.pods.iter().map(|pod| {
            (
                Endpoint {
                    name: pod.name.clone(),
                    address: pod.address,
                    is_node: false,
                },
                &pod.space,
            )
        });
        let nodes = self.nodes.iter().map(|node| {
            (
                Endpoint {
                    name: node.name.clone(),
                    address: node.address,
                    is_node: true,
                },
                &node.space,
            )
        });
        pods.chain(nodes)
    }

    /// A pod reaches a host outside, which sees the node's address and not the pod's.
    ///
    /// # Errors
    /// No answer, or the host sees another address.
    pub fn check_outside(&mut self) -> anyhow::Result<()> {
        self.segment
            .start_server(&mut self.run, &self.options.binaries)?;
        for pod in &self.pods {
            let node = self
                .nodes
                .iter()
                .find(|node| node.name == pod.node)
                .context("a pod has a node")?;
            for protocol in ["tcp", "udp"] {
                let seen = pod
                    .space
                    .ask(&self.options.binaries, protocol, segment::OUTSIDE)?;
                anyhow::ensure!(
                    seen.starts_with(&format!("peer={} ", node.address)),
                    "{} asked the outside by {protocol}, which saw {seen:?} instead of {}'s address {}",
                    pod.name,
                    node.name,
                    node.address
                );
            }
        }
        Ok(())
    }

    /// The segment has dropped nothing so far, and it does drop: one frame that breaks the rule is sent and must be
    /// missed. (A guard that lets everything pass would prove nothing.)
    ///
    /// # Errors
    /// A packet with a pod's address was on the segment, or the guard does not work.
    pub fn check_segment(&self) -> anyhow::Result<()> {
        let dropped = self.segment.dropped()?;
        anyhow::ensure!(
            dropped == 0,
            "{dropped} frames with a pod's address in the outer header were on the segment"
        );
        self.segment
            .prove_guard(self.nodes.first().context("a node")?)
    }

    /// How to look around.
    #[must_use]
    pub fn guide(&self) -> String {
        let mut text =
            String::from("The lab stays up until the next one or `make down`. To look around:\n");
        for (endpoint, space) in self.sources() {
            text += &format!("  {:8} {}\n", endpoint.name, space.enter_line());
        }
        text
    }

    /// Take everything away.
    ///
    /// # Errors
    /// The log of the run cannot be removed.
    pub fn tear_down(self) -> anyhow::Result<()> {
        self.run.end()
    }

    /// Leave everything up.
    pub fn keep(self) {
        drop(self.run);
    }

    /// What the agents have written to their logs, for a failure.
    #[must_use]
    pub fn agent_logs(&self) -> String {
        let read = |node: &Node| {
            format!(
                "--- {}\n{}",
                node.name,
                fs::read_to_string(node.agent_log(&self.run)).unwrap_or_default()
            )
        };
        self.nodes.iter().map(read).collect()
    }
}

/// Build a lab, print the matrix, check everything else in it.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<Matrix> {
    let started = Instant::now();
    println!("{}, rp_filter {}", options.mode, options.rp_filter);
    let mut lab = Lab::build(options.clone()).context("build the lab")?;
    let outcome = check(&mut lab);
    if outcome.is_err() {
        eprintln!("{}", lab.agent_logs());
    }
    println!("{:.1} s\n", started.elapsed().as_secs_f32());
    if keep {
        println!("{}", lab.guide());
        lab.keep();
    } else {
        lab.tear_down()?;
    }
    outcome
}

fn check(lab: &mut Lab) -> anyhow::Result<Matrix> {
    let matrix = lab.matrix()?;
    println!("{matrix}");
    matrix.check()?;
    lab.check_outside()?;
    lab.check_segment()?;
    Ok(matrix)
}
