//! Nodes on another kernel than the others: real kubelets in user-mode Linux, for links that the machine's kernel lacks.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::kubectl::{apply, kubectl, merge};
use crate::kind::probes::Probe;

/// `spec.overlay` of the mode that is checked there, and the link that carries it.
const OVERLAY: (&str, &str) = ("{encapsulation: ipip}", "nw-ipip");
const NODES: [&str; 2] = ["other-1", "other-2"];
/// A node there needs a minute if it has a core for itself.
const UP: Duration = Duration::from_secs(300);

/// Machines with another kernel join, get blocks of a pool of their own, and pods on them reach each other through the
/// tunnel. Then they are switched off and forgotten.
pub(crate) fn nodes_on_another_kernel_carry_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    let outcome = join(cluster).and_then(|()| meet(cluster));
    let gone = leave(cluster);
    outcome?;
    gone
}

/// Their kernel cannot masquerade, so the ordinary pool keeps away from them and theirs does without.
fn join(cluster: &Cluster) -> anyhow::Result<()> {
    let away = r#"[{"key": "netweft-e2e/kernel", "operator": "DoesNotExist"}]"#;
    ordinary_pool_where(away)?;
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
    output(machines(cluster).arg("up").args(images))
        .context("start machines with another kernel")
        .map(drop)
}

fn ordinary_pool_where(expressions: &str) -> anyhow::Result<()> {
    let patch = format!(r#"{{"spec": {{"nodeSelector": {{"matchExpressions": {expressions}}}}}}}"#);
    let pool = "ippool/default-v4";
    merge(&[pool], &patch)
}

fn machines(cluster: &Cluster) -> Command {
    Command::new(cluster.project.join("e2e/cluster/other-kernel.sh"))
}

/// Pods ping pods on both nodes, each node pings all of them and is pinged by its own; all between nodes by the tunnel.
fn meet(cluster: &mut Cluster) -> anyhow::Result<()> {
    for kind in ["node", "nodenetwork"] {
        let words = [&["wait", kind][..], &NODES, &["--for=condition=Ready"]].concat();
        until(&format!("the {kind}s to be Ready"), UP, || {
            kubectl(&[&words[..], &["--timeout=20s"]].concat())
        })
        .with_context(look)?;
    }
    cluster.probes.refresh().with_context(look)?;
    let before = tunnelled(cluster)?;
    let here = |probe: &Probe| NODES.contains(&probe.node.as_str());
    // Another node would answer a pod that is not masqueraded beside the tunnel.
    let finds_back = |from: &Probe, to: &Probe| to.app != "node" || to.node == from.node;
    let wanted = |from: &Probe, to: &Probe| here(from) && here(to) && finds_back(from, to);
    let matrix = cluster.probes.matrix_where(&[], wanted)?;
    println!("{matrix}");
    matrix.check()?;
    let between = 2 * 2 + 2; // pods to pods and a node to pods, at least one packet each
    for ((node, before), (_, after)) in before.into_iter().zip(tunnelled(cluster)?) {
        ensure!(
            after >= before + between,
            "{} has carried {} packets to {node} meanwhile",
            OVERLAY.1,
            after - before
        );
    }
    Ok(())
}

/// Packets that each of the nodes has taken from the tunnel.
fn tunnelled(cluster: &Cluster) -> anyhow::Result<Vec<(String, u64)>> {
    let file = format!("/sys/class/net/{}/statistics/rx_packets", OVERLAY.1);
    let looks = cluster.probes.nodes.iter();
    let looks = looks.filter(|probe| NODES.contains(&probe.node.as_str()));
    let counted = looks
        .map(|probe| {
            Ok((
                probe.node.clone(),
                probe.exec(&["cat", &file])?.trim().parse()?,
            ))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        counted.len() == NODES.len(),
        "test pods are on {counted:?} only"
    );
    Ok(counted)
}

/// What a person would look at if they do not work.
fn look() -> String {
    let looks: [&[&str]; 2] = [
        &["get", "nodes,nodenetworks", "-o", "wide"],
        &["get", "pods", "-A", "-o", "wide"],
    ];
    let said = looks.map(|look| kubectl(look).unwrap_or_else(|error| error.to_string()));
    said.join("\n")
}

/// Switch the machines off and take away what there was for them.
fn leave(cluster: &mut Cluster) -> anyhow::Result<()> {
    output(machines(cluster).arg("down"))?;
    for node in NODES {
        kubectl(&["delete", "node", node, "--ignore-not-found"])?;
        // No kubelet is left that reports the end of the pods.
        let theirs = format!("spec.nodeName={node}");
        let delete = ["delete", "pods", "-A", "--force", "--field-selector"];
        kubectl(&[&delete[..], &[&theirs]].concat())?;
        cluster.probes.forget(node);
    }
    // The blocks of deleted Nodes, and so the pool, stay for the grace period. Only the operator may delete them earlier.
    let operator = "--as=system:serviceaccount:netweft-system:netweft-operator";
    let subnets = kubectl(&["get", "nodesubnets", "-o", "name"])?;
    for subnet in subnets.lines().filter(|name| name.contains("/10-245-0-")) {
        kubectl(&["delete", subnet, operator])?;
    }
    for object in ["ippool/other-kernel", "networkmode/other-kernel"] {
        kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
    }
    ordinary_pool_where("null")
}
