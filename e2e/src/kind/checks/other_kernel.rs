//! Nodes with another kernel: real kubelets in user-mode Linux, for types of links that the kernel of the machine does not have.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::nodes::{force_delete_pods, kubectl_outputs};
use crate::kind::kubectl::{apply, kubectl, merge};
use crate::kind::probes::Probe;

/// `spec.overlay` of the mode of these nodes, and the link of the tunnel.
const OVERLAY: (&str, &str) = ("{encapsulation: ipip}", "nw-ipip");
const NODES: [&str; 2] = ["other-1", "other-2"];
/// Time limit until a node is Ready. A node needs a minute if it has a CPU core of its own.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Nodes with another kernel join and get blocks of a separate pool. Pods of these nodes reach each other through the tunnel. Then
/// the nodes are removed.
pub(crate) fn nodes_with_other_kernel_run_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    let outcome = join(cluster).and_then(|()| check_nodes(cluster));
    let removed = remove_nodes(cluster);
    outcome?;
    removed
}

/// Nodes with the other kernel cannot masquerade. The default pool excludes them, and their pool has natOutgoing: false.
fn join(cluster: &Cluster) -> anyhow::Result<()> {
    let exclude = r#"[{"key": "netweft-e2e/kernel", "operator": "DoesNotExist"}]"#;
    set_default_pool_selector(exclude)?;
    let (overlay, _) = OVERLAY;
    apply(&format!(
        "
apiVersion: netweft.io/v1alpha1
kind: NetworkMode
metadata: {{name: other-kernel}}
spec: {{mode: overlay, overlay: {overlay}}}
---
apiVersion: netweft.io/v1alpha1
kind: IPPool
metadata: {{name: other-kernel}}
spec:
  cidr: 10.245.0.0/24
  networkMode: other-kernel
  natOutgoing: false
  nodeSelector: {{matchLabels: {{netweft-e2e/kernel: other}}}}
"
    ))?;
    let images = ["agent", "testbox"].map(|image| format!("netweft/{image}:{}", cluster.tag));
    output(machine_script(cluster).arg("up").args(images))
        .context("start machines with another kernel")
        .map(drop)
}

fn set_default_pool_selector(expressions: &str) -> anyhow::Result<()> {
    let patch = format!(r#"{{"spec": {{"nodeSelector": {{"matchExpressions": {expressions}}}}}}}"#);
    merge(&["ippool/default-v4"], &patch)
}

fn machine_script(cluster: &Cluster) -> Command {
    Command::new(cluster.project.join("e2e/cluster/other-kernel.sh"))
}

/// The pods of both nodes ping each other, each node pings all of the pods, and the pods ping their own node. Packets between the
/// nodes use the tunnel.
fn check_nodes(cluster: &mut Cluster) -> anyhow::Result<()> {
    for kind in ["node", "nodenetwork"] {
        let words = [&["wait", kind][..], &NODES, &["--for=condition=Ready"]].concat();
        until(&format!("the {kind}s to be Ready"), READY_TIMEOUT, || {
            kubectl(&[&words[..], &["--timeout=20s"]].concat())
        })
        .with_context(diagnostics)?;
    }
    cluster.probes.refresh().with_context(diagnostics)?;
    let before = tunnel_rx_packets(cluster)?;
    let has_other_kernel = |probe: &Probe| NODES.contains(&probe.node.as_str());
    // Without masquerading, the answer of another node to a pod would not use the tunnel.
    let is_symmetric = |from: &Probe, to: &Probe| to.app != "node" || to.node == from.node;
    let matrix = cluster.probes.matrix_where(&[], |from, to| {
        has_other_kernel(from) && has_other_kernel(to) && is_symmetric(from, to)
    })?;
    println!("{matrix}");
    matrix.check()?;
    let min_packets = 2 * 2 + 2; // pods to pods and a node to pods, at least one packet each
    for ((node, before), (_, after)) in before.into_iter().zip(tunnel_rx_packets(cluster)?) {
        ensure!(
            after >= before + min_packets,
            "{node} has received {} packets through {} instead of at least {min_packets}",
            after - before,
            OVERLAY.1
        );
    }
    Ok(())
}

/// Number of packets that each of the nodes has received through the tunnel.
fn tunnel_rx_packets(cluster: &Cluster) -> anyhow::Result<Vec<(String, u64)>> {
    let file = format!("/sys/class/net/{}/statistics/rx_packets", OVERLAY.1);
    let probes = cluster.probes.nodes.iter();
    let probes = probes.filter(|probe| NODES.contains(&probe.node.as_str()));
    let counters = probes
        .map(|probe| {
            Ok((
                probe.node.clone(),
                probe.exec(&["cat", &file])?.trim().parse()?,
            ))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        counters.len() == NODES.len(),
        "only some of the nodes {NODES:?} have test pods: {counters:?}"
    );
    Ok(counters)
}

/// Objects for the analysis of nodes that do not become Ready.
fn diagnostics() -> String {
    kubectl_outputs(&[
        &["get", "nodes,nodenetworks", "-o", "wide"],
        &["get", "pods", "-A", "-o", "wide"],
    ])
}

/// Remove the machines, their Nodes, and the pool and the NetworkMode of these nodes.
fn remove_nodes(cluster: &mut Cluster) -> anyhow::Result<()> {
    output(machine_script(cluster).arg("down"))?;
    for node in NODES {
        kubectl(&["delete", "node", node, "--ignore-not-found"])?;
        force_delete_pods(node)?;
        cluster.probes.remove_node(node);
    }
    // The operator keeps the blocks of deleted Nodes, and therefore the pool, for the grace period. Only the service account of the
    // operator may delete the blocks earlier.
    let operator = "--as=system:serviceaccount:netweft-system:netweft-operator";
    let subnets = kubectl(&["get", "nodesubnets", "-o", "name"])?;
    for subnet in subnets.lines().filter(|name| name.contains("/10-245-0-")) {
        kubectl(&["delete", subnet, operator])?;
    }
    for object in ["ippool/other-kernel", "networkmode/other-kernel"] {
        kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
    }
    set_default_pool_selector("null")
}
