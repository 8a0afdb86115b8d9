//! Time until the agent has repaired external changes of kernel objects and files.
//!
//! One node runs the released agent; the other nodes exist only as objects. Each kind of object is changed repeatedly, by netlink where
//! possible. The measurement ends when the kernel has its previous state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;
use netweft_netstate::rtnl::Rtnl;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::agent;
use crate::namespace::ip;
use crate::numbers::{median, sorted};

/// Measures how long the agent takes to repair external changes.
#[derive(clap::Args)]
pub struct Options {
    /// The released agent.
    #[arg(long)]
    agent: PathBuf,
    /// Number of other nodes.
    #[arg(long, default_value_t = 200)]
    nodes: u16,
    /// Number of changes of each kind. After twenty changes in a minute the agent reports contention.
    #[arg(long, default_value_t = 15)]
    count: usize,
}

/// Limit of one repair, far more than it takes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time between a repair and the next change, so that all notifications have been processed.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let node = Node::start(options, scratch, &runtime)?;
    println!("{:<28} {:>9} {:>9}", "changed", "median", "worst");
    let mut figures = Vec::new();
    for change in changes(&node.desired, scratch) {
        let mut took = Vec::new();
        for _ in 0..options.count {
            std::thread::sleep(SETTLE_TIME);
            took.push(node.repair(&change)?.as_secs_f64() * 1000.0);
        }
        let took = sorted(took.into_iter());
        let (median, worst) = (median(&took), took.last().copied().unwrap_or_default());
        println!("{:<28} {median:>6.1} ms {worst:>6.1} ms", change.what);
        figures.push(json!({ "harmed": change.what, "nodes": options.nodes, "medianMs": median, "worstMs": worst }));
    }
    Ok(figures)
}

/// An external change of the node.
struct Change {
    what: &'static str,
    method: Method,
}

enum Method {
    /// Netlink operations.
    Ops(Vec<Op>),
    /// A command line.
    Program(Vec<String>),
    /// New content of a file or a kernel parameter.
    File(PathBuf, &'static str),
}

fn changes(desired: &NetworkState, scratch: &Path) -> Vec<Change> {
    let nft = ["nft", "delete", "table", "inet", "netweft"].map(str::to_owned);
    let forwarding = "/proc/sys/net/ipv4/ip_forward".into();
    let configuration = scratch.join("cni/10-netweft.conflist");
    let others = [
        ("the nft table", Method::Program(nft.into())),
        ("a kernel parameter", Method::File(forwarding, "0")),
        (
            "the runtime's configuration",
            Method::File(configuration, "{"),
        ),
    ];
    let kernel = kernel_changes(desired).into_iter();
    let kernel = kernel.map(|(what, ops)| (what, Method::Ops(ops)));
    kernel
        .chain(others)
        .map(|(what, method)| Change { what, method })
        .collect()
}

/// Changes of kernel objects; without operations if the node has no such object.
fn kernel_changes(desired: &NetworkState) -> Vec<(&'static str, Vec<Op>)> {
    let agent = Owner::agent();
    let routes = desired.routes.iter();
    let routes = routes.filter(|(_, route)| agent.owns_route(route) && route.via.is_some());
    let routes = routes.map(|(key, route)| Op::RouteDelete {
        key: key.clone(),
        route: route.clone(),
    });
    let neighbours = desired.neighbours.iter();
    let mut neighbours = neighbours.filter(|(key, found)| agent.owns_neighbour(key, found));
    let neighbour = neighbours.next();
    let neighbour = neighbour.map(|(key, _)| Op::NeighbourDelete { key: key.clone() });
    let entry = desired.fdb.iter().next();
    let entry = entry.map(|(key, remote)| Op::FdbDelete {
        key: key.clone(),
        remote: *remote,
    });
    let mut addresses = desired.addresses.keys();
    let address = addresses.find(|key| agent.owns_address(key) && key.net.addr().is_ipv4());
    let address = address.map(|key| Op::AddressDelete { key: key.clone() });
    let link = desired.links.keys().find(|name| agent.owns_link(name));
    let down = link.map(|name| Op::LinkChange {
        name: name.clone(),
        mtu: None,
        mac: None,
        up: Some(false),
    });
    let deleted = link.map(|name| Op::LinkDelete { name: name.clone() });
    vec![
        ("a route", routes.clone().take(1).collect()),
        ("all routes", routes.collect()),
        ("a neighbour", neighbour.into_iter().collect()),
        ("a forwarding entry", entry.into_iter().collect()),
        ("an address", address.into_iter().collect()),
        ("the tunnel, set down", down.into_iter().collect()),
        ("the tunnel, deleted", deleted.into_iter().collect()),
    ]
}

/// The node with the agent.
struct Node<'r> {
    agent: Child,
    runtime: &'r Runtime,
    rtnl: Rtnl,
    /// The kernel state before any change.
    desired: NetworkState,
}

