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
//! segment is a bridge in a namespace of its own without a way out; it counts what passes, and drops frames with a pod's
//! address in the outer header where an underlay that does not know the pods' network would. For modes that look at subnets
//! node 3 is on a second segment behind a router.
//!
//! Where the kernel cannot masquerade, the agents must first say so; then the pools have `natOutgoing: false`, pods do not
//! ping other nodes (nobody would find back to them), and the host outside has routes to the pods and must see their own
//! addresses. The guard lets these pass and nothing else.

mod kernel;
mod namespace;
mod node;
mod objects;
mod pod;
mod segment;
mod sizes;
mod snapshot;
mod underlay;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use netweft_crds::PodInterface;
use netweft_crds::condition::Reason;

use crate::matrix::{Endpoint, Matrix, Row, targets};
use crate::poll::until;
use crate::run::Run;
use namespace::Namespace;
use node::Node;
use pod::Pod;
use underlay::{Subnet, Underlay};

pub use kernel::masquerades;
pub use objects::{Families, LabMode};

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// How packets travel between nodes.
    pub mode: LabMode,
    /// How pods are attached.
    pub pod_interface: PodInterface,
    /// IP families of nodes and pods.
    pub families: Families,
    /// `net.ipv4.conf.all.rp_filter` and `default` of every node: 0, 1 or 2.
    pub rp_filter: u8,
    /// Folder with `netweft-agent`, `netweft` and `netweft-probe`.
    pub binaries: PathBuf,
    /// Folder with what the kernel should look like, and whether to tell how it does instead of comparing.
    pub snapshots: Option<(PathBuf, bool)>,
    /// Whether to try packets of every size, and TCP and UDP. The nodes' own filter has no part in that.
    pub sizes: bool,
    /// Pods on each node.
    pub pods_per_node: usize,
    /// Whether pods take their node's address on the way outside: what [`masquerades`] says.
    pub masquerading: bool,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mode,
            pod_interface,
            families,
            rp_filter,
            ..
        } = self;
        let pods = match pod_interface {
            PodInterface::Routed => "routed",
            PodInterface::Bridge => "bridged",
        };
        write!(f, "{mode}, {pods} pods, {families}, rp_filter {rp_filter}")
    }
}

/// How long a moved node may be out of reach.
const MOVED: Duration = Duration::from_secs(20);
/// Uplink names differ from node to node: nothing may rely on one.
const UPLINKS: [&str; 3] = ["eth0", "ens5", "enp3s0"];

