//! What the filter of the agent costs: two nodes with VXLAN and a pod each, with and without the chains of the filter.
//!
//! ```text
//!   pod 10.80.0.66 ─ nw0123456789a ─ node 192.0.2.1 ═ nw-vx4096 ═ node 192.0.2.2 ─ nw0123456789a ─ pod 10.80.0.130
//! ```
//!
//! The released agents make links, routes and tables, and are killed before the measurement, so that they neither work nor repair.
//! Both variants take turns on the same nodes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::load::Load;
use crate::namespace::Namespace;
use crate::numbers::{median, precise, sorted};

/// Measures the filter.
#[derive(clap::Args)]
pub struct Options {
    /// The released agent.
    #[arg(long)]
    agent: PathBuf,
    /// Runs of each variant.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds of a run.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// The link of the pod on the node.
const POD_LINK: &str = "nw0123456789a";
/// Base chains of the filter: without rules they accept.
const CHAINS: [&str; 4] = [
    "prerouting",
    "output",
    "translated_forwarded",
    "translated_received",
];
/// How long an agent may take.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Node {
    namespace: Namespace,
    pod: Namespace,
    /// The table with the filter, and the commands that empty the filter.
    tables: [String; 2],
}

/// What is measured.
struct Figures {
    what: &'static str,
    /// Without the filter, and with it.
    values: [Vec<f64>; 2],
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let nodes = nodes(options, scratch)?;
    let time = Duration::from_secs(options.seconds);
    let mut all = ["Gbit/s, 1 stream", "Gbit/s, 8 streams", "connections/s"].map(|what| Figures {
        what,
        values: [Vec::new(), Vec::new()],
    });
    // The first round warms up.
    for round in 0..=options.rounds {
        for variant in [0, 1] {
            for node in &nodes {
                node.load(variant)?;
            }
            let measured = [
                throughput(&nodes, 1, time)?,
                throughput(&nodes, 8, time)?,
                connections(&nodes, time)?,
            ];
            for (figures, value) in all.iter_mut().zip(measured) {
                let values = figures.values.get_mut(variant).context("two variants")?;
                values.extend((round > 0).then_some(value));
            }
        }
    }
    println!("{:<20} {:>10} {:>10} {:>8}", "", "without", "with", "ratio");
    Ok(all.iter().map(Figures::print).collect())
}

impl Figures {
    fn print(&self) -> Value {
        let [without, with] = &self.values;
        let [without, with] = [without, with].map(|it| median(&sorted(it.iter().copied())));
        let ratio = with / without;
        println!(
            "{:<20} {without:>10.2} {with:>10.2} {ratio:>8.3}",
            self.what
        );
        json!({ "what": self.what, "without": without, "with": with, "ratio": ratio })
    }
}

fn nodes(options: &Options, scratch: &Path) -> anyhow::Result<[Node; 2]> {
    let spaces = [Namespace::new()?, Namespace::new()?];
    let [one, two] = &spaces;
    one.ip(&format!(
        "link add eth0 mtu 1500 type veth peer name eth0 netns {}",
        two.path()
    ))?;
    let [one, two] = spaces;
    Ok([
        Node::new(1, one, options, scratch)?,
        Node::new(2, two, options, scratch)?,
    ])
}

/// The pod of a node: the second address of its block.
fn pod_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 80, 0, number * 64 + 2)
}

impl Node {
    fn new(
        number: u8,
        namespace: Namespace,
        options: &Options,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        namespace.ip("link set lo up")?;
        namespace.ip(&format!("address add 192.0.2.{number}/24 dev eth0"))?;
        namespace.ip("link set eth0 up")?;
        let folder = scratch.join(format!("filter-{number}"));
        let mut agent = namespace.run(|| start(number, options, &folder))?;
        let ready = wait(&folder.join("cni/10-netweft.conflist"));
        // It would take the link of the pod for a leak.
        agent.kill()?;
        agent.wait()?;
        ready?;
        let pod = Namespace::new()?;
        let address = pod_address(number);
        namespace.ip(&format!(
            "link add {POD_LINK} mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
            pod.path()
        ))?;
        namespace.ip(&format!("link set {POD_LINK} up"))?;
        namespace.ip(&format!("address add 169.254.1.1/32 dev {POD_LINK}"))?;
        namespace.ip(&format!("route add {address} dev {POD_LINK}"))?;
        pod.ip(&format!("address add {address}/32 dev eth0"))?;
        pod.ip("link set eth0 up")?;
        pod.ip("route add 169.254.1.1 dev eth0")?;
        pod.ip("route add default via 169.254.1.1")?;
        let table = namespace.run(|| nft(&["-s", "list", "table", "inet", "netweft"], ""))?;
        let there = |chain: &&&str| table.contains(&format!("chain {chain} {{"));
        let flush = CHAINS.iter().filter(there);
        let flush = flush.map(|chain| format!("flush chain inet netweft {chain}\n"));
        let tables = [
            flush.collect(),
            format!("delete table inet netweft\n{table}"),
        ];
        Ok(Self {
            namespace,
            pod,
            tables,
        })
    }

