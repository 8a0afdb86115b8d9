//! Names and Services: CoreDNS, kube-proxy and the port map in front of pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::traffic::is_seen_as;
use crate::kind::kubectl::get;
use crate::kind::probes::{Probe, Probes};
use crate::lab::LabMode;

/// The Service's addresses, one of each family of the cluster.
fn cluster_ips() -> anyhow::Result<Vec<IpAddr>> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let listed = service
        .pointer("/spec/clusterIPs")
        .and_then(Value::as_array);
    let texts = listed.into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| Ok(text.parse()?)).collect()
}

/// The Service's address of the same family.
pub(crate) fn cluster_ip(like: IpAddr) -> anyhow::Result<IpAddr> {
    let mut addresses = cluster_ips()?.into_iter();
    let address = addresses.find(|address| address.is_ipv4() == like.is_ipv4());
    address.with_context(|| format!("the Service has no address like {like}"))
}

pub(crate) fn dns_resolves_service_name(cluster: &mut Cluster) -> anyhow::Result<()> {
    let addresses = cluster_ips()?;
    let families = cluster.probes.by_family().len();
    ensure!(
        addresses.len() == families,
        "the Service has {addresses:?} and pods have {families} families"
    );
    for pod in &cluster.probes.pods {
        let name = "cluster-ip.netweft-e2e.svc.cluster.local";
        until("DNS", Duration::from_secs(60), || {
            let answer = pod.exec(&["nslookup", name])?;
            for address in &addresses {
                ensure!(
                    answer.contains(&address.to_string()),
                    "{name} is not {address} but: {answer}"
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(crate) fn cluster_ip_reaches_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    for probes in cluster.probes.by_family() {
        let clients = probes.pods.iter();
        for client in clients.filter(|probe| probe.app == "probe-a") {
            let service = SocketAddr::new(cluster_ip(client.address)?, 80);
            is_seen_as(client.address, client, &[service; 6], 0)?;
        }
    }
    Ok(())
}

pub(crate) fn node_port_reaches_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    for probes in cluster.probes.by_family() {
        let nodes = probes.nodes.iter();
        let ports = nodes.map(|node| SocketAddr::new(node.address, 30880));
        let ports: Vec<SocketAddr> = ports.collect();
        let behind = probes.pods.iter().filter(|pod| pod.app == "probe-b");
        let behind: Vec<String> = behind.map(|pod| format!("own={}", pod.address)).collect();
        for client in probes.nodes.iter().chain(&probes.pods) {
            for said in client.ask("tcp", &ports, 0)? {
                ensure!(
                    behind.iter().any(|own| said.ends_with(own)),
                    "behind the NodePort is none of its pods: {} heard {said:?}",
                    client.pod
                );
            }
            client.ask("udp", &ports, 0)?;
        }
    }
    Ok(())
}

pub(crate) fn host_port_reaches_pod(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mode = cluster.mode;
    let mut families = cluster.probes.by_family().into_iter();
    families.try_for_each(|probes| host_port_answers(&probes, mode))
}

fn host_port_answers(probes: &Probes, mode: LabMode) -> anyhow::Result<()> {
    let there = &probes.host_port.node;
    let mut nodes = probes.nodes.iter();
    let node = nodes.find(|node| node.node == *there);
    let server = SocketAddr::new(node.context("the pod has a node")?.address, 18080);
    let all = probes.nodes.iter().chain(&probes.pods);
    for client in all.filter(|probe| probe.node != *there) {
        let wanted = client_seen_as(client, probes, mode)?;
        is_seen_as(wanted, client, &[server], 0)?;
    }
    Ok(())
}

/// How another node sees a client: a pod as its node, since a node is outside the pools; where packets travel plainly nodes are
/// not, and the pod is seen as itself.
fn client_seen_as(client: &Probe, probes: &Probes, mode: LabMode) -> anyhow::Result<IpAddr> {
    if matches!(mode, LabMode::HostGw | LabMode::Underlay) {
        return Ok(client.address);
    }
    let mut nodes = probes.nodes.iter();
    let node = nodes.find(|node| node.node == client.node);
    Ok(node.context("a client has a node")?.address)
}
