//! The test pods: on every node two pods with addresses of the pod network, and one pod in the host network.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::harness::poll::until;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::traffic::matrix::{Endpoint, Matrix, Row, targets};
use crate::traffic::ping::{self, Answer};

const NAMESPACE: &str = "netweft-e2e";
/// The namespace, the pods in the host network, the pod with a hostPort, and the Services.
const BASE_MANIFEST: &str = include_str!("../../manifests/probes.yaml");
/// A DaemonSet of test pods.
const PROBE_MANIFEST: &str = include_str!("../../manifests/probe.yaml");

/// One test pod.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Node of the pod.
    pub node: String,
    /// The address under test. Initially the first address of the pod. A pod in the host network has the address of its node.
    pub address: IpAddr,
    /// All addresses of the pod, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The label `app`.
    pub app: String,
}

/// All test pods.
#[derive(Clone)]
pub struct Probes {
    /// Pods with an address of the pod network.
    pub pods: Vec<Probe>,
    /// One pod in the host network of each node.
    pub nodes: Vec<Probe>,
    /// The pod with a hostPort.
    pub host_port: Probe,
}

impl Probes {
    /// The first pod with an address of the pod network.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn first(&self) -> anyhow::Result<&Probe> {
        self.pods.first().context("no test pod")
    }

    /// The last pod with an address of the pod network.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn last(&self) -> anyhow::Result<&Probe> {
        self.pods.last().context("no test pod")
    }

    /// Create the test pods from this image, and wait until they are ready.
    ///
    /// # Errors
    /// kubectl fails, the cluster has no worker, or a pod does not become ready.
    pub fn create(image: &str) -> anyhow::Result<Self> {
        let nodes = get(&["nodes"])?;
        let is_worker = |node: &&Value| {
            node.pointer("/metadata/labels/node-role.kubernetes.io~1control-plane")
                .is_none()
        };
        let worker = items(&nodes)
            .find(is_worker)
            .context("the cluster has no worker")?;
        let manifest = [
            BASE_MANIFEST,
            &PROBE_MANIFEST.replace("NAME", "probe-a"),
            &PROBE_MANIFEST.replace("NAME", "probe-b"),
        ]
        .join("---\n");
        apply(
            &manifest
                .replace("IMAGE", image)
                .replace("WORKER", text(worker, "/metadata/name")?),
        )?;
        wait_for_sets()?;
        wait_for_pod("host-port")?;
        until("the list of test pods", Duration::from_secs(20), Self::list)
    }

    /// The manifest of a DaemonSet of test pods in an existing namespace.
    #[must_use]
    pub fn manifest(namespace: &str, set: &str, image: &str) -> String {
        let in_namespace = PROBE_MANIFEST.replace(
            &format!("namespace: {NAMESPACE}"),
            &format!("namespace: {namespace}"),
        );
        in_namespace.replace("NAME", set).replace("IMAGE", image)
    }

    /// The test pods of a namespace.
    ///
    /// # Errors
    /// kubectl fails, or a pod has no node or no address yet.
    pub fn in_namespace(namespace: &str) -> anyhow::Result<Vec<Probe>> {
        let pods = get(&["pods", "-n", namespace])?;
        items(&pods).map(probe).collect()
    }

    /// List the test pods again after a node has joined, and wait until they are ready.
    ///
    /// # Errors
    /// kubectl fails, or a pod does not become ready.
    pub fn refresh(&mut self) -> anyhow::Result<()> {
        wait_for_sets()?;
        *self = until("the list of test pods", Duration::from_secs(20), Self::list)?;
        Ok(())
    }

    /// The address under test of a node.
    ///
    /// # Errors
    /// The node has no test pod in the host network.
    pub fn node_address(&self, node: &str) -> anyhow::Result<IpAddr> {
        let probe = self.nodes.iter().find(|probe| probe.node == node);
        let probe = probe.with_context(|| format!("no test pod in the host network of {node}"))?;
        Ok(probe.address)
    }

    /// Remove the pods of a deleted node from the lists.
    pub fn remove_node(&mut self, node: &str) {
        self.pods.retain(|probe| probe.node != node);
        self.nodes.retain(|probe| probe.node != node);
    }

    fn list() -> anyhow::Result<Self> {
        let mut probes = Self::in_namespace(NAMESPACE)?;
        probes.sort_by(|a, b| (&a.node, &a.app).cmp(&(&b.node, &b.app)));
        let with_label = |apps: &[&str]| -> Vec<Probe> {
            probes
                .iter()
                .filter(|probe| apps.contains(&probe.app.as_str()))
                .cloned()
                .collect()
        };
        let host_port = with_label(&["host-port"])
            .into_iter()
            .next()
            .context("the pod with a hostPort does not exist")?;
        Ok(Self {
            pods: with_label(&["probe-a", "probe-b"]),
            nodes: with_label(&["node"]),
            host_port,
        })
    }

    /// A copy of the test pods for each family of which all pods have an address, with that address as the address under test.
    #[must_use]
    pub fn by_family(&self) -> Vec<Self> {
        let of_family = |ipv4: bool| {
            let mut probes = self.clone();
            let Self {
                pods,
                nodes,
                host_port,
            } = &mut probes;
            for probe in pods.iter_mut().chain(nodes).chain([host_port]) {
                let mut addresses = probe.addresses.iter();
                probe.address = *addresses.find(|address| address.is_ipv4() == ipv4)?;
            }
            Some(probes)
        };
        [true, false].into_iter().filter_map(of_family).collect()
    }

    /// Ping from every pod and node to every other, with these options of `netweft-probe ping`.
    ///
    /// # Errors
    /// The probe fails in a pod. An unanswered ping is no error, but an entry of the matrix.
    pub fn matrix(&self, options: &[&str]) -> anyhow::Result<Matrix> {
        self.matrix_where(options, |_, _| true)
    }

    /// As [`Probes::matrix`], for the pairs of source and target that `is_included` accepts.
    ///
    /// # Errors
    /// The probe fails in a pod. An unanswered ping is no error, but an entry of the matrix.
    pub fn matrix_where(
        &self,
        options: &[&str],
        is_included: impl Fn(&Probe, &Probe) -> bool,
    ) -> anyhow::Result<Matrix> {
        let pods = self
            .pods
            .iter()
            .map(|probe| (endpoint(probe, false), probe));
        let sources: Vec<(Endpoint, &Probe)> = pods
            .chain(
                self.nodes
                    .iter()
                    .map(|probe| (endpoint(probe, true), probe)),
            )
            .collect();
        let mut matrix = Matrix::default();
        for (source, probe) in &sources {
            let endpoints: Vec<Endpoint> = sources
                .iter()
                .filter(|(_, target)| is_included(probe, target))
                .map(|(endpoint, _)| endpoint.clone())
                .collect();
            let targets = targets(source, &endpoints);
            if targets.is_empty() {
                continue;
            }
            let addresses: Vec<IpAddr> = targets.iter().map(|target| target.address).collect();
            let answers = probe.ping(options, &addresses)?;
            matrix.add(Row {
                source: source.clone(),
                targets,
                answers,
            })?;
        }
        Ok(matrix)
    }
}

