//! What BGP has to bear: three nodes on one link in a mesh, while things are done to them and by others.
//!
//! ```text
//!   node-1  node-2  node-3   foreign speakers: BIRDs with configurations of their own
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
use crate::lab::cluster::nodes::Site;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::topology::segment::Segment;
use crate::lab::topology::underlay::{Subnet, addresses, default_route};
use ipnet::IpNet;

/// What happens in a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// BIRDs and agents end and come back.
    Restarts,
    /// Two BIRDs that start at the same time, without routes for each other.
    Recoveries,
    /// The mesh gives way to reflectors, and these to a router, while pods ping.
    Edits,
    /// Peers are wrong, silent or lie.
    ForeignPeers,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restarts => "BIRDs and agents end and come back",
            Self::Recoveries => "two BIRDs recover at the same time",
            Self::Edits => "mesh, reflectors, a router",
            Self::ForeignPeers => "peers that are wrong, silent or lie",
        })
    }
}

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// What happens.
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

/// How long sessions may take to be as they should.
const SETTLED: Duration = Duration::from_secs(60);
const UPLINKS: [&str; 3] = ["eth0", "ens5", "enp3s0"];
/// Host number of who has the nodes' default route.
const GATEWAY: u8 = 200;

struct Lab {
    site: Site,
    segment: Segment,
    families: Families,
}

/// Build a lab, and let things happen.
///
/// # Errors
/// A check that fails; logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    println!("{options}");
    let mut site = Site::new(&options.binaries, options.bird.as_deref())?;
    site.bird_programs()?;
    let segment = Segment::make(&mut site.run)?;
    let mut lab = Lab {
        site,
        segment,
        families: options.families,
    };
    let outcome = lab.stand_up().and_then(|()| match options.scenario {
        Scenario::Restarts => lab.restarts(),
        Scenario::Recoveries => lab.recoveries(),
        Scenario::Edits => lab.edits(),
        Scenario::ForeignPeers => lab.foreign_peers(),
    });
    lab.site.conclude(started, outcome, keep)
}

impl Lab {
    fn stand_up(&mut self) -> anyhow::Result<()> {
        let gateways = addresses(self.families, Subnet::Near, GATEWAY);
        let gateway = crate::lab::topology::namespace::Namespace::network(&mut self.site.run)?;
        self.segment.attach(&gateway, "host0", &gateways)?;
        for (number, uplink) in (1..).zip(UPLINKS) {
            let mut node = Node::make(&mut self.site.run, &format!("node-{number}"), 1)?;
            let nets = addresses(self.families, Subnet::Near, number);
            self.segment.attach(&node.space, uplink, &nets)?;
            for net in &gateways {
                node.space.ip(&default_route(*net, uplink))?;
            }
            node.addresses = nets.iter().map(IpNet::addr).collect();
            self.site.nodes.push(node);
        }
        self.site.register_nodes();
        self.site.store.pools = objects::pools(self.families, PodInterface::Routed, true)?;
        self.ask(&json!({}))?;
        self.site.settle()?;
        self.site.start_agents(false)?;
        self.site.wait_until_ready()?;
        self.site.add_pods(1)?;
        self.wait_until_established()?;
        self.wait_for_routes()
    }

    /// The NetworkMode says this about its underlay.
    fn ask(&mut self, underlay: &Value) -> anyhow::Result<()> {
        let spec = json!({ "mode": "underlay", "underlay": underlay });
        self.site.store.modes = vec![objects::mode(&spec)?];
        Ok(())
    }

    /// Every node has routes to the blocks of the others.
    fn wait_for_routes(&self) -> anyhow::Result<()> {
        let others = self.site.nodes.len() - 1;
        self.site
            .wait_for_bgp_routes(others * self.families.pools().count())
    }

    /// Every node carries out what the operator says now, and has all its sessions.
    fn wait_until_established(&mut self) -> anyhow::Result<()> {
        self.site.wait_until_established(SETTLED)
    }
}
