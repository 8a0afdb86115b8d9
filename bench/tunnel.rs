//! Throughput of tunnels between two nodes with one pod each.
//!
//! ```text
//!   pod 10.80.1.2 ─ veth ─ node 192.0.2.1 ───── veth, MTU 1500 ───── node 192.0.2.2 ─ veth ─ pod 10.80.2.2
//!                            └ tunnel                      tunnel ┘
//! ```
//!
//! Every candidate has separate nodes, so that the others are idle during its measurement.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::load::{Load, Outcome};
use crate::namespace::Namespace;
use crate::numbers::{median, sorted};

/// Measures tunnels.
#[derive(clap::Args)]
pub struct Options {
    /// The relay, netweft-udp-relay.
    #[arg(long)]
    relay: PathBuf,
    /// Flannel's udp backend, flannel-udp. Without it, Flannel is not measured.
    #[arg(long)]
    flannel: Option<PathBuf>,
    /// Number of runs for each candidate and number of streams.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Maximal duration of a run, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Maximal amount of data of a run, in megabytes.
    #[arg(long, default_value_t = 4000)]
    megabytes: u64,
}

/// The measured numbers of streams.
const STREAMS: [u64; 2] = [1, 8];

/// A tunnel or route, with its two nodes.
struct Candidate {
    name: &'static str,
    nodes: [Node; 2],
    processes: Vec<Child>,
}

struct Node {
    number: u8,
    namespace: Namespace,
    pod: Namespace,
}

/// The outcomes of one candidate with one number of streams.
struct Figures {
    name: &'static str,
    streams: u64,
    outcomes: Vec<Outcome>,
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let mut candidates = vec![routed()?, vxlan()?, relay(&options.relay, scratch)?];
    if let Some(program) = &options.flannel {
        candidates.push(flannel(program)?);
    }
    let mut all = Vec::new();
    for streams in STREAMS {
        let load = Load {
            streams,
            time: Duration::from_secs(options.seconds),
            bytes: options.megabytes * 1_000_000,
        };
        all.extend(measure(&candidates, load, options.rounds)?);
    }
    print(&all);
    Ok(all.iter().map(Figures::json).collect())
}

fn measure(candidates: &[Candidate], load: Load, rounds: usize) -> anyhow::Result<Vec<Figures>> {
    let figures = |candidate: &Candidate| Figures {
        name: candidate.name,
        streams: load.streams,
        outcomes: Vec::new(),
    };
    let mut all: Vec<Figures> = candidates.iter().map(figures).collect();
    // The results of the first round are discarded (warm-up).
    for round in 0..=rounds {
        for (candidate, figures) in candidates.iter().zip(&mut all) {
            let outcome = candidate
                .run(load)
                .with_context(|| format!("measure {}", candidate.name))?;
            if round > 0 {
                figures.outcomes.push(outcome);
            }
        }
    }
    Ok(all)
}

impl Candidate {
    fn new(name: &'static str, tunnel_mtu: u16) -> anyhow::Result<Self> {
        let nodes = [Node::new(1, tunnel_mtu)?, Node::new(2, tunnel_mtu)?];
        let [one, two] = &nodes;
        one.namespace.ip(&format!(
            "link add eth0 mtu 1500 type veth peer name eth0 netns {}",
            two.namespace.path()
        ))?;
        for node in &nodes {
            node.namespace
                .ip(&format!("address add 192.0.2.{}/24 dev eth0", node.number))?;
            node.namespace.ip("link set eth0 up")?;
        }
        Ok(Self {
            name,
            nodes,
            processes: Vec::new(),
        })
    }

    fn start(&mut self, node: usize, command: &mut Command) -> anyhow::Result<()> {
        let node = self.nodes.get(node).context("no node has this index")?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = node.namespace.run(|| Ok(command.spawn()?));
        self.processes
            .push(child.with_context(|| format!("start {command:?}"))?);
        Ok(())
    }

