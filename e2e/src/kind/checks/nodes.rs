//! Nodes that come, go, or lose their agent.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{pod_address, start_pod, stop_pod};
use crate::kind::checks::rollout;
use crate::kind::checks::traffic::is_seen_as;
use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, merge, text};
use crate::kind::probes::Probe;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Ten times what it may take, as for every bound in time.
const REACHED: Duration = Duration::from_secs(20);

/// Pods start and stop on a node that has no agent, and only the loss of what the agent wrote there makes it NotReady.
pub(crate) fn node_without_agent_starts_and_stops_pods(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let client = cluster.probes.pods.first().context("a pod")?.clone();
    let node = cluster.probes.pods.last().context("a pod")?.node.clone();
    ensure!(client.node != node, "the test pods are on one node only");
    agents_stay_away_from(Some(&node))?;
    let outcome = a_pod_comes_and_goes(&client, &node, &cluster.image)
        .and_then(|()| the_runtime_asks_for_the_status(&node));
    agents_stay_away_from(None)?;
    outcome
}

fn a_pod_comes_and_goes(client: &Probe, node: &str, image: &str) -> anyhow::Result<()> {
    let name = "without-agent";
    start_pod(name, node, image)?;
    let address = pod_address(name)?;
    let server = SocketAddr::new(address.parse()?, 8080);
    is_seen_as(client.address, client, &[server], 1000)?;
    stop_pod(name)?;
    until("its address to be free", TIMEOUT, || {
        let records = host::on(node, &["ls", "/run/netweft/attachments"])?;
        ensure!(
            !records.lines().any(|line| line == address),
            "{address} still has a record"
        );
        Ok(())
    })
}

/// The plugin's STATUS says 50 without its blocks, and the kubelet passes that on.
fn the_runtime_asks_for_the_status(node: &str) -> anyhow::Result<()> {
    const BLOCKS: &str = "/run/netweft/node.json";
    const ASIDE: &str = "/run/netweft/.aside";
    host::on(node, &["mv", BLOCKS, ASIDE])?;
    let unready = until("the node to be NotReady", TIMEOUT, || {
        let object = get(&["node", node])?;
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| text(condition, "/type").is_ok_and(|type_| type_ == "Ready"))
            .context("a Node has the condition Ready")?;
        let message = text(ready, "/message")?;
        ensure!(
            text(ready, "/status")? == "False" && message.contains("first sync"),
            "the Node says: {message}"
        );
        Ok(())
    });
    host::on(node, &["mv", ASIDE, BLOCKS])?;
    unready?;
    kubectl(&[
        "wait",
        "node",
        node,
        "--for=condition=Ready",
        "--timeout=60s",
    ])
    .map(drop)
}

fn agents_stay_away_from(node: Option<&str>) -> anyhow::Result<()> {
    stay_away_from("netweft-agent", "netweft-agent", node)
}

/// Take a DaemonSet's program from one node, or let it be everywhere.
pub(crate) fn stay_away_from(set: &str, process: &str, node: Option<&str>) -> anyhow::Result<()> {
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
    until(&format!("{set} to be where it should"), TIMEOUT, || {
        let all = host::nodes()?;
        let with: Vec<String> = all
            .iter()
            .filter(|node| host::runs(node, process))
            .cloned()
            .collect();
        let wanted: Vec<String> = all
            .into_iter()
            .filter(|name| Some(name.as_str()) != node)
            .collect();
        ensure!(with == wanted, "{process} runs on {with:?}");
        Ok(())
    })
}

