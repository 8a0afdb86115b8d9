//! The nodes of a lab with agents and pods, and the objects. The topology that connects the nodes is separate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use kube::ResourceExt;

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
/// Limit until a server listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit until a node has its desired state, which takes tens of milliseconds.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// All parts of a lab except the topology.
pub struct Cluster {
    /// The owner of all processes.
    pub run: Run,
    /// Folder with the released programs.
    pub binaries: PathBuf,
    /// Folder with `bird` and `birdc`, for labs with BIRD on the nodes.
    pub bird: Option<PathBuf>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The objects.
    pub store: Store,
    /// Namespaces with a test server, by process ID.
    servers: BTreeSet<u32>,
}

impl Cluster {
    /// A cluster without nodes.
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
            servers: BTreeSet::new(),
        })
    }

    /// Folder with `bird` and `birdc`.
    pub fn bird_programs(&self) -> anyhow::Result<&Path> {
        let programs = self.bird.as_deref();
        programs.context("the lab needs BIRD: --bird \"$(e2e/cluster/bird.sh)\"")
    }

    /// Sets a BGP password: the value of a key in the agents' Secret.
    pub fn set_password(&self, key: &str, password: &str) -> anyhow::Result<()> {
        let file = self.run.folder().join(PASSWORDS).join(key);
        fs::write(&file, password).with_context(|| format!("write {}", file.display()))
    }

    /// The node with this number, counted from 1.
    pub fn node(&self, number: usize) -> anyhow::Result<&Node> {
        let node = number.checked_sub(1).and_then(|at| self.nodes.get(at));
        node.with_context(|| format!("the lab has no node {number}"))
    }

    /// The node with this number, and the run that owns its processes.
    pub fn node_mut(&mut self, number: usize) -> anyhow::Result<(&mut Node, &mut Run)> {
        let at = number.checked_sub(1);
        let node = at.and_then(|at| self.nodes.get_mut(at));
        let node = node.with_context(|| format!("the lab has no node {number}"))?;
        Ok((node, &mut self.run))
    }

    /// Registers all nodes with their current addresses. Labels stay.
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

    /// Adds a label to a registered node.
    pub fn label(&mut self, node: &str, key: &str, value: &str) {
        for registered in &mut self.store.nodes {
            if registered.name_any() == node {
                let labels = registered.metadata.labels.get_or_insert_default();
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }

    /// Starts on every node the agent, BIRD if the lab has a folder of its programs, and the relay if `relay` is set.
    pub fn start_node_programs(&mut self, relay: bool) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(programs) = self.bird.as_deref() {
                node.start_bird(&mut self.run, programs)?;
            }
            if relay {
                node.start_relay(&mut self.run, &self.binaries)?;
            }
        }
        self.start_agents()
    }

    /// Starts the agents of all nodes.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        let bird = self.bird.as_deref();
        for node in &mut self.nodes {
            node.start_agent(&mut self.run, &self.binaries, self.store.folder(), bird)?;
        }
        Ok(())
    }

    /// Starts the agent of the node with this number.
    pub fn start_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let (binaries, bird) = (self.binaries.clone(), self.bird.clone());
        let objects = self.store.folder().to_owned();
        let (node, run) = self.node_mut(number)?;
        node.start_agent(run, &binaries, &objects, bird.as_deref())
    }

    /// Waits until all nodes are ready.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(Node::wait_until_ready)
    }

    /// Adds pods to all nodes.
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

    /// Starts missing test servers in all pods, and with `nodes` on all nodes. The servers listen when the call returns.
    pub fn start_servers(&mut self, nodes: bool) -> anyhow::Result<()> {
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), TCP_PORT);
        let mut started = Vec::new();
        let pods = self.pods.iter().map(|pod| (&pod.name, &pod.namespace));
        let selected = self.nodes.iter().filter(|_| nodes);
        let selected = selected.map(|node| (&node.name, &node.namespace));
        for (name, namespace) in pods.chain(selected) {
            if !self.servers.insert(namespace.pid()) {
                continue;
            }
            let mut command = namespace.command(self.binaries.join("netweft-probe"));
            command.arg("serve");
            let log = self.run.folder().join(format!("{name}-server.log"));
            namespace.start(&mut self.run, &mut command, &log)?;
            started.push(namespace);
        }
        for namespace in started {
            until("a test server", LISTEN_TIMEOUT, || {
                namespace.ask(&self.binaries, "tcp", local, 0)
            })?;
        }
        Ok(())
    }

    /// Adds one pod to the node with this number.
    pub fn add_pod(&mut self, number: usize) -> anyhow::Result<()> {
        let binaries = self.binaries.clone();
        let (node, run) = self.node_mut(number)?;
        let pod = Pod::add(run, node, &format!("pod-{number}a"), &binaries)?;
        self.pods.push(pod);
        Ok(())
    }

    /// Reports the agents' statuses to the operator and applies its plans.
    pub fn reconcile(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // An agent that has just started has no status yet.
            if let Ok(status) = node.status() {
                self.store.set_node_status(&node.name, status);
            }
        }
        self.store.reconcile()
    }

    /// All pods and nodes ping each other in the family of `pool`, without pairs for which `has_return_path` is false.
    ///
    /// # Errors
    /// A probe cannot be run. Pairs without an answer are in the matrix instead.
    pub fn matrix(
        &self,
        pool: IpNet,
        has_return_path: impl Fn(&Endpoint, &Endpoint) -> bool,
    ) -> anyhow::Result<Matrix> {
        let of_family = || {
            self.sources()
                .filter(|(endpoint, _)| endpoint.address.is_ipv4() == pool.addr().is_ipv4())
        };
        let endpoints: Vec<Endpoint> = of_family().map(|(endpoint, _)| endpoint).collect();
        let mut matrix = Matrix::default();
        for (source, namespace) in of_family() {
            let mut targets = targets(&source, &endpoints);
            targets.retain(|target| has_return_path(&source, target));
            if targets.is_empty() {
                continue;
            }
            let addresses: Vec<IpAddr> = targets.iter().map(|target| target.address).collect();
            let answers = namespace.ping(&self.binaries, &addresses)?;
            matrix.add(Row {
                source,
                targets,
                answers,
            })?;
        }
        Ok(matrix)
    }

    /// All pods and nodes, one element for each address.
    fn sources(&self) -> impl Iterator<Item = (Endpoint, &Namespace)> {
        let pods = self.pods.iter();
        let pods = pods.map(|pod| (&pod.name, &pod.addresses, &pod.namespace, false));
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| (&node.name, &node.addresses, &node.namespace, true));
        pods.chain(nodes)
            .flat_map(|(name, addresses, namespace, is_node)| {
                let endpoint = move |address: &IpAddr| Endpoint {
                    name: name.clone(),
                    address: *address,
                    is_node,
                };
                addresses
                    .iter()
                    .map(move |address| (endpoint(address), namespace))
            })
    }

    /// Starts continuous pings between all pods of different nodes.
    pub fn meter(&self, interval: Duration) -> anyhow::Result<Pings> {
        loss_meter::start(&self.binaries, &self.pods, interval)
    }

    /// Waits until every node has the desired state of its objects, according to `netweft-agent check`.
    pub fn wait_for_desired_state(&self) -> anyhow::Result<()> {
        let (binaries, objects) = (&self.binaries, self.store.folder());
        for node in &self.nodes {
            let what = format!("the desired state of {}", node.name);
            until(&what, SYNC_TIMEOUT, || node.check(binaries, objects))?;
        }
        Ok(())
    }

    /// Ends a lab: prints the logs if `outcome` is an error, prints the duration since `started`, and removes the lab unless `keep` is set.
    pub fn finish<T>(
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

    /// Removes the lab, or with `keep` prints the commands that enter its namespaces.
    fn end(self, keep: bool) -> anyhow::Result<()> {
        if keep {
            println!("{}", self.guide());
            return Ok(());
        }
        self.run.end()
    }

    fn guide(&self) -> String {
        let mut text = String::from(
            "The lab keeps running until the next lab or `make down`. To enter its namespaces:\n",
        );
        let nodes = self.nodes.iter().map(|node| (&node.name, &node.namespace));
        let pods = self.pods.iter().map(|pod| (&pod.name, &pod.namespace));
        for (name, namespace) in nodes.chain(pods) {
            text += &format!("  {name:8} {}\n", namespace.enter_line());
        }
        text
    }

    /// The logs of all agents and BIRDs.
    #[must_use]
    pub fn logs(&self) -> String {
        let read = |node: &Node| {
            let agent = fs::read_to_string(node.agent_log(&self.run)).unwrap_or_default();
            let bird = fs::read_to_string(bird::log(&self.run, &node.name)).unwrap_or_default();
            format!("--- {}\n{agent}{bird}", node.name)
        };
        self.nodes.iter().map(read).collect()
    }
}
