//! netweft goes: pods keep their network as long as they live, and nodes are what they were before.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{pod_address, start_pod, stop_pod};
use crate::kind::checks::rollout::{SYSTEM, wait_for};
use crate::kind::checks::traffic::is_seen_as;
use crate::kind::host;
use crate::kind::kubectl::kubectl;
use crate::kind::meter::Meter;
use crate::kind::residue::Residue;

/// How long pods ping while netweft is uninstalled, installed again and asked to clean up.
const MEANWHILE: Duration = Duration::from_secs(90);
const TIMEOUT: Duration = Duration::from_secs(60);
/// A network that is not ours, each node's pods among themselves.
const OTHER: &str = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge", "bridge": "other0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.111.NODE.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

pub(crate) fn uninstall_keeps_pods_and_leaves_nodes_clean(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let before = cluster.before.as_ref().context(
        "the nodes were not looked at before netweft was installed: run `make down` first",
    )?;
    let release = Release::of(&cluster.project)?;
    let meter = Meter::start(&cluster.probes, MEANWHILE)?;
    let outcome = leave_and_return(cluster, &release);
    meter.finish()?;
    outcome?;
    // No program is left.
    for namespace in test_namespaces()? {
        kubectl(&["delete", "namespace", &namespace, "--timeout=120s"])?;
    }
    scale_dns(0)?;
    release.helm(&["upgrade"], &["--set", "cleanup.enabled=true", "--wait"])?;
    until("nodes to be as they were", TIMEOUT, || {
        Residue::bare()?.same_as(before)
    })?;
    output(
        Command::new("helm")
            .args(["uninstall", "netweft"])
            .args(SYSTEM),
    )?;
    let definitions = kubectl(&["get", "crd", "-o", "name"])?;
    let ours: Vec<&str> = definitions
        .lines()
        .filter(|name| name.ends_with(".netweft.io"))
        .collect();
    ensure!(ours.len() == 5, "the definitions are {ours:?}");
    kubectl(&[&["delete", "--timeout=60s"], &ours[..]].concat())
        .context("delete the definitions")?;
    another_network_works(&cluster.image)
}

/// Uninstalled, pods start and stop and reach each other; installed again, all is as before; asked to clean up, it waits for pods.
fn leave_and_return(cluster: &Cluster, release: &Release) -> anyhow::Result<()> {
    definitions_are_kept()?;
    let client = cluster.probes.pods.first().context("a pod")?;
    let node = &cluster.probes.pods.last().context("a pod")?.node;
    output(
        Command::new("helm")
            .args(["uninstall", "netweft"])
            .args(SYSTEM)
            .arg("--wait"),
    )?;
    for program in ["netweft-agent", "netweft-operator", "bird"] {
        ensure!(!host::runs(node, program), "{program} runs on {node}");
    }
    start_pod("left-alone", node, &cluster.image)?;
    let server = SocketAddr::new(pod_address("left-alone")?.parse()?, 8080);
    is_seen_as(client.address, client, &[server], 1000)?;
    stop_pod("left-alone")?;

    release.helm(&["install"], &[])?;
    wait_for("deployment,daemonset")?;
    let ready = ["--all", "--for=condition=Ready", "--timeout=120s"];
    kubectl(&[&["wait", "nodenetworks"], &ready[..]].concat())?;

    release.helm(&["upgrade"], &["--set", "cleanup.enabled=true"])?;
    until("the cleanup to name the pods it waits for", TIMEOUT, || {
        let label = "app.kubernetes.io/component=cleanup";
        let logs = kubectl(&[&SYSTEM[..], &["logs", "-l", label, "--tail=-1"]].concat())?;
        let named = "pod netweft-e2e/probe-";
        ensure!(logs.contains(named), "no {named} in: {logs}");
        Ok(())
    })
}

