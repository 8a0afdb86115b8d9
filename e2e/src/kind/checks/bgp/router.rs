//! An external router: FRR in a container on the network of the nodes, as a route reflector with a password.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{ExpectedSessions, MESH, await_convergence};
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, merge, text};
use crate::kind::meter::Meter;

/// Name of the container, the BGPPeer and the Secret.
const NAME: &str = "netweft-router";
const PASSWORD: &str = "bgp-password";
/// Time limit of both replacements. Pods ping each other for this time.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The nodes connect to the router, the mesh is disabled and enabled again, and the router is removed. No packet is lost.
pub fn mesh_replacement_by_router_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let router = Router::start(&cluster.project)?;
    let outcome = replace_mesh_and_restore(cluster, &router);
    // The next checks need the mesh, also after a failure.
    set_mesh(true)?;
    delete_peer()?;
    outcome?;
    MESH.await_established()?;
    await_convergence()
}

fn replace_mesh_and_restore(cluster: &Cluster, router: &Router) -> anyhow::Result<()> {
    let meter = Meter::start(&cluster.probes, TIMEOUT)?;
    let started = Instant::now();
    let replaced = replace_steps(cluster, router);
    let elapsed = started.elapsed();
    println!(
        "  replaced and restored the mesh in {:.0} s",
        elapsed.as_secs_f32()
    );
    let measured = meter.finish();
    replaced?;
    ensure!(
        elapsed < TIMEOUT,
        "the replacement took longer than the pings, {TIMEOUT:?}"
    );
    measured
}

fn replace_steps(cluster: &Cluster, router: &Router) -> anyhow::Result<()> {
    let mesh_and_router = ExpectedSessions {
        mesh: true,
        router: Some(NAME),
    };
    let only_router = ExpectedSessions {
        mesh: false,
        router: Some(NAME),
    };
    router.apply_peer()?;
    mesh_and_router.await_established()?;
    check_peer_status()?;
    set_mesh(false)?;
    only_router.await_established()?;
    await_convergence()?;
    for pod in &cluster.probes.pods {
        router.ping(&cluster.image, pod.address)?;
    }
    set_mesh(true)?;
    mesh_and_router.await_established()?;
    delete_peer()?;
    MESH.await_established()
}

/// The BGPPeer is Ready, and its status counts an established session on every node.
fn check_peer_status() -> anyhow::Result<()> {
    let words = [
        "wait",
        "bgppeer",
        NAME,
        "--for=condition=Ready",
        "--timeout=20s",
    ];
    kubectl(&words)
        .with_context(|| kubectl(&["get", "bgppeer", NAME, "-o", "yaml"]).unwrap_or_default())?;
    let peer = get(&["bgppeer", NAME])?;
    let count = |field: &str| peer.pointer(&format!("/status/nodes/{field}")).cloned();
    let nodes = host::nodes()?.len();
    ensure!(
        count("total") == Some(nodes.into()) && count("established") == Some(nodes.into()),
        "the BGPPeer does not report {nodes} established sessions: {peer}"
    );
    Ok(())
}

fn set_mesh(enabled: bool) -> anyhow::Result<()> {
    let patch = format!(r#"{{"spec":{{"underlay":{{"nodeToNodeMesh":{enabled}}}}}}}"#);
    merge(&["networkmode", "default"], &patch)
}

/// Delete the BGPPeer and the Secret, if they exist.
fn delete_peer() -> anyhow::Result<()> {
    kubectl(&[
        "delete",
        "bgppeer",
        NAME,
        "--ignore-not-found",
        "--timeout=20s",
    ])?;
    kubectl(&[
        "-n",
        "netweft-system",
        "delete",
        "secret",
        NAME,
        "--ignore-not-found",
    ])
    .map(drop)
}

/// The AS number of the nodes. The router has the same AS number.
fn as_number() -> anyhow::Result<u64> {
    let networks = get(&["nodenetworks"])?;
    let first = items(&networks).next().context("no NodeNetwork")?;
    let number = first.pointer("/spec/bgp/asNumber");
    number
        .and_then(serde_json::Value::as_u64)
        .context("the NodeNetwork has no AS number")
}

/// The container of the router. The container is removed when this value is dropped.
struct Router {
    address: IpAddr,
}

impl Router {
    fn start(project: &Path) -> anyhow::Result<Self> {
        let image = output(&mut Command::new(
            project.join("e2e/cluster/router-image.sh"),
        ))?;
        Self::remove();
        // FRR needs both capabilities.
        let capabilities = ["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN"];
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--network", "kind", "--name", NAME]);
        run.args(capabilities)
            .args([image.trim(), "sleep", "infinity"]);
        output(&mut run).context("start the router")?;
        let format = "{{.NetworkSettings.Networks.kind.IPAddress}}";
        let address = output(Command::new("docker").args(["inspect", "--format", format, NAME]))?;
        let router = Self {
            address: address.trim().parse()?,
        };
        host::write(NAME, "/etc/frr/frr.conf", &router.configuration()?)?;
        let daemon_options = ["-d", "-A", "127.0.0.1"];
        for program in [&["zebra"][..], &["bgpd", "-f", "/etc/frr/frr.conf"]] {
            host::on(NAME, &[program, &daemon_options].concat())?;
        }
        Ok(router)
    }

    fn remove() {
        // The container may not exist.
        let _ = output(Command::new("docker").args(["rm", "--force", NAME]));
    }

    fn configuration(&self) -> anyhow::Result<String> {
        let number = as_number()?;
        let mut lines = format!(
            "router bgp {number}\n bgp router-id {}\n neighbor nodes peer-group\n neighbor nodes remote-as {number}\n \
             neighbor nodes password {}\n",
            self.address, PASSWORD
        );
        for network in items(&get(&["nodenetworks"])?) {
            let address = text(network, "/spec/addresses/ipv4")?;
            lines += &format!(" neighbor {address} peer-group nodes\n");
        }
        lines += " address-family ipv4 unicast\n  neighbor nodes route-reflector-client\n exit-address-family\n";
        Ok(lines)
    }

    /// Apply the Secret with the password, and the BGPPeer.
    fn apply_peer(&self) -> anyhow::Result<()> {
        let number = as_number()?;
        apply(&format!(
            "
apiVersion: v1
kind: Secret
metadata: {{name: {NAME}, namespace: netweft-system, labels: {{netweft.io/bgp-password: \"true\"}}}}
stringData: {{password: {}}}
---
apiVersion: netweft.io/v1alpha1
kind: BGPPeer
metadata: {{name: {NAME}}}
spec:
  peerIP: {}
  asNumber: {number}
  password: {{secretKeyRef: {{name: {NAME}, key: password}}}}
",
            PASSWORD, self.address
        ))
    }

    /// Ping a pod from a container in the network namespace of the router, which has the routes from BGP.
    fn ping(&self, image: &str, pod: IpAddr) -> anyhow::Result<()> {
        let network = format!("container:{NAME}");
        let words = [
            "run",
            "--rm",
            "--network",
            &network,
            image,
            "netweft-probe",
            "ping",
            "--count",
            "2",
        ];
        let output = output(
            Command::new("docker")
                .args(words)
                .arg(pod.to_string())
                .stdin(Stdio::null()),
        )?;
        let answer: crate::traffic::ping::Answer = serde_json::from_str(output.trim())?;
        ensure!(
            answer.received == answer.sent,
            "the router at {} does not reach {pod}: {output}",
            self.address
        );
        Ok(())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        Self::remove();
    }
}
