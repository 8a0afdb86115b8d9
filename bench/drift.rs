//! How long it takes until what others have changed on a node is as it should be again.
//!
//! One node with the released agent, and so many others that exist only as objects. Each kind of thing is harmed again and
//! again, by netlink where that is possible, and the clock stops when a reading of the kernel is as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;
use netweft_netstate::rtnl::Rtnl;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::namespace::ip;
use crate::numbers::{median, sorted};

/// Measures how long the agent takes to put things right.
#[derive(clap::Args)]
pub struct Options {
    /// The released agent.
    #[arg(long)]
    agent: PathBuf,
    /// How many other nodes there are.
    #[arg(long, default_value_t = 200)]
    nodes: u16,
    /// How often each thing is harmed. After twenty times in a minute the agent takes it for a fight.
    #[arg(long, default_value_t = 15)]
    count: usize,
}

/// What may be waited for: far more than any repair takes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between a repair and the next harm, so that all is quiet.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let node = Node::start(options, scratch, &runtime)?;
    println!("{:<28} {:>9} {:>9}", "harmed", "median", "worst");
    let mut figures = Vec::new();
    for harm in harms(&node.settled, scratch) {
        let mut took = Vec::new();
        for _ in 0..options.count {
            std::thread::sleep(SETTLE_TIME);
            took.push(node.repair(&harm)?.as_secs_f64() * 1000.0);
        }
        let took = sorted(took.into_iter());
        let (median, worst) = (median(&took), took.last().copied().unwrap_or_default());
        println!("{:<28} {median:>6.1} ms {worst:>6.1} ms", harm.what);
        figures.push(json!({ "harmed": harm.what, "nodes": options.nodes, "medianMs": median, "worstMs": worst }));
    }
    Ok(figures)
}

/// Something that is done to the node.
struct Harm {
    what: &'static str,
    how: How,
}

enum How {
    /// These are done to the kernel.
    Ops(Vec<Op>),
    /// A program is run.
    Program(Vec<String>),
    /// A file, or a kernel parameter, gets this content.
    File(PathBuf, &'static str),
}

fn harms(settled: &NetworkState, scratch: &Path) -> Vec<Harm> {
    let nft = ["nft", "delete", "table", "inet", "netweft"].map(str::to_owned);
    let forwarding = "/proc/sys/net/ipv4/ip_forward".into();
    let configuration = scratch.join("cni/10-netweft.conflist");
    let others = [
        ("the nft table", How::Program(nft.into())),
        ("a kernel parameter", How::File(forwarding, "0")),
        ("the runtime's configuration", How::File(configuration, "{")),
    ];
    let kernel = kernel_harms(settled).into_iter();
    let kernel = kernel.map(|(what, ops)| (what, How::Ops(ops)));
    kernel
        .chain(others)
        .map(|(what, how)| Harm { what, how })
        .collect()
}

/// What is taken from the kernel; empty where the node has no such thing.
fn kernel_harms(settled: &NetworkState) -> Vec<(&'static str, Vec<Op>)> {
    let agent = Owner::agent();
    let routes = settled.routes.iter();
    let routes = routes.filter(|(_, route)| agent.owns_route(route) && route.via.is_some());
    let routes = routes.map(|(key, route)| Op::RouteDelete {
        key: key.clone(),
        route: route.clone(),
    });
    let neighbours = settled.neighbours.iter();
    let mut neighbours = neighbours.filter(|(key, found)| agent.owns_neighbour(key, found));
    let neighbour = neighbours.next();
    let neighbour = neighbour.map(|(key, _)| Op::NeighbourDelete { key: key.clone() });
    let entry = settled.fdb.iter().next();
    let entry = entry.map(|(key, remote)| Op::FdbDelete {
        key: key.clone(),
        remote: *remote,
    });
    let mut addresses = settled.addresses.keys();
    let address = addresses.find(|key| agent.owns_address(key) && key.net.addr().is_ipv4());
    let address = address.map(|key| Op::AddressDelete { key: key.clone() });
    let link = settled.links.keys().find(|name| agent.owns_link(name));
    let down = link.map(|name| Op::LinkChange {
        name: name.clone(),
        mtu: None,
        mac: None,
        up: Some(false),
    });
    let gone = link.map(|name| Op::LinkDelete { name: name.clone() });
    vec![
        ("a route", routes.clone().take(1).collect()),
        ("all routes", routes.collect()),
        ("a neighbour", neighbour.into_iter().collect()),
        ("a forwarding entry", entry.into_iter().collect()),
        ("an address", address.into_iter().collect()),
        ("the tunnel, set down", down.into_iter().collect()),
        ("the tunnel, deleted", gone.into_iter().collect()),
    ]
}

/// The node.
struct Node<'r> {
    agent: Child,
    runtime: &'r Runtime,
    rtnl: Rtnl,
    settled: NetworkState,
}

