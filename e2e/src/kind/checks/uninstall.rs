//! Uninstallation of netweft: running pods keep their network, and the cleanup restores the nodes to their state before the
//! installation.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{pod_address, start_pod, stop_pod};
use crate::kind::checks::rollout::{SYSTEM, wait_for};
use crate::kind::checks::traffic::check_source_address;
use crate::kind::host;
use crate::kind::kubectl::kubectl;
use crate::kind::meter::Meter;
use crate::kind::residue::Residue;

/// Duration of the pings: netweft is uninstalled and installed again, and the cleanup starts.
const PING_DURATION: Duration = Duration::from_secs(90);
const TIMEOUT: Duration = Duration::from_secs(60);
/// The configuration of another network, which connects the pods of one node.
const OTHER_NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge", "bridge": "other0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.111.NODE.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

pub(crate) fn uninstall_keeps_pods_and_leaves_nodes_clean(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let before = cluster.before.as_ref().context(
        "the state of the nodes before the installation is unknown, because netweft was already installed: run `make down` first",
    )?;
    let release = Release::of(&cluster.project)?;
    let meter = Meter::start(&cluster.probes, PING_DURATION)?;
    let outcome = reinstall_and_start_cleanup(cluster, &release);
    meter.finish()?;
    outcome?;
    // The cleanup waits for the end of all pods.
    for namespace in test_namespaces()? {
        kubectl(&["delete", "namespace", &namespace, "--timeout=120s"])?;
    }
    scale_dns(0)?;
    release.helm(&["upgrade"], &["--set", "cleanup.enabled=true", "--wait"])?;
    until(
        "the state of nodes before the installation",
        TIMEOUT,
        || Residue::bare()?.same_as(before),
    )?;
    output(
        Command::new("helm")
            .args(["uninstall", "netweft"])
            .args(SYSTEM),
    )?;
    let definitions = kubectl(&["get", "crd", "-o", "name"])?;
    let definitions: Vec<&str> = definitions
        .lines()
        .filter(|name| name.ends_with(".netweft.io"))
        .collect();
    ensure!(
        definitions.len() == 5,
        "the cluster has the CRDs {definitions:?} instead of 5 of netweft"
    );
    kubectl(&[&["delete", "--timeout=60s"], &definitions[..]].concat())
        .context("delete the CRDs")?;
    check_other_network(&cluster.image)
}

/// After `helm uninstall`, pods start, stop and reach each other. After another installation, all nodes become Ready. A cleanup waits
/// for the end of all pods.
fn reinstall_and_start_cleanup(cluster: &Cluster, release: &Release) -> anyhow::Result<()> {
    check_crd_deletion_is_refused()?;
    let client = cluster.probes.first()?;
    let node = &cluster.probes.last()?.node;
    output(
        Command::new("helm")
            .args(["uninstall", "netweft"])
            .args(SYSTEM)
            .arg("--wait"),
    )?;
    for program in ["netweft-agent", "netweft-operator", "bird"] {
        ensure!(!host::runs(node, program), "{program} still runs on {node}");
    }
    let name = "after-uninstall";
    start_pod(name, node, &cluster.image)?;
    let server = SocketAddr::new(pod_address(name)?.parse()?, 8080);
    check_source_address(client.address, client, &[server], 1000)?;
    stop_pod(name)?;

    release.helm(&["install"], &[])?;
    wait_for("deployment,daemonset")?;
    let ready = ["--all", "--for=condition=Ready", "--timeout=120s"];
    kubectl(&[&["wait", "nodenetworks"], &ready[..]].concat())?;

    release.helm(&["upgrade"], &["--set", "cleanup.enabled=true"])?;
    until(
        "the log line of the cleanup about running pods",
        TIMEOUT,
        || {
            let label = "app.kubernetes.io/component=cleanup";
            let logs = kubectl(&[&SYSTEM[..], &["logs", "-l", label, "--tail=-1"]].concat())?;
            let pod = "pod netweft-e2e/probe-";
            ensure!(
                logs.contains(pod),
                "the log of the cleanup does not contain {pod:?}: {logs}"
            );
            Ok(())
        },
    )
}

/// The API server refuses the deletion of a CRD while netweft is installed, because pods would lose their routes.
fn check_crd_deletion_is_refused() -> anyhow::Result<()> {
    let deleted = kubectl(&["delete", "crd", "nodesubnets.netweft.io", "--timeout=20s"]);
    let Err(error) = deleted else {
        bail!("the API server has deleted a CRD while netweft is installed");
    };
    let message = format!("{error:#}");
    ensure!(
        message.contains("uninstall the release first"),
        "the refusal of the deletion has another message: {message}"
    );
    Ok(())
}

fn test_namespaces() -> anyhow::Result<Vec<String>> {
    let names = kubectl(&["get", "namespaces", "-o", "name"])?;
    let names = names
        .lines()
        .filter_map(|name| name.strip_prefix("namespace/"));
    let names = names.filter(|name| name.starts_with("netweft-") && *name != "netweft-system");
    Ok(names.map(str::to_owned).collect())
}

/// Scale CoreDNS, and wait until its pods are ready, or deleted with 0 replicas.
fn scale_dns(replicas: u32) -> anyhow::Result<()> {
    let replicas = format!("--replicas={replicas}");
    let dns = ["-n", "kube-system", "scale", "deployment/coredns"];
    kubectl(&[&dns[..], &[&replicas]].concat())?;
    let wait = ["-n", "kube-system", "wait", "pod", "-l", "k8s-app=kube-dns"];
    let condition = if replicas.ends_with("=0") {
        "--for=delete"
    } else {
        "--for=condition=Ready"
    };
    kubectl(&[&wait[..], &[condition, "--timeout=120s"]].concat()).map(drop)
}

/// The reference plugins work on every node after the uninstallation, installed as by another network.
fn check_other_network(image: &str) -> anyhow::Result<()> {
    let plugins = env::var("NETWEFT_CNI_BIN")
        .context("read NETWEFT_CNI_BIN, the directory of the reference plugins")?;
    let nodes = host::nodes()?;
    for (number, node) in nodes.iter().enumerate() {
        for plugin in ["bridge", "host-local"] {
            host::copy(
                &Path::new(&plugins).join(plugin),
                node,
                &format!("/opt/cni/bin/{plugin}"),
            )?;
        }
        let conf = OTHER_NETWORK.replace("NODE", &number.to_string());
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
    let node = nodes.last().context("no node")?;
    for name in ["one", "two"] {
        until("the default service account", TIMEOUT, || {
            kubectl(&["-n", "netweft-e2e", "get", "serviceaccount", "default"]).map(drop)
        })?;
        start_pod(name, node, image)?;
    }
    let server = SocketAddr::new(pod_address("two")?.parse()?, 8080);
    ensure!(
        server.ip().to_string().starts_with("10.111."),
        "the address of the pod, {server}, is not from the other network"
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

/// Chart and values of the installed release, for another installation. The file of values is removed when this value is dropped.
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
