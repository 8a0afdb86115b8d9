//! DNS names, Services and host ports: CoreDNS, kube-proxy and the port mappings of netweft.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::traffic::check_source_address;
use crate::kind::kubectl::get;
use crate::kind::probes::{Probe, Probes};
use crate::lab::LabMode;

/// DNS name of the Service `cluster-ip`.
pub(crate) const SERVICE_NAME: &str = "cluster-ip.netweft-e2e.svc.cluster.local";

/// The cluster IPs of the Service, one of each family of the cluster.
fn cluster_ips() -> anyhow::Result<Vec<IpAddr>> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let listed = service
        .pointer("/spec/clusterIPs")
        .and_then(Value::as_array);
    let texts = listed.into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| Ok(text.parse()?)).collect()
}

/// The cluster IP of the Service with the family of `client`.
pub(crate) fn cluster_ip(client: IpAddr) -> anyhow::Result<IpAddr> {
    let mut addresses = cluster_ips()?.into_iter();
    let address = addresses.find(|address| address.is_ipv4() == client.is_ipv4());
    address.with_context(|| format!("the Service has no cluster IP with the family of {client}"))
}

pub(crate) fn dns_resolves_service_name(cluster: &mut Cluster) -> anyhow::Result<()> {
    let addresses = cluster_ips()?;
    let families = cluster.probes.by_family().len();
    ensure!(
        addresses.len() == families,
        "the Service has the cluster IPs {addresses:?}, and pods have {families} families"
    );
    for pod in &cluster.probes.pods {
        until("an answer of DNS", Duration::from_secs(60), || {
            let answer = pod.exec(&["nslookup", SERVICE_NAME])?;
            for address in &addresses {
                ensure!(
                    answer.contains(&address.to_string()),
                    "{SERVICE_NAME} does not resolve to {address} in {}: {answer}",
                    pod.pod
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
            check_source_address(client.address, client, &[service; 6], 0)?;
        }
    }
    Ok(())
}

pub(crate) fn node_port_reaches_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    for probes in cluster.probes.by_family() {
        let nodes = probes.nodes.iter();
        let ports = nodes.map(|node| SocketAddr::new(node.address, 30880));
        let ports: Vec<SocketAddr> = ports.collect();
        let endpoints = probes.pods.iter().filter(|pod| pod.app == "probe-b");
        let endpoints: Vec<String> = endpoints
            .map(|pod| format!("own={}", pod.address))
            .collect();
        for client in probes.nodes.iter().chain(&probes.pods) {
            for answer in client.request("tcp", &ports, 0)? {
                ensure!(
                    endpoints.iter().any(|own| answer.ends_with(own)),
                    "the answer to {} is not from an endpoint of the NodePort Service: {answer:?}",
                    client.pod
                );
            }
            client.request("udp", &ports, 0)?;
        }
    }
    Ok(())
}

pub(crate) fn host_port_reaches_pod(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mode = cluster.mode;
    let mut families = cluster.probes.by_family().into_iter();
    families.try_for_each(|probes| check_host_port(&probes, mode))
}

/// Clients of all other nodes reach the host port.
fn check_host_port(probes: &Probes, mode: LabMode) -> anyhow::Result<()> {
    let server_node = &probes.host_port.node;
    let server = SocketAddr::new(probes.node_address(server_node)?, 18080);
    let all = probes.nodes.iter().chain(&probes.pods);
    for client in all.filter(|probe| probe.node != *server_node) {
        let source = source_address_at_node(client, probes, mode)?;
        check_source_address(source, client, &[server], 0)?;
    }
    Ok(())
}

/// The source address of a client in packets to another node. A pod is masqueraded to the address of its node, because addresses of
/// nodes are outside of the pools. Modes without encapsulation do not masquerade packets to nodes.
fn source_address_at_node(
    client: &Probe,
    probes: &Probes,
    mode: LabMode,
) -> anyhow::Result<IpAddr> {
    if matches!(mode, LabMode::HostGw | LabMode::Underlay) {
        return Ok(client.address);
    }
    probes.node_address(&client.node)
}