/// Wait until a pod of the test namespace is ready, for at most 60 s.
///
/// # Errors
/// The pod does not exist or does not become ready.
pub fn wait_for_pod(name: &str) -> anyhow::Result<()> {
    let ready = ["--for=condition=Ready", "--timeout=60s"];
    kubectl(&[&["-n", NAMESPACE, "wait", "pod", name][..], &ready].concat()).map(drop)
}

fn wait_for_sets() -> anyhow::Result<()> {
    for set in ["probe-a", "probe-b", "node"] {
        rollout_status(NAMESPACE, &format!("daemonset/{set}"), "180s")?;
    }
    Ok(())
}

fn probe(pod: &Value) -> anyhow::Result<Probe> {
    Ok(Probe {
        namespace: text(pod, "/metadata/namespace")?.to_owned(),
        pod: text(pod, "/metadata/name")?.to_owned(),
        node: text(pod, "/spec/nodeName")?.to_owned(),
        address: text(pod, "/status/podIP")?.parse()?,
        addresses: addresses(pod)?,
        app: text(pod, "/metadata/labels/app")?.to_owned(),
    })
}

fn addresses(pod: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let listed = pod.pointer("/status/podIPs").and_then(Value::as_array);
    let listed = listed.into_iter().flatten();
    listed
        .map(|entry| Ok(text(entry, "/ip")?.parse()?))
        .collect()
}

/// `worker2/a` for a pod, `worker2` for a node. Names of kind nodes begin with the name of the cluster, which is left out.
fn endpoint(probe: &Probe, is_node: bool) -> Endpoint {
    let node = probe
        .node
        .split_once('-')
        .map_or(probe.node.as_str(), |(_, rest)| rest);
    let name = if is_node {
        node.to_owned()
    } else {
        format!("{node}/{}", probe.app.trim_start_matches("probe-"))
    };
    Endpoint {
        name,
        address: probe.address,
        is_node,
    }
}

impl Probe {
    /// Run a command in the pod, and return its standard output.
    ///
    /// # Errors
    /// The command or `kubectl exec` fails.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        self.exec_in("probe", command)
    }

    /// Run a command in a container of the pod, and return its standard output.
    ///
    /// # Errors
    /// The command or `kubectl exec` fails.
    pub fn exec_in(&self, container: &str, command: &[&str]) -> anyhow::Result<String> {
        let mut words = vec![
            "-n",
            &self.namespace,
            "exec",
            &self.pod,
            "-c",
            container,
            "--",
        ];
        words.extend(command);
        kubectl(&words).with_context(|| format!("in {} on {}", self.pod, self.node))
    }

    fn ping(&self, options: &[&str], targets: &[IpAddr]) -> anyhow::Result<Vec<Answer>> {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let mut command = vec!["netweft-probe", "ping"];
        command.extend(options);
        command.extend(targets.iter().map(String::as_str));
        ping::read_answers(&self.exec(&command)?)
    }

    /// Send requests with `payload` bytes to servers of test pods, one after the other. Each answer is `peer=… own=…`: the remote
    /// and the local address of the connection at the server.
    ///
    /// # Errors
    /// A server does not answer.
    pub fn request(
        &self,
        protocol: &str,
        servers: &[SocketAddr],
        payload: usize,
    ) -> anyhow::Result<Vec<String>> {
        let payload = payload.to_string();
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let mut command = vec!["netweft-probe", "ask", protocol, "--payload", &payload];
        command.extend(servers.iter().map(String::as_str));
        let output = self.exec(&command)?;
        let answers: Vec<String> = output.lines().map(str::to_owned).collect();
        anyhow::ensure!(
            answers.len() == servers.len(),
            "{} sent requests to {servers:?} and received {answers:?}",
            self.pod
        );
        Ok(answers)
    }
}
