//! Restarts, topology changes and foreign peers of BGP: three nodes in a mesh on one link.
//!
//! ```text
//!   node-1  node-2  node-3   foreign speakers: BIRDs with other configurations
//!   ══╧═══════╧═══════╧═════════════╧═══════  one link
//! ```

mod edits;
mod foreign_peers;
mod foreign_speaker;
mod restarts;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netweft_crds::PodInterface;
use serde_json::{Value, json};

use crate::lab::cluster::families::Families;
use crate::lab::cluster::nodes::Cluster;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::topology::segment::Segment;
use crate::lab::topology::underlay::{Subnet, addresses, default_route};
use ipnet::IpNet;

/// A scenario of BGP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// BIRD processes and agents stop and restart.
    Restarts,
    /// Two BIRD processes restart at the same time, before either has announced its routes to the other.
    Recoveries,
    /// Route reflectors replace the mesh, then a router replaces the reflectors, while pods ping.
    Edits,
    /// Peers are misconfigured, unreachable or announce wrong routes.
    ForeignPeers,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restarts => "BIRDs and agents restart",
            Self::Recoveries => "two BIRDs restart at the same time",
            Self::Edits => "mesh, reflectors, a router",
            Self::ForeignPeers => "misconfigured, unreachable and hostile peers",
        })
    }
}

/// The options of a BGP lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scenario.
    pub scenario: Scenario,
    /// IP families of nodes and pods.
    pub families: Families,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with `bird` and `birdc`.
    pub bird: Option<PathBuf>,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BGP, {}, {}", self.scenario, self.families)
    }
}

/// Limit until all sessions are established.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(60);
const UPLINKS: [&str; 3] = ["eth0", "ens5", "enp3s0"];
/// Host number of the nodes' default gateway.
const GATEWAY: u8 = 200;

struct Lab {
    cluster: Cluster,
    segment: Segment,
    families: Families,
}

/// Builds a lab and runs the scenario.
///
/// # Errors
/// The lab cannot be built, or a check fails. The logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    println!("{options}");
    let mut cluster = Cluster::new(&options.binaries, options.bird.as_deref())?;
    cluster.bird_programs()?;
    let segment = Segment::create(&mut cluster.run)?;
    let mut lab = Lab {
        cluster,
        segment,
        families: options.families,
    };
    let outcome = lab.set_up().and_then(|()| match options.scenario {
        Scenario::Restarts => lab.run_restarts(),
        Scenario::Recoveries => lab.run_recoveries(),
        Scenario::Edits => lab.run_edits(),
        Scenario::ForeignPeers => lab.run_foreign_peers(),
    });
    lab.cluster.finish(started, outcome, keep)
}

impl Lab {
    fn set_up(&mut self) -> anyhow::Result<()> {
        let gateways = addresses(self.families, Subnet::Near, GATEWAY);
        let gateway = crate::lab::topology::namespace::Namespace::network(&mut self.cluster.run)?;
        self.segment.attach(&gateway, "host0", &gateways)?;
        for (number, uplink) in (1..).zip(UPLINKS) {
            let mut node = Node::create(&mut self.cluster.run, &format!("node-{number}"), 1)?;
            let nets = addresses(self.families, Subnet::Near, number);
            self.segment.attach(&node.namespace, uplink, &nets)?;
            for net in &gateways {
                node.namespace.ip(&default_route(*net, uplink))?;
            }
            node.addresses = nets.iter().map(IpNet::addr).collect();
            self.cluster.nodes.push(node);
        }
        self.cluster.register_nodes();
        self.cluster.store.pools = objects::pools(self.families, PodInterface::Routed, true)?;
        self.set_underlay(&json!({}))?;
        self.cluster.reconcile()?;
        self.cluster.start_node_programs(false)?;
        self.cluster.wait_until_ready()?;
        self.cluster.add_pods(1)?;
        self.wait_until_established()?;
        self.wait_for_routes()
    }

    /// Sets the underlay settings of the NetworkMode.
    fn set_underlay(&mut self, underlay: &Value) -> anyhow::Result<()> {
        let spec = json!({ "mode": "underlay", "underlay": underlay });
        self.cluster.store.modes = vec![objects::mode(&spec)?];
        Ok(())
    }

    /// Waits until every node has routes to the blocks of all others.
    fn wait_for_routes(&self) -> anyhow::Result<()> {
        let others = self.cluster.nodes.len() - 1;
        self.cluster
            .wait_for_bgp_routes(others * self.families.pools().count())
    }

    /// Waits until every node has applied its current NodeNetwork and all its sessions are established.
    fn wait_until_established(&mut self) -> anyhow::Result<()> {
        self.cluster.wait_until_established(SESSIONS_TIMEOUT)
    }
}
