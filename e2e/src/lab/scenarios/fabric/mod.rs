//! Underlay mode in a fabric of foreign routers, without the node-to-node mesh.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::families::Families;
use crate::lab::cluster::nodes::Cluster;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::node::host_bird;
use crate::lab::topology::fabric::{Fabric, RACKS};
use crate::traffic::loss_meter::INTERVAL;
use crate::traffic::matrix::Matrix;
use netweft_crds::PodInterface;

pub use crate::lab::topology::fabric::router::Routers;

/// The options of a fabric lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// The BGP implementation of the routers.
    pub routers: Routers,
    /// IP families of nodes and pods.
    pub families: Families,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with `bird` and `birdc` for the nodes.
    pub bird: Option<PathBuf>,
    /// The folder that e2e/routers/root.sh prints.
    pub root: PathBuf,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            routers, families, ..
        } = self;
        write!(f, "fabric of {routers}, {families}")
    }
}

/// Limit for the failover to another uplink. BFD detects a failure after three packets, 300 ms apart, so failover takes about one second.
/// The limit allows for a busy machine, and is far below the hold time of sessions without BFD, 90 s.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit until the routers have converged.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

struct Lab {
    cluster: Cluster,
    fabric: Fabric,
    options: Options,
}

/// Builds the fabric, and checks that it routes pods' packets, also after the failure of an uplink.
///
/// # Errors
/// The lab cannot be built, or a check fails. The logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<Vec<Matrix>> {
    let started = Instant::now();
    println!("{options}");
    let mut cluster = Cluster::new(&options.binaries, options.bird.as_deref())?;
    cluster.bird_programs()?;
    let fabric = Fabric::create(
        &mut cluster.run,
        &options.root,
        options.routers,
        options.families,
    )
    .context("build the fabric")?;
    let mut lab = Lab {
        cluster,
        fabric,
        options: options.clone(),
    };
    let outcome = lab.set_up().and_then(|()| lab.check());
    if outcome.is_err() {
        eprintln!("{}", lab.fabric.routes());
    }
    lab.cluster.finish(started, outcome, keep)
}

impl Lab {
    fn set_up(&mut self) -> anyhow::Result<()> {
        for rack in &RACKS {
            for (number, uplink, _) in rack.nodes {
                let mut node = Node::create(&mut self.cluster.run, &format!("node-{number}"), 1)?;
                self.fabric.connect(&mut node, rack, number, uplink)?;
                self.cluster.nodes.push(node);
            }
        }
        self.cluster.register_nodes();
        for rack in &RACKS {
            for (number, _, as_number) in rack.nodes {
                let node = format!("node-{number}");
                self.cluster
                    .label(&node, "rack", &format!("r{}", rack.number));
                self.cluster.label(&node, "as", &as_number.to_string());
            }
        }
        self.create_objects()?;
        self.cluster.reconcile()?;
        self.start_host_bird()?;
        self.cluster.start_node_programs(false)?;
        self.cluster.wait_until_ready()?;
        self.cluster.add_pods(1)?;
        let others = self.cluster.nodes.len() - 1;
        let expected = others * self.options.families.pools().count();
        self.cluster.wait_for_bgp_routes(expected)
    }

    /// Creates the objects that a user applies for this fabric.
    fn create_objects(&mut self) -> anyhow::Result<()> {
        let Options {
            routers, families, ..
        } = self.options;
        let numbers = RACKS.iter().flat_map(|rack| rack.nodes);
        let rule = |as_number: u32| {
            json!({ "nodeSelector": { "matchLabels": { "as": as_number.to_string() } },
                "asNumber": as_number })
        };
        let rules: Vec<_> = numbers.map(|(_, _, as_number)| rule(as_number)).collect();
        let store = &mut self.cluster.store;
        store.pools = objects::pools(families, PodInterface::Routed, true)?;
        store.modes = vec![objects::mode(&json!({
            "mode": "underlay",
            "underlay": { "nodeToNodeMesh": false, "asNumbers": rules },
        }))?];
        for rack in &RACKS {
            for (peer, as_number) in rack.peers(routers, families) {
                let family = if peer.is_ipv4() { "" } else { "-ipv6" };
                let spec = json!({
                    "nodeSelector": { "matchLabels": { "rack": format!("r{}", rack.number) } },
                    "peerIP": peer, "asNumber": as_number, "connectRetryTime": "1s",
                });
                let name = format!("rack-{}{family}", rack.number);
                store.peers.push(objects::peer(&name, &spec)?);
            }
        }
        Ok(())
    }

