//! Nodes that join, are deleted, or have no agent.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{pod_address, start_pod, stop_pod, wait_for_free_address};
use crate::kind::checks::rollout;
use crate::kind::checks::traffic::check_source_address;
use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, merge, text};
use crate::kind::probes::Probe;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit until all pods reach a new node: ten times the expected time.
const CONNECTIVITY_TIMEOUT: Duration = Duration::from_secs(20);

/// Pods start and stop on a node without an agent. The node becomes NotReady only without the file that the agent has written.
pub(crate) fn node_without_agent_starts_and_stops_pods(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let client = cluster.probes.first()?.clone();
    let node = cluster.probes.last()?.node.clone();
    ensure!(client.node != node, "all test pods are on one node");
    exclude_agent_from(Some(&node))?;
    let outcome = start_and_stop_pod(&client, &node, &cluster.image)
        .and_then(|()| check_not_ready_without_blocks(&node));
    exclude_agent_from(None)?;
    outcome
}

fn start_and_stop_pod(client: &Probe, node: &str, image: &str) -> anyhow::Result<()> {
    let name = "without-agent";
    start_pod(name, node, image)?;
    let address = pod_address(name)?;
    let server = SocketAddr::new(address.parse()?, 8080);
    check_source_address(client.address, client, &[server], 1000)?;
    stop_pod(name)?;
    wait_for_free_address(node, &address)
}

/// Without the file of blocks, STATUS of the plugin returns the CNI error code 50, and the kubelet sets the node NotReady.
fn check_not_ready_without_blocks(node: &str) -> anyhow::Result<()> {
    const BLOCKS: &str = "/run/netweft/node.json";
    const MOVED_BLOCKS: &str = "/run/netweft/.aside";
    host::on(node, &["mv", BLOCKS, MOVED_BLOCKS])?;
    let not_ready = until("the node to be NotReady", TIMEOUT, || {
        let object = get(&["node", node])?;
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| text(condition, "/type").is_ok_and(|type_| type_ == "Ready"))
            .context("the Node has no condition Ready")?;
        let message = text(ready, "/message")?;
        ensure!(
            text(ready, "/status")? == "False" && message.contains("first sync"),
            "the condition Ready of the Node has the message: {message}"
        );
        Ok(())
    });
    host::on(node, &["mv", MOVED_BLOCKS, BLOCKS])?;
    not_ready?;
    kubectl(&[
        "wait",
        "node",
        node,
        "--for=condition=Ready",
        "--timeout=60s",
    ])
    .map(drop)
}

fn exclude_agent_from(node: Option<&str>) -> anyhow::Result<()> {
    exclude_daemonset_from("netweft-agent", "netweft-agent", node)
}

/// Exclude one node from a DaemonSet by node affinity, or no node with `None`, and wait until `process` runs on the other nodes only.
pub(crate) fn exclude_daemonset_from(
    set: &str,
    process: &str,
    node: Option<&str>,
) -> anyhow::Result<()> {
    let affinity = node.map_or(Value::Null, |node| {
        serde_json::json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node] }
            ] }]
        } } })
    });
    let patch = serde_json::json!({ "spec": { "template": { "spec": { "affinity": affinity } } } });
    let patch = patch.to_string();
    let set = format!("daemonset/{set}");
    merge(&[&rollout::SYSTEM[..], &[&set]].concat(), &patch)?;
    rollout::wait_for(&set)?;
    until(&format!("{set} on the selected nodes"), TIMEOUT, || {
        let all = host::nodes()?;
        let found: Vec<String> = all
            .iter()
            .filter(|node| host::runs(node, process))
            .cloned()
            .collect();
        let expected: Vec<String> = all
            .into_iter()
            .filter(|name| Some(name.as_str()) != node)
            .collect();
        ensure!(
            found == expected,
            "{process} runs on {found:?} instead of {expected:?}"
        );
        Ok(())
    })
}

/// A new machine joins with `kubeadm join`. Then the machine is removed, and its Node is deleted.
pub(crate) fn new_node_joins_and_deleted_node_is_removed(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let workers: Vec<String> = host::nodes()?
        .into_iter()
        .filter(|name| name.contains("-worker"))
        .collect();
    let template = workers.first().context("no worker")?;
    let name = format!("{template}-new");
    let outcome = join(cluster, template, &name).and_then(|()| check_new_node(cluster, &name));
    let blocks = blocks_of(&name);
    output(Command::new("docker").args(["rm", "--force", "--volumes", &name]))?;
    kubectl(&["delete", "node", &name, "--ignore-not-found"])?;
    force_delete_pods(&name)?;
    let removed = blocks.and_then(|blocks| check_node_removed(&workers, &blocks));
    cluster.probes.remove_node(&name);
    outcome?;
    removed
}

/// Delete the pods of a removed machine, without the confirmation of its kubelet, which does not run any more.
pub(crate) fn force_delete_pods(node: &str) -> anyhow::Result<()> {
    let selector = format!("spec.nodeName={node}");
    let delete = ["delete", "pods", "-A", "--force", "--field-selector"];
    kubectl(&[&delete[..], &[&selector]].concat()).map(drop)
}