/// A machine that did not exist before joins with `kubeadm join`; then it is switched off and its Node deleted.
pub(crate) fn new_node_joins_and_deleted_node_is_removed(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let workers: Vec<String> = host::nodes()?
        .into_iter()
        .filter(|name| name.contains("-worker"))
        .collect();
    let model = workers.first().context("a worker")?;
    let name = format!("{model}-new");
    let outcome = join(cluster, model, &name).and_then(|()| meet(cluster, &name));
    let blocks = blocks_of(&name);
    output(Command::new("docker").args(["rm", "--force", "--volumes", &name]))?;
    kubectl(&["delete", "node", &name, "--ignore-not-found"])?;
    // No kubelet is left that reports the end of the pods.
    let theirs = format!("spec.nodeName={name}");
    kubectl(&[
        "delete",
        "pods",
        "-A",
        "--force",
        "--field-selector",
        &theirs,
    ])?;
    let forgotten = blocks.and_then(|blocks| forgotten(&workers, &blocks));
    cluster.probes.forget(&name);
    outcome?;
    forgotten
}

/// Start a node's container as kind starts its own, and let it join as kind lets its own.
fn join(cluster: &Cluster, model: &str, name: &str) -> anyhow::Result<()> {
    let inspect = |format: &str, of: &str| {
        output(Command::new("docker").args(["inspect", "--format", format, of]))
            .map(|text| text.trim().to_owned())
    };
    let image = inspect("{{.Config.Image}}", model)?;
    let cgroupns = inspect("{{.HostConfig.CgroupnsMode}}", model)?;
    let label = inspect("{{index .Config.Labels \"io.x-k8s.kind.cluster\"}}", model)?;
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
    output(&mut run).context("start a fourth node")?;
    until("the new node's container runtime", TIMEOUT, || {
        host::on(
            name,
            &["ctr", "--namespace", "k8s.io", "images", "ls", "--quiet"],
        )
    })?;
    load_images(cluster)?;
    let address = "{{.NetworkSettings.Networks.kind.IPAddress}}";
    let configuration = host::on(model, &["cat", "/kind/kubeadm.conf"])?
        .replace(model, name)
        .replace(&inspect(address, model)?, &inspect(address, name)?);
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

/// The new node gets a block, and all pods and nodes reach its pods.
fn meet(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    let ready = |kind: &str| {
        until(
            &format!("{kind} {name} to be Ready"),
            Duration::from_secs(120),
            || kubectl(&["wait", kind, name, "--for=condition=Ready", "--timeout=5s"]),
        )
        .with_context(|| look_at(name))
    };
    ready("node")?;
    ready("nodenetwork")?;
    ensure!(
        blocks_of(name)?.len() == 1,
        "{name} has {:?}",
        blocks_of(name)?
    );
    cluster.probes.refresh()?;
    // Ready covers the node's own state; the other nodes get its block within two seconds.
    until("all pods and nodes to reach the new node", REACHED, || {
        let matrix = cluster.probes.matrix(&[])?;
        println!("{matrix}");
        matrix.check()
    })
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

/// What a person would look at if a node does not become Ready.
fn look_at(node: &str) -> String {
    let field = format!("spec.nodeName={node}");
    let looks: [&[&str]; 4] = [
        &["get", "nodes,nodesubnets,nodenetworks", "-o", "wide"],
        &[
            "get",
            "pods",
            "-A",
            "-o",
            "wide",
            "--field-selector",
            &field,
        ],
        &["get", "pods", "-n", "kube-system", "-o", "wide"],
        &["get", "events", "-A", "--sort-by=.lastTimestamp"],
    ];
    let said = looks.map(|look| kubectl(look).unwrap_or_else(|error| error.to_string()));
    said.join("\n")
}

fn blocks_of(node: &str) -> anyhow::Result<Vec<String>> {
    let subnets = get(&["nodesubnets"])?;
    let own = items(&subnets).filter(|subnet| text(subnet, "/spec/node").is_ok_and(|n| n == node));
    own.map(|subnet| Ok(text(subnet, "/spec/cidr")?.to_owned()))
        .collect()
}

/// No other node has a route to these blocks any more, and they are kept for the node's return.
fn forgotten(others: &[String], blocks: &[String]) -> anyhow::Result<()> {
    ensure!(!blocks.is_empty(), "the new node never had a block");
    until("the routes to the deleted node to be gone", TIMEOUT, || {
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
        ensure!(state == Some("Orphaned"), "the block {block} is {state:?}");
    }
    Ok(())
}