    /// Starts a second BIRD on node 2, which belongs to the node's owner.
    fn start_host_bird(&mut self) -> anyhow::Result<()> {
        let programs = self.cluster.bird_programs()?.to_owned();
        let (node, run) = self.cluster.node_mut(2)?;
        host_bird::start(run, node, &programs)
    }

    fn check(&mut self) -> anyhow::Result<Vec<Matrix>> {
        let mut matrices = Vec::new();
        for pool in self.options.families.pools() {
            // The routers may converge after the nodes.
            let matrix = until(
                "reachability across the fabric",
                CONVERGENCE_TIMEOUT,
                || {
                    let matrix = self.cluster.matrix(pool, |_, _| true)?;
                    matrix.check().map(|()| matrix)
                },
            )?;
            println!("{matrix}");
            matrices.push(matrix);
        }
        self.check_paths()?;
        host_bird::check(self.cluster.node(2)?)?;
        self.check_statuses()?;
        self.check_uplink()?;
        host_bird::check(self.cluster.node(2)?)?;
        Ok(matrices)
    }

    /// Pods' packets were not encapsulated on any link.
    fn check_paths(&self) -> anyhow::Result<()> {
        let counts = self.fabric.frame_counts()?;
        println!("on all links: {counts:?}");
        ensure!(
            counts.unencapsulated > 0 && counts.encapsulated_on_link == 0,
            "pods' packets were encapsulated or not sent: {counts:?}"
        );
        Ok(())
    }

    /// The status of every BGPPeer reports established sessions of both nodes.
    fn check_statuses(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.cluster.peer_names();
        for name in names {
            until("the node counts of a BGPPeer", FAILOVER_TIMEOUT, || {
                self.cluster.reconcile()?;
                let status = self.cluster.store.peer_status(&name);
                let nodes = status.and_then(|status| status.nodes);
                let nodes =
                    nodes.with_context(|| format!("the status of {name} has no node counts"))?;
                ensure!(
                    (nodes.established, nodes.total) == (2, 2),
                    "{name} has {nodes:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Cuts an uplink that carries traffic in the middle, so that no end loses its carrier.
    fn check_uplink(&self) -> anyhow::Result<()> {
        until(
            "the BFD sessions of the routers",
            CONVERGENCE_TIMEOUT,
            || self.fabric.check_bfd_sessions(self.options.routers),
        )?;
        let sessions = self.cluster.established()?;
        let before = self.fabric.unencapsulated_on_wires()?;
        let meter = self.cluster.meter(INTERVAL)?;
        let busy = until("traffic on an uplink", FAILOVER_TIMEOUT, || {
            let busy = self.fabric.busy_uplinks(&before)?;
            busy.first().copied().context("no uplink carries traffic")
        })?;
        self.fabric.cut(busy)?;
        std::thread::sleep(FAILOVER_TIMEOUT / 2);
        let losses = meter.finish()?;
        println!("wire {busy} was cut: {losses}");
        ensure!(
            !losses.pairs.is_empty(),
            "no packet was lost, so the cut wire carried no traffic"
        );
        ensure!(
            losses.longest() < FAILOVER_TIMEOUT,
            "failover took {:?}",
            losses.longest()
        );
        for pool in self.options.families.pools() {
            self.cluster.matrix(pool, |_, _| true)?.check()?;
        }
        let after = self.cluster.established()?;
        ensure!(
            sessions == after,
            "sessions of nodes have changed: {sessions:?}, then {after:?}"
        );
        Ok(())
    }
}

/// The root folder of the routers.
///
/// # Errors
/// No folder is given.
pub fn root(folder: Option<&Path>) -> anyhow::Result<PathBuf> {
    let root = folder.map(Path::to_owned);
    root.context("a fabric needs routers: --routers-root \"$(e2e/routers/root.sh)\"")
}
