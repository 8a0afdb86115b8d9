//! TCP connections between pods, and between pods and nodes, during an action.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::lab::cluster::nodes::{Cluster, TCP_PORT};
use crate::lab::topology::namespace::Namespace;
use crate::traffic::tcp::TcpResult;

/// Minimal pause between two chunks and two connections. It bounds the load.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Running probes, each with the name of its pod or node.
pub struct TcpLoad(Vec<(String, Child)>);

/// A connection that failed.
#[derive(Debug)]
pub struct FailedConnection {
    /// Name of the pod or node that opened the connection.
    pub source: String,
    /// Address of the server.
    pub server: SocketAddr,
    /// The error.
    pub error: String,
}

/// The results of all connections.
#[derive(Debug, Default)]
pub struct TcpSummary {
    /// Number of long connections, one for each source and server.
    pub long: usize,
    /// Number of short connections, opened and closed one after the other.
    pub short: u64,
    /// The longest time of an exchange or a short connection, in milliseconds.
    pub slowest: u64,
    /// Connections that failed.
    pub failed: Vec<FailedConnection>,
}

impl fmt::Display for TcpSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            long,
            short,
            slowest,
            failed,
        } = self;
        write!(
            f,
            "{long} long and {short} short TCP connections, {} failed, {slowest} ms at most",
            failed.len()
        )?;
        for FailedConnection {
            source,
            server,
            error,
        } in failed
        {
            write!(f, "\n  {source} to {server}: {error}")?;
        }
        Ok(())
    }
}

impl TcpLoad {
    /// Every pod connects to all pods of other nodes, and to the other nodes if `nodes_have_return_path`. Every node connects to all pods
    /// of other nodes. Servers must run in all pods and on all nodes.
    pub fn start(
        cluster: &Cluster,
        pause: Duration,
        nodes_have_return_path: bool,
    ) -> anyhow::Result<Self> {
        let start = |namespace: &Namespace, servers: &[IpAddr]| {
            start_probe(namespace, &cluster.binaries, servers, pause)
        };
        let mut probes = Vec::new();
        for pod in &cluster.pods {
            let pods = cluster.pods.iter().filter(|other| other.node != pod.node);
            let pods = pods.flat_map(|other| &other.addresses);
            let nodes = cluster.nodes.iter();
            let nodes = nodes.filter(|node| nodes_have_return_path && node.name != pod.node);
            let nodes = nodes.flat_map(|node| &node.addresses);
            let has_family = |server: &&IpAddr| pod.address_of_family(**server).is_some();
            let servers: Vec<IpAddr> = pods.chain(nodes).filter(has_family).copied().collect();
            probes.push((pod.name.clone(), start(&pod.namespace, &servers)?));
        }
        for node in &cluster.nodes {
            let pods = cluster.pods.iter().filter(|pod| pod.node != node.name);
            let servers: Vec<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
            probes.push((node.name.clone(), start(&node.namespace, &servers)?));
        }
        Ok(Self(probes))
    }

    /// Ends all connections and sums up the results.
    ///
    /// # Errors
    /// A probe has failed, or its output is invalid. Failed connections are in the result instead.
    pub fn finish(mut self) -> anyhow::Result<TcpSummary> {
        for (_, child) in &mut self.0 {
            drop(child.stdin.take());
        }
        let mut summary = TcpSummary::default();
        for (source, child) in self.0 {
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "the probe of {source} ended early: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let lines = String::from_utf8(output.stdout)?;
            let results: Vec<TcpResult> = lines
                .lines()
                .map(|line| serde_json::from_str(line).context("read the probe's output"))
                .collect::<anyhow::Result<_>>()?;
            // The probe prints the long connections first.
            let (long, short) = results.split_at(results.len() / 2);
            summary.long += long.len();
            summary.short += short.iter().map(|result| result.rounds).sum::<u64>();
            for result in long.iter().chain(short) {
                ensure!(
                    result.rounds > 0 || result.error.is_some(),
                    "{source} has exchanged nothing with {}",
                    result.server
                );
                summary.slowest = summary.slowest.max(result.slowest);
                if let Some(error) = &result.error {
                    summary.failed.push(FailedConnection {
                        source: source.clone(),
                        server: result.server,
                        error: error.clone(),
                    });
                }
            }
        }
        Ok(summary)
    }
}

fn start_probe(
    namespace: &Namespace,
    binaries: &Path,
    servers: &[IpAddr],
    pause: Duration,
) -> anyhow::Result<Child> {
    let servers = servers
        .iter()
        .map(|address| SocketAddr::new(*address, TCP_PORT).to_string());
    let mut command = namespace.command(binaries.join("netweft-probe"));
    let pause = pause.max(MIN_PAUSE).as_millis().to_string();
    command.args(["talk", "--pause", &pause]).args(servers);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start netweft-probe")
}
