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
//! ping other nodes (the nodes have no route back), and the host outside has routes to the pods and must see their own
//! addresses. The guard lets these pass and nothing else.

mod cluster;
mod node;
pub mod scenarios;
mod topology;
mod traffic;

use crate::lab::cluster::objects;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use netweft_crds::PodInterface;
use netweft_crds::condition::Reason;

use crate::harness::command;
use crate::harness::poll::until;
use crate::lab::cluster::nodes::Site;
use crate::lab::node::Node;
use crate::lab::topology::underlay::{Subnet, Underlay};
use crate::traffic::matrix::{Endpoint, Matrix};

pub use crate::lab::cluster::families::Families;
pub use crate::lab::cluster::modes::LabMode;
pub use crate::lab::node::kernel_features::masquerades;

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
    /// Folder with `bird` and `birdc`, for modes that need them.
    pub bird: Option<PathBuf>,
    /// Folder with what the kernel should look like, and whether to tell how it does instead of comparing.
    pub snapshots: Option<(PathBuf, bool)>,
    /// Whether to try packets of every size, and TCP and UDP. The nodes' own filter has no part in that.
    pub sizes: bool,
    /// Pods on each node.
    pub pods_per_node: usize,
    /// Time between two pings of a pair in scenarios.
    pub pings: Duration,
    /// Modes that it is changed to afterwards: their programs run from the beginning, and packets may travel plainly.
    pub later: Vec<LabMode>,
    /// Whether pods take their node's address on the way outside: what [`masquerades`] says.
    pub masquerading: bool,
}

impl Options {
    fn some_mode(&self, so: fn(LabMode) -> bool) -> bool {
        so(self.mode) || self.later.iter().any(|mode| so(*mode))
    }
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
    site: Site,
    options: Options,
    underlay: Underlay,
}

impl Lab {
    /// Build the segment and the nodes, start the agents, wait until they are ready, add the pods.
    ///
    /// # Errors
    /// Anything that does not work, in words; what was built is removed by the next lab.
    pub fn build(options: Options) -> anyhow::Result<Self> {
        let bird = options.bird.as_deref();
        let needs_bird = options.some_mode(LabMode::needs_bird);
        let bird = bird.filter(|_| needs_bird);
        let mut site = Site::new(&options.binaries, bird)?;
        let Options {
            mode,
            families,
            masquerading,
            ..
        } = options;
        if needs_bird {
            site.bird_programs()?;
        }
        let underlay = if options.later.is_empty() {
            mode
        } else {
            LabMode::HostGw
        };
        let underlay = Underlay::make(&mut site.run, underlay, families, masquerading)?;
        let mut lab = Self {
            site,
            options,
            underlay,
        };
        let stands = lab.stand_up();
        if stands.is_err() {
            eprintln!("{}", lab.site.logs());
        }
        stands.map(|()| lab)
    }

    fn stand_up(&mut self) -> anyhow::Result<()> {
        let Options {
            mode, rp_filter, ..
        } = self.options;
        for (number, uplink) in (1..).zip(UPLINKS) {
            let name = format!("node-{number}");
            let mut node = Node::make(&mut self.site.run, &name, rp_filter)?;
            let subnet = self.underlay.subnet_of(number);
            self.underlay.connect(&mut node, uplink, subnet, number)?;
            self.site.nodes.push(node);
        }
        self.site.register_nodes();
        self.site.store.modes = vec![objects::mode(&mode.spec())?];
        self.ask_for_masquerading(true)?;
        let relay = self.options.some_mode(LabMode::needs_relay);
        self.site.start_agents(relay)?;
        if !self.options.masquerading {
            self.give_up_masquerading()?;
        }
        self.site.wait_until_ready()?;
        self.site.add_pods(self.options.pods_per_node)?;
        self.wait_for_routes()
    }

    fn ask_for_masquerading(&mut self, nat_outgoing: bool) -> anyhow::Result<()> {
        let Options {
            families,
            pod_interface,
            ..
        } = self.options;
        self.site.store.pools = objects::pools(families, pod_interface, nat_outgoing)?;
        self.site.settle()
    }

