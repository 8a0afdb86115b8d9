//! Nodes with agents and pods, whatever they are connected by, and the objects that tell them what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::SessionState;

use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::cluster::fake_api::Store;
use crate::lab::cluster::objects;
use crate::lab::node::bird;
use crate::lab::node::pod::Pod;
use crate::lab::node::{Node, PASSWORDS};
use crate::lab::topology::namespace::Namespace;
use crate::lab::traffic::loss_meter;
use crate::traffic::loss_meter::Pings;
use crate::traffic::matrix::{Endpoint, Matrix, Row, targets};

/// TCP port of the test servers in pods and on nodes.
pub const TCP_PORT: u16 = 8080;
/// How long sessions may take to come up and to fill the kernel's table: the peer listens, so some seconds.
const ROUTES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may differ from its desired state; a repair takes tens of milliseconds.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// All that a lab is made of but what is between the nodes.
pub struct Site {
    /// Owner of every process.
    pub run: Run,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with BIRD's programs, if it is to run on the nodes.
    pub bird: Option<PathBuf>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Their pods.
    pub pods: Vec<Pod>,
    /// The objects.
    pub store: Store,
    /// Namespaces that have a server, by their holders.
    serving: BTreeSet<u32>,
}

impl Site {
    /// One without nodes.
    pub fn new(binaries: &Path, bird: Option<&Path>) -> anyhow::Result<Self> {
        let run = Run::begin("lab")?;
        let store = Store::new(run.folder().join("objects"))?;
        let passwords = run.folder().join(PASSWORDS);
        if passwords.exists() {
            fs::remove_dir_all(&passwords)?;
        }
        fs::create_dir(&passwords)?;
        Ok(Self {
            run,
            binaries: binaries.to_owned(),
            bird: bird.map(Path::to_owned),
            nodes: Vec::new(),
            pods: Vec::new(),
            store,
            serving: BTreeSet::new(),
        })
    }

    /// Folder with BIRD's programs.
    pub fn bird_programs(&self) -> anyhow::Result<&Path> {
        let programs = self.bird.as_deref();
        programs.context("BIRD's programs are wanted: --bird \"$(e2e/cluster/bird.sh)\"")
    }

    /// The key of the agents' Secret has this password.
    pub fn set_password(&self, key: &str, password: &str) -> anyhow::Result<()> {
        let file = self.run.folder().join(PASSWORDS).join(key);
        fs::write(&file, password).with_context(|| format!("write {}", file.display()))
    }

    /// Node number `number`, counted from 1.
    pub fn node(&self, number: usize) -> anyhow::Result<&Node> {
        let node = number.checked_sub(1).and_then(|at| self.nodes.get(at));
        node.with_context(|| format!("the lab has a node {number}"))
    }

    /// The same, to be changed, with the run that its programs belong to.
    pub fn node_mut(&mut self, number: usize) -> anyhow::Result<(&mut Node, &mut Run)> {
        let at = number.checked_sub(1);
        let node = at.and_then(|at| self.nodes.get_mut(at));
        let node = node.with_context(|| format!("the lab has a node {number}"))?;
        Ok((node, &mut self.run))
    }

    /// Register the nodes, with their addresses as they are now; labels stay.
    pub fn register_nodes(&mut self) {
        let labels: BTreeMap<String, BTreeMap<String, String>> = self
            .store
            .nodes
            .drain(..)
            .map(|node| (node.name_any(), node.labels().clone()))
            .collect();
        let node = |node: &Node| {
            let labels = labels.get(&node.name).cloned().unwrap_or_default();
            objects::node(&node.name, &node.addresses, labels)
        };
        self.store.nodes = self.nodes.iter().map(node).collect();
    }

    /// Give a registered node a label.
    pub fn label(&mut self, node: &str, key: &str, value: &str) {
        for registered in &mut self.store.nodes {
            if registered.name_any() == node {
                let labels = registered.metadata.labels.get_or_insert_default();
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }

    /// Start an agent on every node, BIRD if it is wanted, and the relay if it is.
    pub fn start_agents(&mut self, relay: bool) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(programs) = self.bird.as_deref() {
                node.start_bird(&mut self.run, programs)?;
            }
            if relay {
                node.start_relay(&mut self.run, &self.binaries)?;
            }
        }
        self.start_agents_alone()
    }

