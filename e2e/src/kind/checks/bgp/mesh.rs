//! Routes of the node-to-node mesh.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{MESH, await_convergence, routes_of_bird};
use crate::kind::host;
use crate::kind::probes::Probe;

/// Time limit for the capture of a packet.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(20);

/// Every session of the mesh is established, BGP routes are the only routes to the blocks of other nodes, and packets between nodes
/// have the addresses of pods, without encapsulation.
pub fn underlay_blocks_are_routed_only_by_bgp(cluster: &mut Cluster) -> anyhow::Result<()> {
    MESH.await_established()?;
    await_convergence()?;
    for node in host::nodes()? {
        let links = host::on(&node, &["ip", "-o", "link", "show"])?;
        for tunnel in ["nw-vx", "nw-udp", "nw-ipip"] {
            ensure!(!links.contains(tunnel), "{node} has a tunnel: {links}");
        }
        let agent_routes = host::on(&node, &["ip", "route", "show", "proto", "78"])?;
        let static_route = agent_routes
            .lines()
            .find(|route| !route.starts_with("blackhole"));
        ensure!(
            static_route.is_none(),
            "{node} has a route that is not from BGP: {static_route:?}"
        );
    }
    let from = cluster.probes.first()?;
    let is_remote = |pod: &&Probe| pod.node != from.node;
    let to = cluster
        .probes
        .pods
        .iter()
        .find(is_remote)
        .context("no test pod on another node")?;
    check_unencapsulated(from, to)
}

/// A packet between two pods is captured without encapsulation on the uplink of the destination node.
fn check_unencapsulated(from: &Probe, to: &Probe) -> anyhow::Result<()> {
    let return_route = routes_of_bird(&to.node)?
        .into_iter()
        .find(|route| route.dst.contains(&from.address));
    let return_route = return_route
        .with_context(|| format!("{} has no BGP route to {}", to.node, from.address))?;
    let uplink = return_route.dev;
    let mut capture = Capture::start(&to.node, &uplink, from, to)?;
    let target = to.address.to_string();
    until(
        "a packet with the addresses of the pods on the uplink",
        CAPTURE_TIMEOUT,
        || {
            from.exec(&["netweft-probe", "ping", "--count", "1", &target])?;
            ensure!(
                capture.has_packet()?,
                "no packet on {uplink} of {}",
                to.node
            );
            Ok(())
        },
    )
}

/// tcpdump on a node. tcpdump ends after the first packet, or 5 s after [`CAPTURE_TIMEOUT`].
struct Capture(Child);

impl Capture {
    fn start(node: &str, uplink: &str, from: &Probe, to: &Probe) -> anyhow::Result<Self> {
        let seconds = (CAPTURE_TIMEOUT.as_secs() + 5).to_string();
        let filter = format!(
            "icmp and src host {} and dst host {}",
            from.address, to.address
        );
        let mut tcpdump = host::command(node, "timeout");
        tcpdump.args([&seconds, "tcpdump", "-nn", "-c", "1", "-i", uplink, &filter]);
        let child = tcpdump
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(child.spawn().context("start docker")?))
    }

    fn has_packet(&mut self) -> anyhow::Result<bool> {
        let exit_status = self.0.try_wait()?;
        exit_status.map_or(Ok(false), |status| {
            ensure!(status.success(), "tcpdump: {status}");
            Ok(true)
        })
    }
}