impl<'r> Node<'r> {
    /// With an agent that has made it as it should be.
    fn start(options: &Options, scratch: &Path, runtime: &'r Runtime) -> anyhow::Result<Self> {
        ip("link set lo up")?;
        ip("link add up0 mtu 1400 type veth peer name far0 mtu 1400")?;
        ip("link set up0 addrgenmode none up")?;
        ip("link set far0 addrgenmode none up")?;
        ip("address add 10.168.0.1/16 dev up0")?;
        let objects = scratch.join("objects");
        fs::create_dir(&objects)?;
        for (name, text) in declarations(options.nodes) {
            let text = format!("apiVersion: netweft.io/v1alpha1\n{text}\n");
            fs::write(objects.join(name), text)?;
        }
        let log = fs::File::create(scratch.join("log"))?;
        let mut command = Command::new(&options.agent);
        command.args(["run", "--node", "node-1", "--inputs"]);
        command
            .arg(&objects)
            .arg("--run-dir")
            .arg(scratch.join("run"));
        command.arg("--cni-conf-dir").arg(scratch.join("cni"));
        let command = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let agent = command.spawn().context("start the agent")?;
        let _entered = runtime.enter();
        let mut node = Self {
            agent,
            runtime,
            rtnl: Rtnl::new()?,
            settled: NetworkState::default(),
        };
        let conflist = scratch.join("cni/10-netweft.conflist");
        let began = Instant::now();
        while !conflist.exists() {
            ensure!(began.elapsed() < TIMEOUT, "the agent does not get ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(1));
        node.settled = node.read()?;
        Ok(node)
    }

    /// All but what resolves by itself.
    fn read(&self) -> anyhow::Result<NetworkState> {
        let mut state = self.runtime.block_on(self.rtnl.read())?;
        state.neighbours.retain(|_, neighbour| neighbour.permanent);
        Ok(state)
    }

    /// Does harm, and waits until nothing is to be seen of it.
    fn repair(&self, harm: &Harm) -> anyhow::Result<Duration> {
        match &harm.how {
            How::Ops(ops) => {
                ensure!(!ops.is_empty(), "there is nothing to harm: {}", harm.what);
                for op in ops {
                    self.runtime.block_on(self.rtnl.apply(op))?;
                }
                // A table that changes while it is read is not right yet.
                self.until(harm, || Ok(self.read().is_ok_and(|it| it == self.settled)))
            }
            How::Program(words) => {
                let (program, words) = words.split_first().context("a program")?;
                let run = |words: &[String]| {
                    Ok::<_, anyhow::Error>(Command::new(program).args(words).output()?)
                };
                let there = || run(&["list", "table", "inet", "netweft"].map(str::to_owned));
                ensure!(run(words)?.status.success(), "cannot harm {}", harm.what);
                self.until(harm, || Ok(there()?.status.success()))
            }
            How::File(path, content) => {
                let before = fs::read_to_string(path)?;
                fs::write(path, content)?;
                self.until(harm, || Ok(fs::read_to_string(path)? == before))
            }
        }
    }

    fn until(
        &self,
        harm: &Harm,
        right: impl Fn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        while !right()? {
            ensure!(began.elapsed() < TIMEOUT, "not put right: {}", harm.what);
        }
        Ok(began.elapsed())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The objects of a VXLAN cluster of so many other nodes, by file name.
fn declarations(others: u16) -> Vec<(String, String)> {
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
