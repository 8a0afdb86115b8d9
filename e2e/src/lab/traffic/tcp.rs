//! TCP between pods, and between pods and nodes, while something is done to the network.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::lab::cluster::nodes::{Site, TCP_PORT};
use crate::lab::topology::namespace::Namespace;
use crate::traffic::tcp::Talked;
/// Least pause between two chunks and two connections: the load is bounded.
const TALK: Duration = Duration::from_millis(5);

/// TCP connections that continue until their result is requested.
pub struct Talks(Vec<(String, Child)>);

/// What became of them.
#[derive(Debug, Default)]
pub struct Streams {
    /// Connections that lasted the whole time.
    pub alive: usize,
    /// Connections that were opened and closed one after the other.
    pub short: u64,
    /// The longest time a stream stood still, in ms.
    pub slowest: u64,
    /// Failures: source, destination, reason.
    pub dead: Vec<(String, SocketAddr, String)>,
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            alive,
            short,
            slowest,
            dead,
        } = self;
        write!(
            f,
            "{alive} long and {short} short TCP connections, {} died, {slowest} ms at most",
            dead.len()
        )?;
        for (from, to, why) in dead {
            write!(f, "\n  {from} to {to}: {why}")?;
        }
        Ok(())
    }
}

impl Talks {
    /// Every pod connects to every pod of another node, and to the other nodes if these have a route back; every node to every pod
    /// of another node.
    /// There are servers.
    pub fn start(site: &Site, pause: Duration, nodes_find_back: bool) -> anyhow::Result<Self> {
        let talk =
            |space: &Namespace, servers: &[IpAddr]| talk(space, &site.binaries, servers, pause);
        let mut talks = Vec::new();
        for pod in &site.pods {
            let pods = site.pods.iter().filter(|other| other.node != pod.node);
            let pods = pods.flat_map(|other| &other.addresses);
            let nodes = site.nodes.iter();
            let nodes = nodes.filter(|node| nodes_find_back && node.name != pod.node);
            let nodes = nodes.flat_map(|node| &node.addresses);
            let has = |to: &&IpAddr| pod.address_like(**to).is_some();
            let servers: Vec<IpAddr> = pods.chain(nodes).filter(has).copied().collect();
            talks.push((pod.name.clone(), talk(&pod.space, &servers)?));
        }
        for node in &site.nodes {
            let pods = site.pods.iter().filter(|pod| pod.node != node.name);
            let servers: Vec<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
            talks.push((node.name.clone(), talk(&node.space, &servers)?));
        }
        Ok(Self(talks))
    }

    /// End them, and count.
    ///
    /// # Errors
    /// A program has failed. That connections have died is in the answer.
    pub fn finish(mut self) -> anyhow::Result<Streams> {
        for (_, child) in &mut self.0 {
            drop(child.stdin.take());
        }
        let mut streams = Streams::default();
        for (from, child) in self.0 {
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "the connections of {from} ended early: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let lines = String::from_utf8(output.stdout)?;
            let talked: Vec<Talked> = lines
                .lines()
                .map(|line| serde_json::from_str(line).context("read the probe's output"))
                .collect::<anyhow::Result<_>>()?;
            // The probe prints the long connections first.
            let (long, short) = talked.split_at(talked.len() / 2);
            streams.alive += long.len();
            streams.short += short.iter().map(|it| it.rounds).sum::<u64>();
            for it in long.iter().chain(short) {
                ensure!(
                    it.rounds > 0 || it.error.is_some(),
                    "{from} has not talked to {}",
                    it.server
                );
                streams.slowest = streams.slowest.max(it.slowest);
                if let Some(error) = &it.error {
                    streams.dead.push((from.clone(), it.server, error.clone()));
                }
            }
        }
        Ok(streams)
    }
}

fn talk(
    space: &Namespace,
    binaries: &Path,
    servers: &[IpAddr],
    pause: Duration,
) -> anyhow::Result<Child> {
    let servers = servers
        .iter()
        .map(|address| SocketAddr::new(*address, TCP_PORT).to_string());
    let mut command = space.command(binaries.join("netweft-probe"));
    let pause = pause.max(TALK).as_millis().to_string();
    command.args(["talk", "--pause", &pause]).args(servers);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start netweft-probe")
}