/// What would take every pod's way away is refused while netweft is installed.
fn definitions_are_kept() -> anyhow::Result<()> {
    let refused = kubectl(&["delete", "crd", "nodesubnets.netweft.io", "--timeout=20s"]);
    let said = refused
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(
        said.contains("uninstall the release first"),
        "it said: {said}"
    );
    Ok(())
}

fn test_namespaces() -> anyhow::Result<Vec<String>> {
    let names = kubectl(&["get", "namespaces", "-o", "name"])?;
    let names = names
        .lines()
        .filter_map(|name| name.strip_prefix("namespace/"));
    let ours = names.filter(|name| name.starts_with("netweft-") && *name != "netweft-system");
    Ok(ours.map(str::to_owned).collect())
}

fn scale_dns(replicas: u32) -> anyhow::Result<()> {
    let replicas = format!("--replicas={replicas}");
    let dns = ["-n", "kube-system", "scale", "deployment/coredns"];
    kubectl(&[&dns[..], &[&replicas]].concat())?;
    let gone = ["-n", "kube-system", "wait", "pod", "-l", "k8s-app=kube-dns"];
    let condition = if replicas.ends_with("=0") {
        "--for=delete"
    } else {
        "--for=condition=Ready"
    };
    kubectl(&[&gone[..], &[condition, "--timeout=120s"]].concat()).map(drop)
}

/// The reference plugins on every node, as another network's installer would put them there.
fn another_network_works(image: &str) -> anyhow::Result<()> {
    let plugins =
        env::var("NETWEFT_CNI_BIN").context("NETWEFT_CNI_BIN names no folder of plugins")?;
    let nodes = host::nodes()?;
    for (number, node) in nodes.iter().enumerate() {
        for plugin in ["bridge", "host-local"] {
            host::copy(
                &Path::new(&plugins).join(plugin),
                node,
                &format!("/opt/cni/bin/{plugin}"),
            )?;
        }
        let conf = OTHER.replace("NODE", &number.to_string());
        host::write(node, "/etc/cni/net.d/20-other.conflist", &conf)?;
    }
    kubectl(&[
        "wait",
        "nodes",
        "--all",
        "--for=condition=Ready",
        "--timeout=120s",
    ])?;
    scale_dns(1)?;
    kubectl(&["create", "namespace", "netweft-e2e"])?;
    let node = nodes.last().context("a node")?;
    for name in ["one", "two"] {
        until("the namespace to have its account", TIMEOUT, || {
            kubectl(&["-n", "netweft-e2e", "get", "serviceaccount", "default"]).map(drop)
        })?;
        start_pod(name, node, image)?;
    }
    let server = SocketAddr::new(pod_address("two")?.parse()?, 8080);
    ensure!(
        server.ip().to_string().starts_with("10.111."),
        "{server} is no address of the other network"
    );
    let one = kubectl(&[
        "-n",
        "netweft-e2e",
        "exec",
        "one",
        "--",
        "netweft-probe",
        "ask",
        "tcp",
        &server.to_string(),
    ]);
    one.map(drop)
}

/// The release as it was installed, to be installed again.
struct Release {
    chart: PathBuf,
    values: PathBuf,
}

impl Drop for Release {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.values));
    }
}

impl Release {
    fn of(project: &Path) -> anyhow::Result<Self> {
        let mut helm = Command::new("helm");
        let values = output(
            helm.args(["get", "values", "netweft", "-o", "yaml"])
                .args(SYSTEM),
        )?;
        let file = output(&mut Command::new("mktemp"))?;
        std::fs::write(file.trim(), values)?;
        Ok(Self {
            chart: project.join("charts/netweft"),
            values: file.trim().into(),
        })
    }

    fn helm(&self, verb: &[&str], flags: &[&str]) -> anyhow::Result<()> {
        let mut helm = Command::new("helm");
        helm.args(verb)
            .arg("netweft")
            .arg(&self.chart)
            .arg("-f")
            .arg(&self.values);
        output(helm.args(SYSTEM).args(flags)).map(drop)
    }
}
