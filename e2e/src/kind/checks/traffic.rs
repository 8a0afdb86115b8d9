//! Connectivity between pods, nodes and external hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;

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

/// Packets of the size of the pod MTU pass. The pings must not be fragmented: a raw socket sets DF on packets that fit the link. The
/// UDP requests have the same size. The answers are longer, because the server adds addresses, and have two fragments.
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
            check_source_address(client.address, client, &servers, payload)?;
        }
    }
    Ok(())
}

pub(crate) fn server_in_cluster_sees_pod_address(cluster: &mut Cluster) -> anyhow::Result<()> {
    for Probes { pods, .. } in cluster.probes.by_family() {
        let servers: Vec<SocketAddr> = pods.iter().map(server).collect();
        for client in &pods {
            check_source_address(client.address, client, &servers, 1000)?;
        }
    }
    Ok(())
}

/// Address and port of the server of a test pod.
pub(crate) fn server(pod: &Probe) -> SocketAddr {
    SocketAddr::new(pod.address, 8080)
}

/// All servers answer the client over TCP and UDP, and see `address` as the source address of the client.
pub(crate) fn check_source_address(
    address: IpAddr,
    client: &Probe,
    servers: &[SocketAddr],
    payload: usize,
) -> anyhow::Result<()> {
    for protocol in ["tcp", "udp"] {
        let answers = client.request(protocol, servers, payload)?;
        for (server, answer) in servers.iter().zip(&answers) {
            let connection = format!("{protocol} from {} to {server}", client.pod);
            check_peer(answer, address, &connection)?;
        }
    }
    Ok(())
}

fn check_peer(answer: &str, address: IpAddr, connection: &str) -> anyhow::Result<()> {
    ensure!(
        answer.starts_with(&format!("peer={address} ")),
        "{connection}: the source address is not {address} at the server, which answers {answer:?}"
    );
    Ok(())
}

/// A server outside of the cluster: a container on the network of kind that is not a node. The container is removed when this value
/// is dropped.
struct ExternalServer;

impl ExternalServer {
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

    /// Address and port of the server, with the family of `client`.
    fn address(&self, client: IpAddr) -> anyhow::Result<SocketAddr> {
        let format = if client.is_ipv4() {
            "{{.NetworkSettings.Networks.kind.IPAddress}}"
        } else {
            "{{.NetworkSettings.Networks.kind.GlobalIPv6Address}}"
        };
        let inspect = ["inspect", "--format", format, Self::NAME];
        let address = output(Command::new("docker").args(inspect))?;
        Ok(SocketAddr::new(address.trim().parse()?, 8080))
    }

    fn remove() {
        // The container may not exist.
        let _ = output(Command::new("docker").args(["rm", "--force", Self::NAME]));
    }
}

impl Drop for ExternalServer {
    fn drop(&mut self) {
        Self::remove();
    }
}

pub(crate) fn server_outside_cluster_sees_node_address(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let external = ExternalServer::start(&cluster.image)?;
    for probes in cluster.probes.by_family() {
        for pod in &probes.pods {
            let node_address = probes.node_address(&pod.node)?;
            let server = external.address(pod.address)?;
            until(
                "an answer of the external server",
                Duration::from_secs(10),
                || check_source_address(node_address, pod, &[server], 0),
            )?;
        }
    }
    Ok(())
}

pub(crate) fn pod_containers_share_network_namespace(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pod = cluster.probes.first()?;
    for address in &pod.addresses {
        let localhost: IpAddr = if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        let server = SocketAddr::new(localhost, 8080).to_string();
        let answer = pod.exec_in("second", &["netweft-probe", "ask", "tcp", &server])?;
        check_peer(
            &answer,
            localhost,
            "tcp from the second container to localhost",
        )?;
    }
    let addresses =
        |container| pod.exec_in(container, &["ip", "-o", "address", "show", "dev", "eth0"]);
    ensure!(
        addresses("probe")? == addresses("second")?,
        "the containers of a pod have different addresses on eth0"
    );
    let found = addresses("probe")?;
    for address in &pod.addresses {
        ensure!(
            found.contains(&address.to_string()),
            "eth0 of the pod does not have the address {address}: {found}"
        );
    }
    Ok(())
}