/// A lab that stands.
pub struct Lab {
    run: Run,
    options: Options,
    underlay: Underlay,
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
        let Options {
            mode,
            families,
            masquerading,
            ..
        } = options;
        let underlay = Underlay::make(&mut run, mode, families, masquerading)?;
        let mut lab = Self {
            run,
            options,
            underlay,
            nodes: Vec::new(),
            pods: Vec::new(),
        };
        let stands = lab.stand_up();
        if stands.is_err() {
            eprintln!("{}", lab.agent_logs());
        }
        stands.map(|()| lab)
    }

    fn stand_up(&mut self) -> anyhow::Result<()> {
        let rp_filter = self.options.rp_filter;
        for (number, uplink) in (1..).zip(UPLINKS) {
            let node = Node::make(&mut self.run, &self.underlay, number, uplink, rp_filter)?;
            self.nodes.push(node);
        }
        // A run that was reaped may have left some.
        if self.objects_folder().exists() {
            fs::remove_dir_all(self.objects_folder())?;
        }
        self.write_objects(true)?;
        self.start_agents()?;
        self.add_pods()
    }

    fn write_objects(&self, nat_outgoing: bool) -> anyhow::Result<()> {
        let folder = self.objects_folder();
        fs::create_dir_all(&folder)?;
        let nodes: BTreeMap<String, Vec<IpAddr>> = self
            .nodes
            .iter()
            .map(|node| (node.name.clone(), node.addresses.clone()))
            .collect();
        objects::write(&folder, &self.options, &nodes, nat_outgoing).context("write the objects")
    }

    /// Pools that ask for what the kernel cannot do leave pods a network and are named. Then they ask for it no more.
    fn give_up_masquerading(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.wait_until_open(
                "to take pods and to say that it cannot masquerade",
                |status| {
                    status.conditions.iter().any(|condition| {
                        condition.reason == Reason::KernelLacksFeature.as_str()
                            && condition.message.contains("nftables family inet")
                            && condition.message.contains("natOutgoing: false")
                    })
                },
            )?;
        }
        objects::write_pools(&self.objects_folder(), &self.options, false)
    }

    fn objects_folder(&self) -> PathBuf {
        self.run.folder().join("objects")
    }

    fn start_agents(&mut self) -> anyhow::Result<()> {
        let folder = self.objects_folder();
        for node in &mut self.nodes {
            node.start_agent(&mut self.run, &self.options.binaries, &folder)?;
            if self.options.mode.needs_relay() {
                node.start_relay(&mut self.run, &self.options.binaries)?;
            }
        }
        if !self.options.masquerading {
            self.give_up_masquerading()?;
        }
        self.nodes.iter().try_for_each(Node::wait_until_ready)
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

    /// Everybody pings everybody, in the family of `pool`.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix(&self, pool: IpNet) -> anyhow::Result<Matrix> {
        let of_family = || {
            self.sources()
                .filter(|(endpoint, _)| endpoint.address.is_ipv4() == pool.addr().is_ipv4())
        };
        let endpoints: Vec<Endpoint> = of_family().map(|(endpoint, _)| endpoint).collect();
        let mut matrix = Matrix::default();
        for (source, space) in of_family() {
            let mut targets = targets(&source, &endpoints);
            targets.retain(|target| self.finds_back(&source, target));
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

    /// Without masquerading another node would answer a pod beside the way that the question took.
    fn finds_back(&self, source: &Endpoint, target: &Endpoint) -> bool {
        let on_it = |pod: &Pod| pod.name == source.name && pod.node == target.name;
        self.options.masquerading || !target.is_node || self.pods.iter().any(on_it)
    }

    /// Everybody at every address.
    fn sources(&self) -> impl Iterator<Item = (Endpoint, &Namespace)> {
        let pods = self.pods.iter();
        let pods = pods.map(|pod| (&pod.name, &pod.addresses, &pod.space, false));
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| (&node.name, &node.addresses, &node.space, true));
        pods.chain(nodes)
            .flat_map(|(name, addresses, space, is_node)| {
                let endpoint = move |address: &IpAddr| Endpoint {
                    name: name.clone(),
                    address: *address,
                    is_node,
                };
                addresses
                    .iter()
                    .map(move |address| (endpoint(address), space))
            })
    }

    /// A pod reaches a host outside, which sees the node's address and not the pod's; where nobody masquerades, the pod's.
    ///
    /// # Errors
    /// No answer, or the host sees another address.
    pub fn check_outside(&mut self) -> anyhow::Result<()> {
        self.underlay
            .start_server(&mut self.run, &self.options.binaries)?;
        for pod in &self.pods {
            let node = self
                .nodes
                .iter()
                .find(|node| node.name == pod.node)
                .context("a pod has a node")?;
            for server in self.underlay.servers() {
                let node_address = node.address_like(server.ip()).context("a node's address")?;
                let expected = if self.options.masquerading {
                    node_address
                } else {
                    let own = pod.address_like(server.ip()).context("a pod's address")?;
                    self.underlay.show_outside_the_way(own, node_address)?;
                    own
                };
                for protocol in ["tcp", "udp"] {
                    let seen = pod.space.ask(&self.options.binaries, protocol, server)?;
                    anyhow::ensure!(
                        seen.starts_with(&format!("peer={expected} ")),
                        "{} on {} asked the outside by {protocol}, which saw {seen:?} instead of the address {expected}",
                        pod.name,
                        node.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Packets took the ways that the mode promises, and the guard that says so does work.
    ///
    /// # Errors
    /// A packet with a pod's address was where it must not be, none was where it should be, or the guard does not work.
    pub fn check_ways(&self) -> anyhow::Result<()> {
        self.underlay.check_ways()?;
        let first = self.nodes.first().context("a node")?;
        self.underlay.prove_guard(first)
    }

    /// Node 2 is unplugged, and plugged in behind the router with other addresses: it is followed, and everybody reaches
    /// everybody again.
    ///
    /// # Errors
    /// Somebody is not reached within the deadline.
    pub fn check_move(&mut self) -> anyhow::Result<()> {
        let node = self.nodes.get_mut(1).context("a second node")?;
        node.move_to(&self.underlay, Subnet::Far)?;
        self.write_objects(self.options.masquerading)?;
        for pool in self.options.families.pools() {
            let everybody = || {
                let matrix = self.matrix(pool)?;
                matrix.check().map(|()| matrix)
            };
            let matrix = until(
                "everybody to reach the node that has moved",
                MOVED,
                everybody,
            )?;
            println!("after node-2 has moved to the other subnet\n{matrix}");
        }
        Ok(())
    }

    /// How to look around.
    #[must_use]
    pub fn guide(&self) -> String {
        let mut text =
            String::from("The lab stays up until the next one or `make down`. To look around:\n");
        let nodes = self.nodes.iter().map(|node| (&node.name, &node.space));
        let pods = self.pods.iter().map(|pod| (&pod.name, &pod.space));
        for (name, space) in nodes.chain(pods) {
            text += &format!("  {name:8} {}\n", space.enter_line());
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

/// Build a lab, print a matrix for each family, check everything else in it.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<Vec<Matrix>> {
    let started = Instant::now();
    println!("{options}");
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

fn check(lab: &mut Lab) -> anyhow::Result<Vec<Matrix>> {
    let mut matrices = Vec::new();
    for pool in lab.options.families.pools() {
        let matrix = lab.matrix(pool)?;
        println!("{matrix}");
        matrices.push(matrix);
    }
    matrices.iter().try_for_each(Matrix::check)?;
    if let Some((folder, tell)) = lab.options.snapshots.clone() {
        lab.check_snapshot(&folder, tell)?;
    }
    if lab.options.sizes {
        lab.check_sizes()?;
    }
    lab.check_outside()?;
    lab.check_ways()?;
    if lab.options.mode.crosses_subnets() {
        lab.check_move()?;
    }
    Ok(matrices)
}