    /// Start an agent on every node.
    pub fn start_agents_alone(&mut self) -> anyhow::Result<()> {
        let bird = self.bird.as_deref();
        for node in &mut self.nodes {
            node.start_agent(&mut self.run, &self.binaries, self.store.folder(), bird)?;
        }
        Ok(())
    }

    /// Start the agent of node number `number`.
    pub fn start_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let (binaries, bird) = (self.binaries.clone(), self.bird.clone());
        let objects = self.store.folder().to_owned();
        let (node, run) = self.node_mut(number)?;
        node.start_agent(run, &binaries, &objects, bird.as_deref())
    }

    /// Every agent says that its node is ready.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(Node::wait_until_ready)
    }

    /// Add pods to every node.
    pub fn add_pods(&mut self, per_node: usize) -> anyhow::Result<()> {
        for node in &self.nodes {
            for letter in ('a'..='z').take(per_node) {
                let name = format!("{}{letter}", node.name.replace("node-", "pod-"));
                let pod = Pod::add(&mut self.run, node, &name, &self.binaries)?;
                self.pods.push(pod);
            }
        }
        Ok(())
    }

    /// A server in every pod, and on every node if `nodes`, where there is none yet; they listen when this returns.
    pub fn start_servers(&mut self, nodes: bool) -> anyhow::Result<()> {
        let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), TCP_PORT);
        let mut started = Vec::new();
        let pods = self.pods.iter().map(|pod| (&pod.name, &pod.space));
        let of_nodes = self.nodes.iter().filter(|_| nodes);
        let of_nodes = of_nodes.map(|node| (&node.name, &node.space));
        for (name, space) in pods.chain(of_nodes) {
            if !self.serving.insert(space.pid()) {
                continue;
            }
            let mut command = space.command(self.binaries.join("netweft-probe"));
            command.arg("serve");
            let log = self.run.folder().join(format!("{name}-server.log"));
            space.start(&mut self.run, &mut command, &log)?;
            started.push(space);
        }
        for space in started {
            until("a server", LISTEN_TIMEOUT, || {
                space.ask(&self.binaries, "tcp", here, 0)
            })?;
        }
        Ok(())
    }

    /// Add one pod to a node.
    pub fn add_pod(&mut self, number: usize) -> anyhow::Result<()> {
        let binaries = self.binaries.clone();
        let (node, run) = self.node_mut(number)?;
        let pod = Pod::add(run, node, &format!("pod-{number}a"), &binaries)?;
        self.pods.push(pod);
        Ok(())
    }

    /// The operator's core gets the statuses of the agents, and its plan is applied.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // An agent may not have written a status yet.
            if let Ok(status) = node.status() {
                self.store.report(&node.name, status);
            }
        }
        self.store.settle()
    }

    /// All pods and nodes ping each other in the family of `pool`, except targets without a route back.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix(
        &self,
        pool: IpNet,
        finds_back: impl Fn(&Endpoint, &Endpoint) -> bool,
    ) -> anyhow::Result<Matrix> {
        let of_family = || {
            self.sources()
                .filter(|(endpoint, _)| endpoint.address.is_ipv4() == pool.addr().is_ipv4())
        };
        let endpoints: Vec<Endpoint> = of_family().map(|(endpoint, _)| endpoint).collect();
        let mut matrix = Matrix::default();
        for (source, space) in of_family() {
            let mut targets = targets(&source, &endpoints);
            targets.retain(|target| finds_back(&source, target));
            if targets.is_empty() {
                continue;
            }
            let addresses: Vec<IpAddr> = targets.iter().map(|target| target.address).collect();
            let answers = space.ping(&self.binaries, &addresses)?;
            matrix.add(Row {
                source,
                targets,
                answers,
            })?;
        }
        Ok(matrix)
    }

    /// All pods and nodes at every address.
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

    /// Pings between all pods of different nodes.
    pub fn meter(&self, interval: Duration) -> anyhow::Result<Pings> {
        loss_meter::start(&self.binaries, &self.pods, interval)
    }

    /// Every node is what its agent would make of the objects, in the words of another process of the agent's program.
    pub fn is_as_wanted(&self) -> anyhow::Result<()> {
        let (binaries, objects) = (&self.binaries, self.store.folder());
        for node in &self.nodes {
            let what = format!("{} to be as it should be", node.name);
            until(&what, SYNC_TIMEOUT, || node.check(binaries, objects))?;
        }
        Ok(())
    }

    /// The end of a lab that began at `started`: logs if it failed, the time it took, and what [`Site::end`] does.
    pub fn conclude<T>(
        self,
        started: Instant,
        outcome: anyhow::Result<T>,
        keep: bool,
    ) -> anyhow::Result<T> {
        if outcome.is_err() {
            eprintln!("{}", self.logs());
        }
        println!("{:.1} s\n", started.elapsed().as_secs_f32());
        self.end(keep)?;
        outcome
    }

    /// Take everything away, or leave it up and say how to look around.
    fn end(self, keep: bool) -> anyhow::Result<()> {
        if keep {
            println!("{}", self.guide());
            return Ok(());
        }
        self.run.end()
    }

    fn guide(&self) -> String {
        let mut text =
            String::from("The lab stays up until the next one or `make down`. To look around:\n");
        let nodes = self.nodes.iter().map(|node| (&node.name, &node.space));
        let pods = self.pods.iter().map(|pod| (&pod.name, &pod.space));
        for (name, space) in nodes.chain(pods) {
            text += &format!("  {name:8} {}\n", space.enter_line());
        }
        text
    }

    /// Names of the BGPPeers.
    pub fn peer_names(&self) -> Vec<String> {
        self.store.peers.iter().map(ResourceExt::name_any).collect()
    }

    /// All nodes' established sessions, and since when.
    pub fn established(&self) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
        let programs = self.bird_programs()?;
        let of = |node: &Node| {
            let sessions = bird::established(&node.space, programs)?;
            Ok((node.name.clone(), sessions))
        };
        self.nodes.iter().map(of).collect()
    }

    /// Every node carries out what the operator says now, and has all its sessions.
    pub fn wait_until_established(&mut self, deadline: Duration) -> anyhow::Result<()> {
        until("all sessions", deadline, || {
            self.settle()?;
            // Agents look every two seconds: what they say may be of before.
            let established = self.established()?;
            for node in &self.nodes {
                let network = self.store.network(&node.name)?;
                let status = node.status()?;
                let up = established.get(&node.name).map_or(0, BTreeMap::len);
                ensure!(
                    status.observed_generation == network.metadata.generation,
                    "{} is at generation {:?} of {:?}",
                    node.name,
                    status.observed_generation,
                    network.metadata.generation
                );
                let said: BTreeMap<_, _> = status
                    .sessions
                    .iter()
                    .map(|session| (&session.name, session.state))
                    .collect();
                let wanted = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
                ensure!(
                    up == wanted.clone().count(),
                    "BIRD of {} has {up} sessions",
                    node.name
                );
                for session in wanted {
                    ensure!(
                        said.get(&session.name) == Some(&SessionState::Established),
                        "{}: {} is not established: {said:?}",
                        node.name,
                        session.name
                    );
                }
            }
            Ok(())
        })
    }

    /// Wait until BIRD has given every node's kernel this many routes.
    pub fn wait_for_bgp_routes(&self, wanted: usize) -> anyhow::Result<()> {
        for node in &self.nodes {
            until("routes by BGP", ROUTES_TIMEOUT, || {
                let routes = node.bgp_routes()?;
                ensure!(
                    routes.len() == wanted,
                    "{} has {} of {wanted}: {routes:?}",
                    node.name,
                    routes.len()
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What agents and BIRDs have written to their logs, for a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let read = |node: &Node| {
            let of_agent = fs::read_to_string(node.agent_log(&self.run)).unwrap_or_default();
            let of_bird = fs::read_to_string(bird::log(&self.run, &node.name)).unwrap_or_default();
            format!("--- {}\n{of_agent}{of_bird}", node.name)
        };
        self.nodes.iter().map(read).collect()
    }
}
