//! Names and Services: CoreDNS, kube-proxy and the port map in front of pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::Cluster;
use super::traffic::expect_peer;
use crate::cluster::kubectl::{get, text};
use crate::cluster::probes::Probe;
use crate::lab::LabMode;
use crate::poll::until;

pub(super) fn dns_answers(cluster: &mut Cluster) -> anyhow::Result<()> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let address = text(&service, "/spec/clusterIP")?;
    for pod in &cluster.probes.pods {
        let name = "cluster-ip.netweft-e2e.svc.cluster.local";
        until("DNS", Duration::from_secs(60), || {
            let answer = pod.exec(&["nslookup", name])?;
            ensure!(
                answer.contains(address),
                "{name} is not {address} but: {answer}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn a_cluster_ip_answers(cluster: &mut Cluster) -> anyhow::Result<()> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let server = SocketAddr::new(text(&service, "/spec/clusterIP")?.parse()?, 80);
    for client in cluster
        .probes
        .pods
        .iter()
        .filter(|probe| probe.app == "probe-a")
    {
        for protocol in ["tcp", "udp"] {
            for _ in 0..6 {
                let seen = client.ask(protocol, server, 0)?;
                expect_peer(
                    &seen,
                    client.address,
                    &format!("{protocol} {} to the ClusterIP", client.pod),
                )?;
            }
        }
    }
    Ok(())
}

pub(super) fn a_node_port_answers(cluster: &mut Cluster) -> anyhow::Result<()> {
    for client in cluster.probes.nodes.iter().chain(&cluster.probes.pods) {
        for node in &cluster.probes.nodes {
            client.ask("tcp", SocketAddr::new(node.address, 30880), 0)?;
        }
    }
    Ok(())
}

pub(super) fn a_host_port_answers(cluster: &mut Cluster) -> anyhow::Result<()> {
    let node = cluster
        .probes
        .nodes
        .iter()
        .find(|node| node.node == cluster.probes.host_port.node)
        .context("the pod has a node")?;
    let elsewhere = |probe: &&Probe| probe.node != cluster.probes.host_port.node;
    for client in cluster
        .probes
        .nodes
        .iter()
        .filter(elsewhere)
        .chain(cluster.probes.pods.iter().filter(elsewhere))
    {
        for protocol in ["tcp", "udp"] {
            let seen = client.ask(protocol, SocketAddr::new(node.address, 18080), 0)?;
            ensure!(
                seen.contains(&format!("peer={} ", client_seen_as(client, cluster)?)),
                "hostPort: {seen:?}"
            );
        }
    }
    Ok(())
}

/// How another node sees a client: a pod as its node, since a node is outside the pools; where packets travel plainly nodes are
/// not, and the pod is seen as itself.
fn client_seen_as(client: &Probe, cluster: &Cluster) -> anyhow::Result<IpAddr> {
    if matches!(cluster.mode, LabMode::HostGw | LabMode::Underlay) {
        return Ok(client.address);
    }
    let mut nodes = cluster.probes.nodes.iter();
    let node = nodes.find(|node| node.node == client.node);
    Ok(node.context("a client has a node")?.address)
}