/// Start a container with the options that kind uses for nodes, and join the cluster with the configuration of `template`, a worker.
fn join(cluster: &Cluster, template: &str, name: &str) -> anyhow::Result<()> {
    let inspect = |format: &str, container: &str| {
        output(Command::new("docker").args(["inspect", "--format", format, container]))
            .map(|text| text.trim().to_owned())
    };
    let image = inspect("{{.Config.Image}}", template)?;
    let cgroupns = inspect("{{.HostConfig.CgroupnsMode}}", template)?;
    let label = inspect(
        "{{index .Config.Labels \"io.x-k8s.kind.cluster\"}}",
        template,
    )?;
    let mut run = Command::new("docker");
    run.args(["run", "--detach", "--tty", "--privileged", "--init=false"]);
    run.args(["--name", name, "--hostname", name, "--network", "kind"]);
    run.args(["--label", &format!("io.x-k8s.kind.cluster={label}")]);
    run.args(["--label", "io.x-k8s.kind.role=worker"]);
    run.args([
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "apparmor=unconfined",
    ]);
    run.args(["--tmpfs", "/tmp", "--tmpfs", "/run", "--volume", "/var"]);
    run.args(["--volume", "/lib/modules:/lib/modules:ro"]);
    run.args(["--cgroupns", &cgroupns, &image]);
    output(&mut run).context("start the container of the new node")?;
    until("the container runtime of the new node", TIMEOUT, || {
        host::on(
            name,
            &["ctr", "--namespace", "k8s.io", "images", "ls", "--quiet"],
        )
    })?;
    load_images(cluster)?;
    let address = "{{.NetworkSettings.Networks.kind.IPAddress}}";
    let configuration = host::on(template, &["cat", "/kind/kubeadm.conf"])?
        .replace(template, name)
        .replace(&inspect(address, template)?, &inspect(address, name)?);
    host::write(name, "/kind/kubeadm.conf", &configuration)?;
    host::on(
        name,
        &[
            "kubeadm",
            "join",
            "--config",
            "/kind/kubeadm.conf",
            "--skip-phases=preflight",
        ],
    )
    .context("kubeadm join")
    .map(drop)
}

fn load_images(cluster: &Cluster) -> anyhow::Result<()> {
    let mut load = Command::new(cluster.project.join("e2e/cluster/load-images.sh"));
    for image in ["operator", "agent", "udp-relay", "testbox"] {
        load.arg(format!("netweft/{image}:{}", cluster.tag));
    }
    load.arg(format!("netweft/bird:{}", cluster.bird_tag));
    output(&mut load).map(drop)
}

/// The new node gets a block, and all pods and nodes reach the pods of the new node.
fn check_new_node(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    let ready = |kind: &str| {
        until(
            &format!("{kind} {name} to be Ready"),
            Duration::from_secs(120),
            || kubectl(&["wait", kind, name, "--for=condition=Ready", "--timeout=5s"]),
        )
        .with_context(|| diagnostics(name))
    };
    ready("node")?;
    ready("nodenetwork")?;
    let blocks = blocks_of(name)?;
    ensure!(
        blocks.len() == 1,
        "{name} has the blocks {blocks:?} instead of one block"
    );
    cluster.probes.refresh()?;
    // The condition Ready covers only the state of the node itself. The other nodes get a route to its block within two seconds.
    until(
        "all pods and nodes to reach the new node",
        CONNECTIVITY_TIMEOUT,
        || {
            let matrix = cluster.probes.matrix(&[])?;
            println!("{matrix}");
            matrix.check()
        },
    )
    .with_context(|| {
        let logs = [
            "-n",
            "netweft-system",
            "logs",
            "daemonset/netweft-agent",
            "--all-pods",
            "--prefix",
        ];
        kubectl(&[&logs[..], &["--since=3m"]].concat()).unwrap_or_default()
    })
}

/// Objects and Events for the analysis of a node that does not become Ready.
fn diagnostics(node: &str) -> String {
    let selector = format!("spec.nodeName={node}");
    let commands: [&[&str]; 4] = [
        &["get", "nodes,nodesubnets,nodenetworks", "-o", "wide"],
        &[
            "get",
            "pods",
            "-A",
            "-o",
            "wide",
            "--field-selector",
            &selector,
        ],
        &["get", "pods", "-n", "kube-system", "-o", "wide"],
        &["get", "events", "-A", "--sort-by=.lastTimestamp"],
    ];
    kubectl_outputs(&commands)
}

/// The outputs or errors of several kubectl commands.
pub(crate) fn kubectl_outputs(commands: &[&[&str]]) -> String {
    let outputs = commands
        .iter()
        .map(|command| kubectl(command).unwrap_or_else(|error| error.to_string()));
    outputs.collect::<Vec<_>>().join("\n")
}

fn blocks_of(node: &str) -> anyhow::Result<Vec<String>> {
    let subnets = get(&["nodesubnets"])?;
    let owned = items(&subnets)
        .filter(|subnet| text(subnet, "/spec/node").is_ok_and(|owner| owner == node));
    owned
        .map(|subnet| Ok(text(subnet, "/spec/cidr")?.to_owned()))
        .collect()
}

/// No other node has a route to the blocks of the deleted node, and the blocks are Orphaned, for a possible return of the node.
fn check_node_removed(others: &[String], blocks: &[String]) -> anyhow::Result<()> {
    ensure!(!blocks.is_empty(), "the new node had no block");
    until("the removal of routes to the deleted node", TIMEOUT, || {
        for node in others {
            let routes = host::on(node, &["ip", "route", "show", "table", "all"])?;
            for block in blocks {
                ensure!(
                    !routes.contains(block.as_str()),
                    "{node} still has a route to {block}"
                );
            }
        }
        Ok(())
    })?;
    let subnets = get(&["nodesubnets"])?;
    for block in blocks {
        let state = items(&subnets)
            .find(|subnet| text(subnet, "/spec/cidr").is_ok_and(|cidr| cidr == block))
            .and_then(|subnet| text(subnet, "/spec/state").ok());
        ensure!(
            state == Some("Orphaned"),
            "the block {block} has the state {state:?} instead of Orphaned"
        );
    }
    Ok(())
}
