//! A mesh of all nodes.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{MESH, converged, learnt};
use crate::kind::host;
use crate::kind::probes::Probe;

const CAUGHT: Duration = Duration::from_secs(20);

/// Every session of the mesh is established, every block is reached by what BIRD has learnt and in no other way, and what
/// travels between nodes has pods' addresses outside.
pub fn underlay_blocks_are_routed_only_by_bgp(cluster: &mut Cluster) -> anyhow::Result<()> {
    MESH.established()?;
    converged()?;
    for node in host::nodes()? {
        let links = host::on(&node, &["ip", "-o", "link", "show"])?;
        for tunnel in ["nw-vx", "nw-udp", "nw-ipip"] {
            ensure!(!links.contains(tunnel), "{node} has a tunnel: {links}");
        }
        let own = host::on(&node, &["ip", "route", "show", "proto", "78"])?;
        let beside = own.lines().find(|route| !route.starts_with("blackhole"));
        ensure!(
            beside.is_none(),
            "{node} has a route beside BGP: {beside:?}"
        );
    }
    let from = cluster.probes.pods.first().context("a pod")?;
    let elsewhere = |pod: &&Probe| pod.node != from.node;
    let to = cluster
        .probes
        .pods
        .iter()
        .find(elsewhere)
        .context("a pod on another node")?;
    travels_plainly(from, to)
}

/// A packet is caught on the uplink of the node that it comes to.
fn travels_plainly(from: &Probe, to: &Probe) -> anyhow::Result<()> {
    let back = learnt(&to.node)?
        .into_iter()
        .find(|route| route.dst.contains(&from.address));
    let uplink = back.context("a route back")?.dev;
    let mut trap = Trap::set(&to.node, &uplink, from, to)?;
    let target = to.address.to_string();
    until(
        "a packet with the pods' addresses on the uplink",
        CAUGHT,
        || {
            from.exec(&["netweft-probe", "ping", "--count", "1", &target])?;
            ensure!(trap.has_caught()?, "nothing on {uplink} of {}", to.node);
            Ok(())
        },
    )
}

/// tcpdump in a node; it ends with the first packet, and after a while without.
struct Trap(Child);

impl Trap {
    fn set(node: &str, uplink: &str, from: &Probe, to: &Probe) -> anyhow::Result<Self> {
        let seconds = (CAUGHT.as_secs() + 5).to_string();
        let packet = format!(
            "icmp and src host {} and dst host {}",
            from.address, to.address
        );
        let mut capture = host::command(node, "timeout");
        capture.args([&seconds, "tcpdump", "-nn", "-c", "1", "-i", uplink, &packet]);
        let child = capture
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(child.spawn().context("start docker")?))
    }

    fn has_caught(&mut self) -> anyhow::Result<bool> {
        let ended = self.0.try_wait()?;
        ended.map_or(Ok(false), |status| {
            ensure!(status.success(), "tcpdump: {status}");
            Ok(true)
        })
    }
}
