//! Two nodes with a pod each, and what carries packets between the nodes.
//!
//! ```text
//!   pod 10.80.1.2 ─ veth ─ node 192.0.2.1 ───── veth, MTU 1500 ───── node 192.0.2.2 ─ veth ─ pod 10.80.2.2
//!                            └ tunnel                      tunnel ┘
//! ```
//!
//! Every contender has nodes of its own, so that only the one that is measured works.

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
    /// Flannel's udp backend, flannel-udp; it is left out without.
    #[arg(long)]
    flannel: Option<PathBuf>,
    /// Runs of each contender and number of streams.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds of a run, at most.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Megabytes of a run, at most.
    #[arg(long, default_value_t = 4000)]
    megabytes: u64,
}

/// Numbers of streams that are measured.
const STREAMS: [u64; 2] = [1, 8];

/// What carries packets, with its two nodes.
struct Contender {
    name: &'static str,
    nodes: [Node; 2],
    processes: Vec<Child>,
}

struct Node {
    number: u8,
    namespace: Namespace,
    pod: Namespace,
}

/// The outcomes of one contender with one number of streams.
struct Figures {
    name: &'static str,
    streams: u64,
    outcomes: Vec<Outcome>,
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let mut contenders = vec![routed()?, vxlan()?, relay(&options.relay, scratch)?];
    if let Some(program) = &options.flannel {
        contenders.push(flannel(program)?);
    }
    let mut all = Vec::new();
    for streams in STREAMS {
        let load = Load {
            streams,
            time: Duration::from_secs(options.seconds),
            bytes: options.megabytes * 1_000_000,
        };
        all.extend(measure(&contenders, load, options.rounds)?);
    }
    print(&all);
    Ok(all.iter().map(Figures::json).collect())
}

fn measure(contenders: &[Contender], load: Load, rounds: usize) -> anyhow::Result<Vec<Figures>> {
    let figures = |contender: &Contender| Figures {
        name: contender.name,
        streams: load.streams,
        outcomes: Vec::new(),
    };
    let mut all: Vec<Figures> = contenders.iter().map(figures).collect();
    // The first round warms up.
    for round in 0..=rounds {
        for (contender, figures) in contenders.iter().zip(&mut all) {
            let outcome = contender
                .run(load)
                .with_context(|| format!("measure {}", contender.name))?;
            if round > 0 {
                figures.outcomes.push(outcome);
            }
        }
    }
    Ok(all)
}

impl Contender {
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
        let node = self.nodes.get(node).context("two nodes")?;
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

impl Drop for Contender {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Node {
    /// With a pod, and without a way to the other node.
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

    fn route(&self, way: &str) -> anyhow::Result<()> {
        self.namespace
            .ip(&format!("route add 10.80.{}.0/24 {way}", self.peer()))
    }

    fn await_link(&self, link: &str) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.namespace.ip(&format!("link show {link}")).is_err() {
            ensure!(Instant::now() < end, "{link} does not come");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// No tunnel at all: what the generator and the pods' links can do.
fn routed() -> anyhow::Result<Contender> {
    let contender = Contender::new("no tunnel", 1500)?;
    for node in &contender.nodes {
        node.route(&format!("via 192.0.2.{}", node.peer()))?;
    }
    Ok(contender)
}

fn vxlan() -> anyhow::Result<Contender> {
    let contender = Contender::new("kernel vxlan", 1450)?;
    for node in &contender.nodes {
        let (own, peer) = (node.number, node.peer());
        let kind = format!("vxlan id 42 local 192.0.2.{own} remote 192.0.2.{peer} dstport 4789");
        node.namespace
            .ip(&format!("link add vx0 mtu 1450 type {kind}"))?;
        node.namespace
            .ip(&format!("address add 10.81.0.{own}/24 dev vx0"))?;
        node.namespace.ip("link set vx0 up")?;
        node.route(&format!("via 10.81.0.{peer}"))?;
    }
    Ok(contender)
}

fn relay(program: &Path, scratch: &Path) -> anyhow::Result<Contender> {
    let mut contender = Contender::new("netweft udp", 1472)?;
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
        contender.start(index, &mut command)?;
    }
    for node in &contender.nodes {
        node.await_link("nw-udp8285")?;
        node.namespace.ip("link set nw-udp8285 mtu 1472 up")?;
        node.route("dev nw-udp8285")?;
    }
    Ok(contender)
}

fn flannel(program: &Path) -> anyhow::Result<Contender> {
    let mut contender = Contender::new("Flannel udp", 1472)?;
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
        contender.start(index, &mut command)?;
    }
    for node in &contender.nodes {
        node.await_link("flannel0")?;
    }
    Ok(contender)
}

impl Figures {
    fn speeds(&self) -> Vec<f64> {
        sorted(
            self.outcomes
                .iter()
                .map(|outcome| outcome.gigabits_per_second),
        )
    }

    fn costs(&self) -> Vec<f64> {
        sorted(
            self.outcomes
                .iter()
                .map(|outcome| outcome.cpu_seconds_per_gigabyte),
        )
    }

    fn json(&self) -> Value {
        let speeds = self.speeds();
        json!({
            "name": self.name,
            "streams": self.streams,
            "gigabitsPerSecond": { "median": median(&speeds), "min": speeds.first(), "max": speeds.last() },
            "cpuSecondsPerGigabyte": median(&self.costs()),
        })
    }
}

fn print(all: &[Figures]) {
    println!(
        "TCP from pod to pod        streams   Gbit/s    (min    max)   CPU s/GB   times kernel vxlan   times Flannel"
    );
    for one in all {
        let speeds = one.speeds();
        let beside = |name: &str| {
            let other = all
                .iter()
                .find(|other| other.name == name && other.streams == one.streams);
            other.map_or(f64::NAN, |other| median(&speeds) / median(&other.speeds()))
        };
        println!(
            "{:26} {:7} {:8.2} {:7.2} {:6.2} {:10.2} {:20.2} {:15.2}",
            one.name,
            one.streams,
            median(&speeds),
            speeds.first().unwrap_or(&f64::NAN),
            speeds.last().unwrap_or(&f64::NAN),
            median(&one.costs()),
            beside("kernel vxlan"),
            beside("Flannel udp"),
        );
    }
}
