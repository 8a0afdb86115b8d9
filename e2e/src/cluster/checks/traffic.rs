//! Packets between pods, nodes and the outside.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::Cluster;
use crate::command::output;
use crate::matrix::Matrix;
use crate::poll::until;

pub(super) fn every_pair_pings(cluster: &mut Cluster) -> anyhow::Result<()> {
    let matrix = cluster.probes.matrix(&[])?;
    println!("{matrix}");
    matrix.check()
}

/// Packets of exactly the pods' MTU, which no router on the way may cut (a raw socket sets DF on what fits the link).
pub(super) fn packets_as_large_as_the_mtu_pass(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mtu = cluster.pod_mtu()?;
    let matrix: Matrix = cluster.probes.matrix(&["--size", &mtu.to_string()])?;
    println!("packets of {mtu} bytes\n{matrix}");
    matrix.check()
}

pub(super) fn the_server_sees_the_pods_own_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    for client in &cluster.probes.pods {
        for server in &cluster.probes.pods {
            for protocol in ["tcp", "udp"] {
                let seen = client.ask(protocol, SocketAddr::new(server.address, 8080), 1000)?;
                expect_peer(
                    &seen,
                    client.address,
                    &format!("{protocol} {} to {}", client.pod, server.pod),
                )?;
            }
        }
    }
    Ok(())
}

pub(super) fn expect_peer(seen: &str, address: IpAddr, what: &str) -> anyhow::Result<()> {
    ensure!(
        seen.starts_with(&format!("peer={address} ")),
        "{what}: the server saw {seen:?} instead of {address}"
    );
    Ok(())
}

/// A container on kind's network that is no node.
struct Outside {
    server: SocketAddr,
}

impl Outside {
    const NAME: &str = "netweft-outside";

    fn start(image: &str) -> anyhow::Result<Self> {
        Self::remove();
        let run = [
            "run",
            "--detach",
            "--network",
            "kind",
            "--name",
            Self::NAME,
            image,
        ];
        output(Command::new("docker").args(run).args([
            "netweft-probe",
            "serve",
            "--port",
            "8080",
        ]))?;
        let format = "{{.NetworkSettings.Networks.kind.IPAddress}}";
        let address =
            output(Command::new("docker").args(["inspect", "--format", format, Self::NAME]))?;
        Ok(Self {
            server: SocketAddr::new(address.trim().parse()?, 8080),
        })
    }

    fn remove() {
        // It may not be there.
        let _ = output(Command::new("docker").args(["rm", "--force", Self::NAME]));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        Self::remove();
    }
}

pub(super) fn the_outside_sees_the_nodes_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    let outside = Outside::start(&cluster.image)?;
    for pod in &cluster.probes.pods {
        let node = cluster
            .probes
            .nodes
            .iter()
            .find(|node| node.node == pod.node)
            .context("a pod has a node")?;
        for protocol in ["tcp", "udp"] {
            let ask = || pod.ask(protocol, outside.server, 0);
            let seen = until("the host outside", Duration::from_secs(10), ask)?;
            expect_peer(
                &seen,
                node.address,
                &format!("{protocol} {} to the outside", pod.pod),
            )?;
        }
    }
    Ok(())
}

pub(super) fn a_pods_containers_share_one_stack(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pod = cluster.probes.pods.first().context("a pod")?;
    let local: SocketAddr = ([127, 0, 0, 1], 8080).into();
    let asked = pod.exec_in(
        "second",
        &["netweft-probe", "ask", "tcp", &local.to_string()],
    )?;
    expect_peer(
        &asked,
        local.ip(),
        "the second container asks the first at localhost",
    )?;
    let addresses =
        |container| pod.exec_in(container, &["ip", "-o", "address", "show", "dev", "eth0"]);
    ensure!(
        addresses("probe")? == addresses("second")?,
        "the containers see different addresses"
    );
    ensure!(
        addresses("probe")?.contains(&pod.address.to_string()),
        "the pod does not see its own address"
    );
    Ok(())
}
