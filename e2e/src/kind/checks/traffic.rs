//! Packets between pods, nodes and the outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::probes::{Probe, Probes};

pub(crate) fn every_pair_pings(cluster: &mut Cluster) -> anyhow::Result<()> {
    for probes in cluster.probes.by_family() {
        let matrix = probes.matrix(&[])?;
        println!("{matrix}");
        matrix.check()?;
    }
    Ok(())
}

/// Packets of exactly the pods' MTU, which no router on the way may cut (a raw socket sets DF on what fits the link). So large is a
/// datagram's packet on its way too; with what the server says before it, it comes back in two.
pub(crate) fn packets_of_mtu_size_pass(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mtu = cluster.pod_mtu()?;
    for probes in cluster.probes.by_family() {
        let matrix = probes.matrix(&["--size", &mtu.to_string()])?;
        println!("packets of {mtu} bytes\n{matrix}");
        matrix.check()?;
        let servers: Vec<SocketAddr> = probes.pods.iter().map(server).collect();
        for client in &probes.pods {
            let headers = if client.address.is_ipv4() {
                20 + 8
            } else {
                40 + 8
            };
            let payload = usize::try_from(mtu)? - headers;
            is_seen_as(client.address, client, &servers, payload)?;
        }
    }
    Ok(())
}

pub(crate) fn server_in_cluster_sees_pod_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    for Probes { pods, .. } in cluster.probes.by_family() {
        let servers: Vec<SocketAddr> = pods.iter().map(server).collect();
        for client in &pods {
            is_seen_as(client.address, client, &servers, 1000)?;
        }
    }
    Ok(())
}

/// Where a test pod serves.
pub(crate) fn server(pod: &Probe) -> SocketAddr {
    SocketAddr::new(pod.address, 8080)
}

/// All servers answer the client by TCP and by UDP, and it is at this address that they see it.
pub(crate) fn is_seen_as(
    address: IpAddr,
    client: &Probe,
    servers: &[SocketAddr],
    payload: usize,
) -> anyhow::Result<()> {
    for protocol in ["tcp", "udp"] {
        let seen = client.ask(protocol, servers, payload)?;
        for (server, seen) in servers.iter().zip(&seen) {
            let what = format!("{protocol} {} to {server}", client.pod);
            expect_peer(seen, address, &what)?;
        }
    }
    Ok(())
}

fn expect_peer(seen: &str, address: IpAddr, what: &str) -> anyhow::Result<()> {
    ensure!(
        seen.starts_with(&format!("peer={address} ")),
        "{what}: the server saw {seen:?} instead of {address}"
    );
    Ok(())
}

/// A container on kind's network that is no node.
struct Outside;

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
        Ok(Self)
    }

    /// Its server, at its address of a family.
    fn server(&self, like: IpAddr) -> anyhow::Result<SocketAddr> {
        let format = if like.is_ipv4() {
            "{{.NetworkSettings.Networks.kind.IPAddress}}"
        } else {
            "{{.NetworkSettings.Networks.kind.GlobalIPv6Address}}"
        };
        let inspect = ["inspect", "--format", format, Self::NAME];
        let address = output(Command::new("docker").args(inspect))?;
        Ok(SocketAddr::new(address.trim().parse()?, 8080))
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

pub(crate) fn server_outside_cluster_sees_node_address(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let outside = Outside::start(&cluster.image)?;
    for probes in cluster.probes.by_family() {
        for pod in &probes.pods {
            let mut nodes = probes.nodes.iter();
            let node = nodes.find(|node| node.node == pod.node);
            let node = node.context("a pod has a node")?;
            let server = outside.server(pod.address)?;
            until("the host outside", Duration::from_secs(10), || {
                is_seen_as(node.address, pod, &[server], 0)
            })?;
        }
    }
    Ok(())
}

pub(crate) fn pod_containers_share_network_namespace(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pod = cluster.probes.pods.first().context("a pod")?;
    for address in &pod.addresses {
        let localhost: IpAddr = if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        let server = SocketAddr::new(localhost, 8080).to_string();
        let asked = pod.exec_in("second", &["netweft-probe", "ask", "tcp", &server])?;
        expect_peer(
            &asked,
            localhost,
            "the second container asks the first at localhost",
        )?;
    }
    let addresses =
        |container| pod.exec_in(container, &["ip", "-o", "address", "show", "dev", "eth0"]);
    ensure!(
        addresses("probe")? == addresses("second")?,
        "the containers see different addresses"
    );
    let seen = addresses("probe")?;
    for address in &pod.addresses {
        ensure!(
            seen.contains(&address.to_string()),
            "the pod does not see its own address {address}, but {seen}"
        );
    }
    Ok(())
}