    fn load(&self, variant: usize) -> anyhow::Result<()> {
        let text = self.tables.get(variant).context("two variants")?;
        self.namespace.run(|| nft(&["-f", "-"], text)).map(drop)
    }
}

fn start(number: u8, options: &Options, folder: &Path) -> anyhow::Result<Child> {
    let objects = folder.join("objects");
    fs::create_dir_all(&objects)?;
    for (name, text) in declarations(number) {
        let text = format!("apiVersion: netweft.io/v1alpha1\n{text}\n");
        fs::write(objects.join(name), text)?;
    }
    let mut command = Command::new(&options.agent);
    command.args(["run", "--node", &format!("node-{number}"), "--inputs"]);
    command
        .arg(&objects)
        .arg("--run-dir")
        .arg(folder.join("run"));
    command.arg("--cni-conf-dir").arg(folder.join("cni"));
    command.stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start the agent")
}

/// The objects of two nodes, by file name.
fn declarations(own: u8) -> Vec<(String, String)> {
    let pool =
        "kind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.80.0.0/16, natOutgoing: true}";
    let block = |number: u8| format!("10.80.0.{}/26", number * 64);
    let network = format!(
        "kind: NodeNetwork\nmetadata: {{name: node-{own}, generation: 1}}\nspec: {{addresses: {{ipv4: 192.0.2.{own}}}, \
         subnets: [{}], modes: [{{name: default, pools: [pool], transport: {{vxlan: {{}}}}}}]}}",
        block(own)
    );
    let subnet = |number: u8| {
        let text = format!(
            "kind: NodeSubnet\nmetadata: {{name: block-{number}}}\nspec: {{cidr: {}, pool: pool, node: node-{number}, \
             nodeAddresses: {{ipv4: 192.0.2.{number}}}, state: Active}}",
            block(number)
        );
        (format!("subnet-{number}.yaml"), text)
    };
    vec![
        ("pool.yaml".to_owned(), pool.to_owned()),
        ("network.yaml".to_owned(), network),
        subnet(1),
        subnet(2),
    ]
}

fn wait(file: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + TIMEOUT;
    while !file.exists() {
        ensure!(Instant::now() < end, "the agent does not get ready");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What nft prints.
fn nft(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    use std::io::Write;
    let mut command = Command::new("nft");
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start nft")?;
    let mut stdin = child.stdin.take().context("nft has an input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft {arguments:?} fails");
    Ok(String::from_utf8(output.stdout)?)
}

fn throughput([one, two]: &[Node; 2], streams: u64, time: Duration) -> anyhow::Result<f64> {
    let load = Load {
        streams,
        time,
        bytes: u64::MAX,
    };
    let outcome = load.run(&one.pod, &two.pod, pod_address(2), &[])?;
    Ok(outcome.gigabits_per_second)
}

/// TCP connections per second, one after the other.
fn connections([one, two]: &[Node; 2], time: Duration) -> anyhow::Result<f64> {
    let bind = || Ok(TcpListener::bind((pod_address(2), 0))?);
    let listener = two.pod.run(bind).context("listen")?;
    let server: SocketAddr = listener.local_addr()?;
    let began = Instant::now();
    let count = thread::scope(|scope| {
        let accepting = scope.spawn(|| accept_until_last(&listener));
        let connected = one.pod.run(|| {
            let mut count: u64 = 0;
            while began.elapsed() < time {
                drop(TcpStream::connect_timeout(&server, TIMEOUT)?);
                count += 1;
            }
            // The last one says so.
            use std::io::Write;
            TcpStream::connect_timeout(&server, TIMEOUT)?.write_all(b".")?;
            Ok(count)
        });
        let accepted = accepting.join();
        let accepted = accepted.map_err(|_| anyhow::anyhow!("the server panicked"))?;
        accepted.and(connected)
    })?;
    Ok(precise(count) / began.elapsed().as_secs_f64())
}

/// Accepts connections until one sends a byte.
fn accept_until_last(listener: &TcpListener) -> anyhow::Result<()> {
    use std::io::Read;
    loop {
        let (mut stream, _) = listener.accept()?;
        if stream.read(&mut [0])? > 0 {
            return Ok(());
        }
    }
}