    fn run(&self, load: Load) -> anyhow::Result<Outcome> {
        let [one, two] = &self.nodes;
        let processes: Vec<u32> = self.processes.iter().map(Child::id).collect();
        load.run(
            &one.pod,
            &two.pod,
            Ipv4Addr::new(10, 80, two.number, 2),
            &processes,
        )
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // The process may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Node {
    /// Creates a node with a pod, without a route to the other node.
    fn new(number: u8, pod_mtu: u16) -> anyhow::Result<Self> {
        let (namespace, pod) = (Namespace::new()?, Namespace::new()?);
        namespace.ip("link set lo up")?;
        namespace.ip(&format!(
            "link add pod0 mtu {pod_mtu} type veth peer name eth0 mtu {pod_mtu} netns {}",
            pod.path()
        ))?;
        namespace.ip(&format!("address add 10.80.{number}.1/24 dev pod0"))?;
        namespace.ip("link set pod0 up")?;
        namespace.run(|| Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        pod.ip(&format!("address add 10.80.{number}.2/24 dev eth0"))?;
        pod.ip("link set eth0 up")?;
        pod.ip(&format!("route add default via 10.80.{number}.1"))?;
        Ok(Self {
            number,
            namespace,
            pod,
        })
    }

    const fn peer(&self) -> u8 {
        3 - self.number
    }

    /// Adds the route to the pods of the other node. `via` is the rest of the arguments of `ip`.
    fn add_route(&self, via: &str) -> anyhow::Result<()> {
        self.namespace
            .ip(&format!("route add 10.80.{}.0/24 {via}", self.peer()))
    }

    fn wait_for_link(&self, link: &str) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.namespace.ip(&format!("link show {link}")).is_err() {
            ensure!(Instant::now() < end, "the link {link} does not appear");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Routing without a tunnel: the limit of the load generator and the pods' links.
fn routed() -> anyhow::Result<Candidate> {
    let candidate = Candidate::new("no tunnel", 1500)?;
    for node in &candidate.nodes {
        node.add_route(&format!("via 192.0.2.{}", node.peer()))?;
    }
    Ok(candidate)
}

fn vxlan() -> anyhow::Result<Candidate> {
    let candidate = Candidate::new("kernel vxlan", 1450)?;
    for node in &candidate.nodes {
        let (own, peer) = (node.number, node.peer());
        let kind = format!("vxlan id 42 local 192.0.2.{own} remote 192.0.2.{peer} dstport 4789");
        node.namespace
            .ip(&format!("link add vx0 mtu 1450 type {kind}"))?;
        node.namespace
            .ip(&format!("address add 10.81.0.{own}/24 dev vx0"))?;
        node.namespace.ip("link set vx0 up")?;
        node.add_route(&format!("via 10.81.0.{peer}"))?;
    }
    Ok(candidate)
}

fn relay(program: &Path, scratch: &Path) -> anyhow::Result<Candidate> {
    let mut candidate = Candidate::new("netweft udp", 1472)?;
    for index in 0..2 {
        let number = index + 1;
        let peer = 3 - number;
        let folder = scratch.join(format!("relay-{number}"));
        fs::create_dir(&folder)?;
        let tunnel = json!({
            "link": "nw-udp8285", "port": 8285, "local": format!("192.0.2.{number}"),
            "peers": [{ "address": format!("192.0.2.{peer}"), "blocks": [format!("10.80.{peer}.0/24")] }],
        });
        let config = json!({ "version": 1, "tunnels": [tunnel] });
        fs::write(folder.join("udp.json"), config.to_string())?;
        let mut command = Command::new(program);
        command.arg("run").arg("--run-dir").arg(folder);
        candidate.start(index, &mut command)?;
    }
    for node in &candidate.nodes {
        node.wait_for_link("nw-udp8285")?;
        node.namespace.ip("link set nw-udp8285 mtu 1472 up")?;
        node.add_route("dev nw-udp8285")?;
    }
    Ok(candidate)
}

fn flannel(program: &Path) -> anyhow::Result<Candidate> {
    let mut candidate = Candidate::new("Flannel udp", 1472)?;
    for index in 0..2 {
        let number = index + 1;
        let peer = 3 - number;
        let mut command = Command::new(program);
        command.args([
            "-network",
            "10.80.0.0/16",
            "-subnet",
            &format!("10.80.{number}.0/24"),
        ]);
        command.args(["-peer", &format!("10.80.{peer}.0/24=192.0.2.{peer}")]);
        candidate.start(index, &mut command)?;
    }
    for node in &candidate.nodes {
        node.wait_for_link("flannel0")?;
    }
    Ok(candidate)
}

impl Figures {
    fn throughputs(&self) -> Vec<f64> {
        sorted(
            self.outcomes
                .iter()
                .map(|outcome| outcome.gigabits_per_second),
        )
    }

    fn cpu_times(&self) -> Vec<f64> {
        sorted(
            self.outcomes
                .iter()
                .map(|outcome| outcome.cpu_seconds_per_gigabyte),
        )
    }

    fn json(&self) -> Value {
        let throughputs = self.throughputs();
        json!({
            "name": self.name,
            "streams": self.streams,
            "gigabitsPerSecond": { "median": median(&throughputs), "min": throughputs.first(), "max": throughputs.last() },
            "cpuSecondsPerGigabyte": median(&self.cpu_times()),
        })
    }
}

fn print(all: &[Figures]) {
    println!(
        "TCP from pod to pod        streams   Gbit/s    (min    max)   CPU s/GB   ratio kernel vxlan   ratio Flannel"
    );
    for figures in all {
        let throughputs = figures.throughputs();
        let ratio = |name: &str| {
            let other = all
                .iter()
                .find(|other| other.name == name && other.streams == figures.streams);
            other.map_or(f64::NAN, |other| {
                median(&throughputs) / median(&other.throughputs())
            })
        };
        println!(
            "{:26} {:7} {:8.2} {:7.2} {:6.2} {:10.2} {:20.2} {:15.2}",
            figures.name,
            figures.streams,
            median(&throughputs),
            throughputs.first().unwrap_or(&f64::NAN),
            throughputs.last().unwrap_or(&f64::NAN),
            median(&figures.cpu_times()),
            ratio("kernel vxlan"),
            ratio("Flannel udp"),
        );
    }
}
