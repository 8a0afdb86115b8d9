//! Cost of the agent's filter: two VXLAN nodes with one pod each, with and without the rules of the filter.
//!
//! ```text
//!   pod 10.80.0.66 ─ nw0123456789a ─ node 192.0.2.1 ═ nw-vx4096 ═ node 192.0.2.2 ─ nw0123456789a ─ pod 10.80.0.130
//! ```
//!
//! The released agents create links, routes and tables, and are killed before the measurement, so that they use no CPU time and repair
//! nothing. Both variants take turns on the same nodes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::agent;
use crate::load::Load;
use crate::namespace::Namespace;
use crate::numbers::{median, sorted, to_f64};

/// Measures the filter.
#[derive(clap::Args)]
pub struct Options {
    /// The released agent.
    #[arg(long)]
    agent: PathBuf,
    /// Number of runs for each variant.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Duration of a run in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// The node's end of the pod's link.
const POD_LINK: &str = "nw0123456789a";
/// Base chains of the filter. Their policy without rules is accept.
const CHAINS: [&str; 4] = ["prerouting", "output", "input", "translated"];
/// Limit for the connection setup of a client.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Node {
    namespace: Namespace,
    pod: Namespace,
    /// The nft scripts of both variants: one empties the chains of the filter, the other restores the table.
    scripts: [String; 2],
}

/// The figures of one quantity.
struct Figures {
    what: &'static str,
    /// The values without and with the filter.
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
    // The results of the first round are discarded (warm-up).
    for round in 0..=options.rounds {
        // The second variant of a round is slower at times, whichever it is.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for variant in order {
            for node in &nodes {
                node.set_variant(variant)?;
            }
            let measured = [
                throughput(&nodes, 1, time)?,
                throughput(&nodes, 8, time)?,
                connections(&nodes, time)?,
            ];
            for (figures, value) in all.iter_mut().zip(measured) {
                let values = figures
                    .values
                    .get_mut(variant)
                    .context("no variant has this index")?;
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
        let [without, with] = [without, with].map(|values| median(&sorted(values.iter().copied())));
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

/// The address of a node's pod: the second address of the node's block.
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
        let name = format!("node-{number}");
        let start = || agent::start(&options.agent, &name, &folder, objects(number));
        let mut agent = namespace.run(start)?;
        let ready = agent::wait_until_ready(&folder);
        // A running agent would delete the pod's link as an orphan, because the plugin has not created it.
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
        let exists = |chain: &&&str| table.contains(&format!("chain {chain} {{"));
        let flush = CHAINS.iter().filter(exists);
        let flush = flush.map(|chain| format!("flush chain inet netweft {chain}\n"));
        let scripts = [
            flush.collect(),
            format!("delete table inet netweft\n{table}"),
        ];
        Ok(Self {
            namespace,
            pod,
            scripts,
        })
    }

    fn set_variant(&self, variant: usize) -> anyhow::Result<()> {
        let text = self
            .scripts
            .get(variant)
            .context("no variant has this index")?;
        self.namespace.run(|| nft(&["-f", "-"], text)).map(drop)
    }
}

/// The objects of two nodes, by file name.
fn objects(own: u8) -> Vec<(String, String)> {
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

/// Runs nft with arguments and standard input, and returns its output.
fn nft(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    use std::io::Write;
    let mut command = Command::new("nft");
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start nft")?;
    let mut stdin = child.stdin.take().context("nft has no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft {arguments:?} failed");
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

/// TCP connections per second, opened one after the other.
fn connections([one, two]: &[Node; 2], time: Duration) -> anyhow::Result<f64> {
    let bind = || Ok(TcpListener::bind((pod_address(2), 0))?);
    let listener = two.pod.run(bind).context("listen")?;
    let server: SocketAddr = listener.local_addr()?;
    let started = Instant::now();
    let count = thread::scope(|scope| {
        let server_thread = scope.spawn(|| accept_until_last(&listener));
        let connected = one.pod.run(|| {
            let mut count: u64 = 0;
            while started.elapsed() < time {
                drop(TcpStream::connect_timeout(&server, TIMEOUT)?);
                count += 1;
            }
            // A byte marks the last connection.
            use std::io::Write;
            TcpStream::connect_timeout(&server, TIMEOUT)?.write_all(b".")?;
            Ok(count)
        });
        let accepted = server_thread.join();
        let accepted = accepted.map_err(|_| anyhow::anyhow!("the server panicked"))?;
        accepted.and(connected)
    })?;
    Ok(to_f64(count) / started.elapsed().as_secs_f64())
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
