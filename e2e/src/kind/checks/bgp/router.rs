//! A router that is not ours, on the nodes' network: FRR in a container of its own, as a route reflector with a password.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::kind::checks::Cluster;
use crate::kind::checks::bgp::{MESH, Wanted, converged};
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, merge, text};
use crate::kind::meter::Meter;

/// Name of the container, of the BGPPeer and of the Secret.
const NAME: &str = "netweft-router";
const PASSWORD: &str = "between-the-two-of-us";
/// How long the way there and back may take; pods ping all the while.
const WALK: Duration = Duration::from_secs(90);

/// Sessions with the router are made, the mesh is given up, the mesh is made again, the router is given up: nothing is lost.
pub fn mesh_replacement_by_router_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let router = Router::start(&cluster.project)?;
    let outcome = there_and_back(cluster, &router);
    // As it was, whatever has happened.
    mesh(true)?;
    give_up()?;
    outcome?;
    MESH.established()?;
    converged()
}

fn there_and_back(cluster: &Cluster, router: &Router) -> anyhow::Result<()> {
    let both = Wanted {
        mesh: true,
        router: Some(NAME),
    };
    let alone = Wanted {
        mesh: false,
        router: Some(NAME),
    };
    let meter = Meter::start(&cluster.probes, WALK)?;
    let started = Instant::now();
    let walked = walk(cluster, router, both, alone);
    let took = started.elapsed();
    println!("  there and back in {:.0} s", took.as_secs_f32());
    let measured = meter.finish();
    walked?;
    ensure!(took < WALK, "it took longer than the pings");
    measured
}

fn walk(cluster: &Cluster, router: &Router, both: Wanted, alone: Wanted) -> anyhow::Result<()> {
    router.declare()?;
    both.established()?;
    ready()?;
    mesh(false)?;
    alone.established()?;
    converged()?;
    for pod in &cluster.probes.pods {
        router.ping(&cluster.image, pod.address)?;
    }
    mesh(true)?;
    both.established()?;
    give_up()?;
    MESH.established()
}

/// The BGPPeer says that all is well.
fn ready() -> anyhow::Result<()> {
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
        "with {nodes} nodes the BGPPeer says {peer}"
    );
    Ok(())
}

fn mesh(on: bool) -> anyhow::Result<()> {
    let patch = format!(r#"{{"spec":{{"underlay":{{"nodeToNodeMesh":{on}}}}}}}"#);
    merge(&["networkmode", "default"], &patch)
}

fn give_up() -> anyhow::Result<()> {
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

/// The nodes' AS number, which is the router's too.
fn as_number() -> anyhow::Result<u64> {
    let networks = get(&["nodenetworks"])?;
    let first = items(&networks).next().context("a NodeNetwork")?;
    let number = first.pointer("/spec/bgp/asNumber");
    number
        .and_then(serde_json::Value::as_u64)
        .context("an AS number")
}

/// The container.
struct Router {
    address: IpAddr,
}

impl Router {
    fn start(project: &Path) -> anyhow::Result<Self> {
        let image = output(&mut Command::new(
            project.join("e2e/cluster/router-image.sh"),
        ))?;
        Self::remove();
        // What FRR asks for.
        let rights = ["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN"];
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--network", "kind", "--name", NAME]);
        run.args(rights).args([image.trim(), "sleep", "infinity"]);
        output(&mut run).context("start the router")?;
        let format = "{{.NetworkSettings.Networks.kind.IPAddress}}";
        let address = output(Command::new("docker").args(["inspect", "--format", format, NAME]))?;
        let router = Self {
            address: address.trim().parse()?,
        };
        host::write(NAME, "/etc/frr/frr.conf", &router.configuration()?)?;
        let vty = ["-d", "-A", "127.0.0.1"];
        for program in [&["zebra"][..], &["bgpd", "-f", "/etc/frr/frr.conf"]] {
            host::on(NAME, &[program, &vty].concat())?;
        }
        Ok(router)
    }

    fn remove() {
        // It may not be there.
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

    /// Its password and its BGPPeer.
    fn declare(&self) -> anyhow::Result<()> {
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

    /// From a container in its network namespace: by what it has learnt.
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
        let said = output(
            Command::new("docker")
                .args(words)
                .arg(pod.to_string())
                .stdin(Stdio::null()),
        )?;
        let answer: crate::traffic::ping::Answer = serde_json::from_str(said.trim())?;
        ensure!(
            answer.received == answer.sent,
            "the router at {} does not reach {pod}: {said}",
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