impl<'r> Node<'r> {
    /// Starts an agent, and waits until the node has its desired state.
    fn start(options: &Options, scratch: &Path, runtime: &'r Runtime) -> anyhow::Result<Self> {
        ip("link set lo up")?;
        ip("link add up0 mtu 1400 type veth peer name far0 mtu 1400")?;
        ip("link set up0 addrgenmode none up")?;
        ip("link set far0 addrgenmode none up")?;
        ip("address add 10.168.0.1/16 dev up0")?;
        let agent = agent::start(&options.agent, "node-1", scratch, objects(options.nodes))?;
        let _entered = runtime.enter();
        let mut node = Self {
            agent,
            runtime,
            rtnl: Rtnl::new()?,
            desired: NetworkState::default(),
        };
        agent::wait_until_ready(scratch)?;
        std::thread::sleep(Duration::from_secs(1));
        node.desired = node.read()?;
        Ok(node)
    }

    /// The kernel state without neighbours that the kernel has resolved.
    fn read(&self) -> anyhow::Result<NetworkState> {
        let mut state = self.runtime.block_on(self.rtnl.read())?;
        state.neighbours.retain(|_, neighbour| neighbour.permanent);
        Ok(state)
    }

    /// Makes a change, and returns the time until it is repaired.
    fn repair(&self, change: &Change) -> anyhow::Result<Duration> {
        match &change.method {
            Method::Ops(ops) => {
                ensure!(
                    !ops.is_empty(),
                    "there is no object to change: {}",
                    change.what
                );
                for op in ops {
                    self.runtime.block_on(self.rtnl.apply(op))?;
                }
                // An error means that a table changed while it was read, so the repair has not finished.
                self.wait_for_repair(change, || {
                    Ok(self.read().is_ok_and(|state| state == self.desired))
                })
            }
            Method::Program(words) => {
                let (program, words) = words.split_first().context("the command line is empty")?;
                let run = |words: &[String]| {
                    Ok::<_, anyhow::Error>(Command::new(program).args(words).output()?)
                };
                let list = || run(&["list", "table", "inet", "netweft"].map(str::to_owned));
                ensure!(
                    run(words)?.status.success(),
                    "cannot change {}",
                    change.what
                );
                self.wait_for_repair(change, || Ok(list()?.status.success()))
            }
            Method::File(path, content) => {
                let before = fs::read_to_string(path)?;
                fs::write(path, content)?;
                self.wait_for_repair(change, || Ok(fs::read_to_string(path)? == before))
            }
        }
    }

    fn wait_for_repair(
        &self,
        change: &Change,
        is_repaired: impl Fn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        while !is_repaired()? {
            ensure!(started.elapsed() < TIMEOUT, "not repaired: {}", change.what);
        }
        Ok(started.elapsed())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // The agent may have ended already.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The objects of a VXLAN cluster with this number of other nodes, by file name.
fn objects(others: u16) -> Vec<(String, String)> {
    let pool =
        "kind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.240.0.0/12, natOutgoing: true}";
    let network = "kind: NodeNetwork\nmetadata: {name: node-1, generation: 1}\nspec: {addresses: {ipv4: 10.168.0.1}, \
        subnets: [10.240.0.64/26], modes: [{name: default, pools: [pool], transport: {vxlan: {}}}]}";
    let subnet = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let block = u32::from(number) * 64;
        let [_, second, third, fourth] = block.to_be_bytes();
        let text = format!(
            "kind: NodeSubnet\nmetadata: {{name: block-{number}}}\nspec: {{cidr: 10.{}.{third}.{fourth}/26, pool: pool, \
             node: node-{number}, nodeAddresses: {{ipv4: 10.168.{high}.{low}}}, state: Active}}",
            240 + second
        );
        (format!("subnet-{number}.yaml"), text)
    };
    let mut all: Vec<(String, String)> = (1..=others + 1).map(subnet).collect();
    all.push(("pool.yaml".to_owned(), pool.to_owned()));
    all.push(("network.yaml".to_owned(), network.to_owned()));
    all
}