    /// Pools that ask for what the kernel cannot do leave pods a network and are named. Then they ask for it no more.
    fn give_up_masquerading(&mut self) -> anyhow::Result<()> {
        for node in &self.site.nodes {
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
        self.ask_for_masquerading(false)
    }

    /// A node is ready without a BGP session; the others' blocks are learnt a little later.
    fn wait_for_routes(&self) -> anyhow::Result<()> {
        if !self.options.mode.needs_bird() {
            return Ok(());
        }
        let others = self.site.nodes.len() - 1;
        let wanted = others * self.options.families.pools().count();
        self.site.wait_for_bgp_routes(wanted)
    }

    /// All pods and nodes ping each other, in the family of `pool`.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix(&self, pool: IpNet) -> anyhow::Result<Matrix> {
        self.site
            .matrix(pool, |source, target| self.finds_back(source, target))
    }

    /// Without masquerading another node would answer a pod beside the way that the question took.
    fn finds_back(&self, source: &Endpoint, target: &Endpoint) -> bool {
        let mut pods = self.site.pods.iter();
        let on_it = pods.any(|pod| pod.name == source.name && pod.node == target.name);
        self.options.masquerading || !target.is_node || on_it
    }

    /// A pod reaches a host outside, which receives the node's address, and without masquerading the pod's.
    ///
    /// # Errors
    /// No answer, or the host sees another address.
    pub fn check_outside(&mut self) -> anyhow::Result<()> {
        self.underlay
            .start_server(&mut self.site.run, &self.options.binaries)?;
        for pod in &self.site.pods {
            let node = self
                .site
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
                    let seen = pod.space.ask(&self.options.binaries, protocol, server, 0)?;
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

    /// Pods answer also what a node sends from the address of its uplink, as a program in the host's network does to a Service: the
    /// kernel chooses that source before kube-proxy chooses the pod.
    ///
    /// # Errors
    /// A pod that does not answer, or ping cannot be run.
    pub fn check_uplink_sources(&self) -> anyhow::Result<()> {
        for node in &self.site.nodes {
            let others = self.site.pods.iter().filter(|pod| pod.node != node.name);
            for (pod, address) in
                others.flat_map(|pod| pod.addresses.iter().map(move |ip| (pod, ip)))
            {
                let source = node.address_like(*address).context("a node's address")?;
                let mut ping = node.space.command("ping");
                ping.args(["-n", "-c", "1", "-W", "2", "-I"]);
                ping.args([source.to_string(), address.to_string()]);
                command::output(&mut ping).with_context(|| {
                    format!("{} does not answer {} from {source}", pod.name, node.name)
                })?;
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
        let first = self.site.node(1)?;
        self.underlay.prove_guard(first)
    }

    /// Node 2 is unplugged, and plugged in behind the router with other addresses: the other nodes follow, and all pods and
    /// nodes reach each other again.
    ///
    /// # Errors
    /// A pod or node is not reached within the deadline.
    pub fn check_move(&mut self) -> anyhow::Result<()> {
        let (number, [_, uplink, _]) = (2, UPLINKS);
        let (node, _) = self.site.node_mut(number.into())?;
        self.underlay.disconnect(node, Subnet::Near)?;
        self.underlay.connect(node, uplink, Subnet::Far, number)?;
        self.site.register_nodes();
        self.site.settle()?;
        for pool in self.options.families.pools() {
            let all_reached = || {
                let matrix = self.matrix(pool)?;
                matrix.check().map(|()| matrix)
            };
            let matrix = until(
                "all pods and nodes to reach the node that has moved",
                MOVED,
                all_reached,
            )?;
            println!("after node-2 has moved to the other subnet\n{matrix}");
        }
        Ok(())
    }
}

/// Build a lab, let something happen in it, and take it away.
fn run_scenario<T>(
    options: Options,
    about: &str,
    keep: bool,
    happens: impl FnOnce(&mut Lab) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    println!("{about}");
    let mut lab = Lab::build(options).context("build the lab")?;
    let outcome = happens(&mut lab);
    lab.site.conclude(started, outcome, keep)
}

/// Build a lab, print a matrix for each family, check everything else in it.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<Vec<Matrix>> {
    run_scenario(options.clone(), &options.to_string(), keep, check)
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
    lab.site.is_as_wanted()?;
    lab.check_outside()?;
    if lab.options.masquerading {
        lab.check_uplink_sources()?;
    }
    lab.check_ways()?;
    if lab.options.mode.crosses_subnets() {
        lab.check_move()?;
    }
    Ok(matrices)
}
