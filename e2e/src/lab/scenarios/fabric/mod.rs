//! The fabric: underlay over routers that are not ours, with the mesh off.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::families::Families;
use crate::lab::cluster::nodes::Site;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::node::host_bird;
use crate::lab::topology::fabric::{Fabric, RACKS};
use crate::traffic::loss_meter::INTERVAL;
use crate::traffic::matrix::Matrix;
use netweft_crds::PodInterface;

pub use crate::lab::topology::fabric::router::Routers;

/// What kind of fabric.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose routers.
    pub routers: Routers,
    /// IP families of nodes and pods.
    pub families: Families,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with `bird` and `birdc` for the nodes.
    pub bird: Option<PathBuf>,
    /// What e2e/routers/root.sh prints.
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

/// Three packets of BFD, 300 ms apart, may be missed, and then routes have to be changed: 900 ms and some. The bound is generous for
/// a machine that does other things, and far from what sessions without BFD would take: 90 s.
const TAKEN_OVER: Duration = Duration::from_secs(5);

/// Time limit until routers have announced all routes to each other.
const CONVERGED: Duration = Duration::from_secs(60);

struct Lab {
    site: Site,
    fabric: Fabric,
    options: Options,
}

/// Build the fabric and see it carry pods' packets, also when an uplink fails.
///
/// # Errors
/// A check that fails; logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<Vec<Matrix>> {
    let started = Instant::now();
    println!("{options}");
    let mut site = Site::new(&options.binaries, options.bird.as_deref())?;
    site.bird_programs()?;
    let fabric = Fabric::make(
        &mut site.run,
        &options.root,
        options.routers,
        options.families,
    )
    .context("build the fabric")?;
    let mut lab = Lab {
        site,
        fabric,
        options: options.clone(),
    };
    let outcome = lab.stand_up().and_then(|()| lab.check());
    if outcome.is_err() {
        eprintln!("{}", lab.fabric.words());
    }
    lab.site.conclude(started, outcome, keep)
}

impl Lab {
    fn stand_up(&mut self) -> anyhow::Result<()> {
        for rack in &RACKS {
            for (number, uplink, _) in rack.nodes {
                let mut node = Node::make(&mut self.site.run, &format!("node-{number}"), 1)?;
                self.fabric.connect(&mut node, rack, number, uplink)?;
                self.site.nodes.push(node);
            }
        }
        self.site.register_nodes();
        for rack in &RACKS {
            for (number, _, as_number) in rack.nodes {
                let node = format!("node-{number}");
                self.site.label(&node, "rack", &format!("r{}", rack.number));
                self.site.label(&node, "as", &as_number.to_string());
            }
        }
        self.ask()?;
        self.site.settle()?;
        self.start_host_bird()?;
        self.site.start_agents(false)?;
        self.site.wait_until_ready()?;
        self.site.add_pods(1)?;
        let others = self.site.nodes.len() - 1;
        let wanted = others * self.options.families.pools().count();
        self.site.wait_for_bgp_routes(wanted)
    }

    /// What a user of such a fabric applies.
    fn ask(&mut self) -> anyhow::Result<()> {
        let Options {
            routers, families, ..
        } = self.options;
        let numbers = RACKS.iter().flat_map(|rack| rack.nodes);
        let rule = |as_number: u32| {
            json!({ "nodeSelector": { "matchLabels": { "as": as_number.to_string() } },
                "asNumber": as_number })
        };
        let rules: Vec<_> = numbers.map(|(_, _, as_number)| rule(as_number)).collect();
        let store = &mut self.site.store;
        store.pools = objects::pools(families, PodInterface::Routed, true)?;
        store.modes = vec![objects::mode(&json!({
            "mode": "underlay",
            "underlay": { "nodeToNodeMesh": false, "asNumbers": rules },
        }))?];
        for rack in &RACKS {
            for (peer, as_number) in rack.speaker(routers, families) {
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

    /// Another BIRD, which the second node's owner runs for reasons of their own.
    fn start_host_bird(&mut self) -> anyhow::Result<()> {
        let programs = self.site.bird_programs()?.to_owned();
        let (node, run) = self.site.node_mut(2)?;
        host_bird::start(run, node, &programs)
    }

    fn check(&mut self) -> anyhow::Result<Vec<Matrix>> {
        let mut matrices = Vec::new();
        for pool in self.options.families.pools() {
            // Routers announce routes to each other later than to the nodes.
            let matrix = until("all pods and nodes to reach each other", CONVERGED, || {
                let matrix = self.site.matrix(pool, |_, _| true)?;
                matrix.check().map(|()| matrix)
            })?;
            println!("{matrix}");
            matrices.push(matrix);
        }
        self.check_ways()?;
        host_bird::check(self.site.node(2)?)?;
        self.check_statuses()?;
        self.check_uplink()?;
        host_bird::check(self.site.node(2)?)?;
        Ok(matrices)
    }

    /// Nothing was encapsulated anywhere.
    fn check_ways(&self) -> anyhow::Result<()> {
        let seen = self.fabric.seen()?;
        println!("on all links: {seen:?}");
        ensure!(
            seen.plain > 0 && seen.encapsulated_here == 0,
            "pods' packets are to travel as they are: {seen:?}"
        );
        Ok(())
    }

    /// Every BGPPeer says that its two nodes have the session.
    fn check_statuses(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.site.peer_names();
        for name in names {
            until("a BGPPeer to count its nodes", TAKEN_OVER, || {
                self.site.settle()?;
                let status = self.site.store.peer_status(&name);
                let nodes = status.and_then(|status| status.nodes);
                let nodes = nodes.with_context(|| format!("{name} counts no nodes"))?;
                ensure!(
                    (nodes.established, nodes.total) == (2, 2),
                    "{name} has {nodes:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A wire that carries traffic is cut, and no link loses its carrier.
    fn check_uplink(&self) -> anyhow::Result<()> {
        until("the routers to watch each other", CONVERGED, || {
            self.fabric.check_watched(self.options.routers)
        })?;
        let sessions = self.site.established()?;
        let before = self.fabric.plain_on_wires()?;
        let meter = self.site.meter(INTERVAL)?;
        let busy = until("traffic on an uplink", TAKEN_OVER, || {
            let busy = self.fabric.busy_uplinks(&before)?;
            busy.first().copied().context("no uplink carries anything")
        })?;
        self.fabric.cut(busy)?;
        std::thread::sleep(TAKEN_OVER / 2);
        let losses = meter.finish()?;
        println!("wire {busy} was cut: {losses}");
        ensure!(
            !losses.pairs.is_empty(),
            "nothing was lost: the wire that was cut carried nothing"
        );
        ensure!(
            losses.longest() < TAKEN_OVER,
            "the other way was taken after {:?}",
            losses.longest()
        );
        for pool in self.options.families.pools() {
            self.site.matrix(pool, |_, _| true)?.check()?;
        }
        let after = self.site.established()?;
        ensure!(
            sessions == after,
            "sessions of nodes have changed: {sessions:?}, then {after:?}"
        );
        Ok(())
    }
}

/// The root folder of the routers' programs.
pub fn root(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let root = given.map(Path::to_owned);
    root.context("a fabric takes routers: --routers-root \"$(e2e/routers/root.sh)\"")
}
