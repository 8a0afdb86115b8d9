//! The namespace lab: a cluster whose nodes are network namespaces of one machine.
//!
//! ```text
//!        node-1 (uplink eth0)   node-2 (uplink ens5)   node-3 (uplink enp3s0)    external (host0)
//!              │                      │                      │                        │
//!   ═══════════╧══════════════════════╧══════════════════════╧════════════════════════╧══════  segment, MTU 1400
//! ```
//!
//! Every node is a network and a mount namespace with a separate `/run`, every pod a network namespace. The operator's core plans the
//! objects, the lab writes them to files, and the released agent and plugin binaries apply them. The segment is a bridge in a separate
//! namespace without external connection. Its guard counts frames, and drops frames with a pod's address in the outer header where an
//! underlay without routes to pods would drop them. For modes that depend on subnets, node 3 is on a second segment behind a router.
//!
//! If the kernel cannot masquerade, the agents must first report that. Then the pools have `natOutgoing: false`, pods do not ping other
//! nodes, which have no return path, and the external host has routes to the pods and must see their own addresses. The guard lets only
//! these frames pass.

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
use crate::lab::cluster::nodes::Cluster;
use crate::lab::node::Node;
use crate::lab::topology::underlay::{Subnet, Underlay};
use crate::traffic::matrix::{Endpoint, Matrix};

pub use crate::lab::cluster::families::Families;
pub use crate::lab::cluster::modes::LabMode;
pub use crate::lab::node::kernel_features::masquerades;

/// The options of a lab.
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
    /// Folder with `bird` and `birdc`, for modes that use BIRD.
    pub bird: Option<PathBuf>,
    /// Folder with the expected kernel state, and whether to print the actual state instead of comparing.
    pub snapshots: Option<(PathBuf, bool)>,
    /// Whether to check packets of all sizes, TCP and UDP. The result does not depend on rp_filter.
    pub sizes: bool,
    /// Number of pods on each node.
    pub pods_per_node: usize,
    /// Time between two pings of a pair while a scenario acts.
    pub ping_interval: Duration,
    /// Modes that the lab changes to later. Their programs run from the start, and the guard allows unencapsulated frames.
    pub later_modes: Vec<LabMode>,
    /// Whether packets of pods to external hosts get the node's address: the result of [`masquerades`].
    pub masquerading: bool,
}

