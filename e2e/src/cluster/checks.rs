//! What must be true of a cluster with netweft, besides the matrix.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::kubectl::{get, kubectl, text};
use super::probes::{Probe, Probes};
use crate::command::output;
use crate::poll::until;

type Check = fn(&Probes, &str) -> anyhow::Result<()>;

const CHECKS: [(&str, Check); 10] = [
    ("every_pair_pings", every_pair_pings),
    (
        "the_server_sees_the_pods_own_address",
        the_server_sees_the_pods_own_address,
    ),
    (
        "the_outside_sees_the_nodes_address",
        the_outside_sees_the_nodes_address,
    ),
    (
        "a_pods_containers_share_one_stack",
        a_pods_containers_share_one_stack,
    ),
    ("dns_answers", dns_answers),
    ("a_cluster_ip_answers", a_cluster_ip_answers),
    ("a_node_port_answers", a_node_port_answers),
    ("a_host_port_answers", a_host_port_answers),
    (
        "bad_objects_are_refused_in_words",
        bad_objects_are_refused_in_words,
    ),
    (
        "what_is_not_supported_says_so",
        what_is_not_supported_says_so,
    ),
];

/// Run every check. Returns how many passed and how many failed; each result is printed.
#[must_use]
pub fn suite(probes: &Probes, image: &str) -> (usize, usize) {
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check(probes, image) {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED\n  {error:#}");
            }
        }
    }
    (CHECKS.len() - failed, failed)
}

fn every_pair_pings(probes: &Probes, _: &str) -> anyhow::Result<()> {
    let matrix = probes.matrix()?;
    println!("{matrix}");
    matrix.check()
}

fn the_server_sees_the_pods_own_address(probes: &Probes, _: &str) -> anyhow::Result<()> {
    for client in &probes.pods {
        for server in &probes.pods {
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

fn expect_peer(seen: &str, address: IpAddr, what: &str) -> anyhow::Result<()> {
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

fn the_outside_sees_the_nodes_address(probes: &Probes, image: &str) -> anyhow::Result<()> {
    let outside = Outside::start(image)?;
    for pod in &probes.pods {
        let node = probes
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

fn a_pods_containers_share_one_stack(probes: &Probes, _: &str) -> anyhow::Result<()> {
    let pod = probes.pods.first().context("a pod")?;
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

fn dns_answers(probes: &Probes, _: &str) -> anyhow::Result<()> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let address = text(&service, "/spec/clusterIP")?;
    for pod in &probes.pods {
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

fn a_cluster_ip_answers(probes: &Probes, _: &str) -> anyhow::Result<()> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let server = SocketAddr::new(text(&service, "/spec/clusterIP")?.parse()?, 80);
    for client in probes.pods.iter().filter(|probe| probe.app == "probe-a") {
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

fn a_node_port_answers(probes: &Probes, _: &str) -> anyhow::Result<()> {
    for client in probes.nodes.iter().chain(&probes.pods) {
        for node in &probes.nodes {
            client.ask("tcp", SocketAddr::new(node.address, 30880), 0)?;
        }
    }
    Ok(())
}

fn a_host_port_answers(probes: &Probes, _: &str) -> anyhow::Result<()> {
    let node = probes
        .nodes
        .iter()
        .find(|node| node.node == probes.host_port.node)
        .context("the pod has a node")?;
    let elsewhere = |probe: &&Probe| probe.node != probes.host_port.node;
    for client in probes
        .nodes
        .iter()
        .filter(elsewhere)
        .chain(probes.pods.iter().filter(elsewhere))
    {
        for protocol in ["tcp", "udp"] {
            let seen = client.ask(protocol, SocketAddr::new(node.address, 18080), 0)?;
            ensure!(
                seen.contains(&format!("peer={} ", client_seen_as(client, probes)?)),
                "hostPort: {seen:?}"
            );
        }
    }
    Ok(())
}

/// How another node sees a client: a pod as its node, since a node is outside the pools.
fn client_seen_as(client: &Probe, probes: &Probes) -> anyhow::Result<IpAddr> {
    let node = probes.nodes.iter().find(|node| node.node == client.node);
    Ok(node.context("a client has a node")?.address)
}

fn bad_objects_are_refused_in_words(_: &Probes, _: &str) -> anyhow::Result<()> {
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}}}\n"
        )
    };
    let refused = [
        (pool("unmasked", "10.99.0.1/16"), "no host bits"),
        (pool("overlapping", "10.244.128.0/17"), "overlap"),
        (pool("tiny", "10.99.0.0/28"), "smaller than one block"),
    ];
    for (manifest, words) in refused {
        let error = match super::kubectl::apply(&manifest) {
            Ok(()) => anyhow::bail!("this was accepted:\n{manifest}"),
            Err(error) => error.to_string(),
        };
        ensure!(
            error.contains(words),
            "the refusal does not say {words:?}: {error}"
        );
    }
    Ok(())
}

fn what_is_not_supported_says_so(_: &Probes, _: &str) -> anyhow::Result<()> {
    let name = "not-yet-supported";
    super::kubectl::apply(&format!(
        "apiVersion: netweft.io/v1alpha1\nkind: NetworkMode\nmetadata: {{name: {name}}}\nspec: {{mode: host-gw}}\n"
    ))?;
    let stalled = kubectl(&[
        "wait",
        "networkmode",
        name,
        "--for=condition=Stalled",
        "--timeout=20s",
    ]);
    let object = get(&["networkmode", name])?;
    kubectl(&["delete", "networkmode", name])?;
    stalled?;
    let conditions = object
        .pointer("/status/conditions")
        .cloned()
        .unwrap_or_default();
    ensure!(
        conditions.to_string().contains("NotYetSupported"),
        "it is not NotYetSupported: {conditions}"
    );
    Ok(())
}