impl Options {
    fn any_mode(&self, predicate: fn(LabMode) -> bool) -> bool {
        predicate(self.mode) || self.later_modes.iter().any(|mode| predicate(*mode))
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

/// Limit until a node is reachable after its move to another subnet.
const MOVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The uplinks of the nodes. The names differ, because netweft must not depend on a name.
const UPLINKS: [&str; 3] = ["eth0", "ens5", "enp3s0"];

/// A running lab.
pub struct Lab {
    cluster: Cluster,
    options: Options,
    underlay: Underlay,
}

impl Lab {
    /// Builds the segment and the nodes, starts the agents, waits until they are ready, and adds the pods.
    ///
    /// # Errors
    /// A step fails. The next lab removes what was built.
    pub fn build(options: Options) -> anyhow::Result<Self> {
        let bird = options.bird.as_deref();
        let needs_bird = options.any_mode(LabMode::needs_bird);
        let bird = bird.filter(|_| needs_bird);
        let mut cluster = Cluster::new(&options.binaries, bird)?;
        let Options {
            mode,
            families,
            masquerading,
            ..
        } = options;
        if needs_bird {
            cluster.bird_programs()?;
        }
        let underlay = if options.later_modes.is_empty() {
            mode
        } else {
            LabMode::HostGw
        };
        let underlay = Underlay::create(&mut cluster.run, underlay, families, masquerading)?;
        let mut lab = Self {
            cluster,
            options,
            underlay,
        };
        let result = lab.set_up();
        if result.is_err() {
            eprintln!("{}", lab.cluster.logs());
        }
        result.map(|()| lab)
    }

    fn set_up(&mut self) -> anyhow::Result<()> {
        let Options {
            mode, rp_filter, ..
        } = self.options;
        for (number, uplink) in (1..).zip(UPLINKS) {
            let name = format!("node-{number}");
            let mut node = Node::create(&mut self.cluster.run, &name, rp_filter)?;
            let subnet = self.underlay.subnet_of(number);
            self.underlay.connect(&mut node, uplink, subnet, number)?;
            self.cluster.nodes.push(node);
        }
        self.cluster.register_nodes();
        self.cluster.store.modes = vec![objects::mode(&mode.spec())?];
        self.set_pools(true)?;
        let relay = self.options.any_mode(LabMode::needs_relay);
        self.cluster.start_node_programs(relay)?;
        if !self.options.masquerading {
            self.disable_masquerading()?;
        }
        self.cluster.wait_until_ready()?;
        self.cluster.add_pods(self.options.pods_per_node)?;
        self.wait_for_routes()
    }

    fn set_pools(&mut self, nat_outgoing: bool) -> anyhow::Result<()> {
        let Options {
            families,
            pod_interface,
            ..
        } = self.options;
        self.cluster.store.pools = objects::pools(families, pod_interface, nat_outgoing)?;
        self.cluster.reconcile()
    }

    /// Agents on a kernel that cannot masquerade accept pods and report the missing feature. After that the pools no longer require it.
    fn disable_masquerading(&mut self) -> anyhow::Result<()> {
        for node in &self.cluster.nodes {
            node.wait_for_status("a status with the missing nftables family", |status| {
                status.conditions.iter().any(|condition| {
                    condition.reason == Reason::KernelLacksFeature.as_str()
                        && condition.message.contains("nftables family inet")
                        && condition.message.contains("natOutgoing: false")
                })
            })?;
        }
        self.set_pools(false)
    }

    /// Waits for routes from BGP. A node is ready already before its sessions are established.
    fn wait_for_routes(&self) -> anyhow::Result<()> {
        if !self.options.mode.needs_bird() {
            return Ok(());
        }
        let others = self.cluster.nodes.len() - 1;
        let expected = others * self.options.families.pools().count();
        self.cluster.wait_for_bgp_routes(expected)
    }

    /// All pods and nodes ping each other, in the family of `pool`.
    ///
    /// # Errors
    /// A probe cannot be run. Pairs without an answer are in the matrix instead.
    pub fn matrix(&self, pool: IpNet) -> anyhow::Result<Matrix> {
        self.cluster
            .matrix(pool, |source, target| self.has_return_path(source, target))
    }

    /// Without masquerading, the answers of another node to a pod take another path than the requests.
    fn has_return_path(&self, source: &Endpoint, target: &Endpoint) -> bool {
        let mut pods = self.cluster.pods.iter();
        let on_target = pods.any(|pod| pod.name == source.name && pod.node == target.name);
        self.options.masquerading || !target.is_node || on_target
    }

    /// Pods reach the external host, which sees the address of the pod's node, or without masquerading the pod's address.
    ///
    /// # Errors
    /// The host does not answer or sees another address, or a program cannot be run.
    pub fn check_external_access(&mut self) -> anyhow::Result<()> {
        self.underlay
            .start_server(&mut self.cluster.run, &self.options.binaries)?;
        for pod in &self.cluster.pods {
            let node = self
                .cluster
                .nodes
                .iter()
                .find(|node| node.name == pod.node)
                .context("the pod's node does not exist")?;
            for server in self.underlay.servers() {
                let node_address = node
                    .address_of_family(server.ip())
                    .context("the node has no address of the family")?;
                let expected = if self.options.masquerading {
                    node_address
                } else {
                    let own = pod
                        .address_of_family(server.ip())
                        .context("the pod has no address of the family")?;
                    self.underlay.add_external_pod_route(own, node_address)?;
                    own
                };
                for protocol in ["tcp", "udp"] {
                    let answer = pod
                        .namespace
                        .ask(&self.options.binaries, protocol, server, 0)?;
                    anyhow::ensure!(
                        answer.starts_with(&format!("peer={expected} ")),
                        "{} on {} sent a {protocol} request to the external host, which answered {answer:?} and should see {expected}",
                        pod.name,
                        node.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Pods answer packets that a node sends from its uplink address. Connections from the host network to a Service have this source,
    /// because the kernel selects the source before kube-proxy selects the pod.
    ///
    /// # Errors
    /// A pod does not answer, or ping cannot be run.
    pub fn check_uplink_sources(&self) -> anyhow::Result<()> {
        for node in &self.cluster.nodes {
            let others = self.cluster.pods.iter().filter(|pod| pod.node != node.name);
            for (pod, address) in
                others.flat_map(|pod| pod.addresses.iter().map(move |ip| (pod, ip)))
            {
                let source = node
                    .address_of_family(*address)
                    .context("the node has no address of the family")?;
                let mut ping = node.namespace.command("ping");
                ping.args(["-n", "-c", "1", "-W", "2", "-I"]);
                ping.args([source.to_string(), address.to_string()]);
                command::output(&mut ping).with_context(|| {
                    format!(
                        "{} does not answer {} with source {source}",
                        pod.name, node.name
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Packets took the paths of the mode, and the guard drops frames with a pod's address.
    ///
    /// # Errors
    /// The guard counted a frame that the mode does not allow, no frame that the mode requires, or the guard does not drop.
    pub fn check_paths(&self) -> anyhow::Result<()> {
        self.underlay.check_paths()?;
        let node = self.cluster.node(1)?;
        self.underlay.check_guard_drops(node)
    }

    /// Node 2 moves to the subnet behind the router with new addresses. After that all pairs are reachable again.
    ///
    /// # Errors
    /// A pair is not reachable within the limit, or a command fails.
    pub fn check_move(&mut self) -> anyhow::Result<()> {
        let (number, [_, uplink, _]) = (2, UPLINKS);
        let (node, _) = self.cluster.node_mut(number.into())?;
        self.underlay.disconnect(node, Subnet::Near)?;
        self.underlay.connect(node, uplink, Subnet::Far, number)?;
        self.cluster.register_nodes();
        self.cluster.reconcile()?;
        for pool in self.options.families.pools() {
            let check = || {
                let matrix = self.matrix(pool)?;
                matrix.check().map(|()| matrix)
            };
            let matrix = until("reachability after the move of node-2", MOVE_TIMEOUT, check)?;
            println!("after the move of node-2 to the other subnet\n{matrix}");
        }
        Ok(())
    }
}

/// Builds a lab, runs a scenario in it, and removes the lab.
fn run_scenario<T>(
    options: Options,
    title: &str,
    keep: bool,
    scenario: impl FnOnce(&mut Lab) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    println!("{title}");
    let mut lab = Lab::build(options).context("build the lab")?;
    let outcome = scenario(&mut lab);
    lab.cluster.finish(started, outcome, keep)
}

/// Builds a lab, prints a matrix of each family, and runs all checks of connectivity.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
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
    if let Some((folder, print_only)) = lab.options.snapshots.clone() {
        lab.check_snapshot(&folder, print_only)?;
    }
    if lab.options.sizes {
        lab.check_sizes()?;
    }
    lab.cluster.wait_for_desired_state()?;
    lab.check_external_access()?;
    if lab.options.masquerading {
        lab.check_uplink_sources()?;
    }
    lab.check_paths()?;
    if lab.options.mode.crosses_subnets() {
        lab.check_move()?;
    }
    Ok(matrices)
}
