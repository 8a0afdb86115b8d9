//! The test pods: two on every node, and a look from the node itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::harness::poll::until;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::traffic::matrix::{Endpoint, Matrix, Row, targets};
use crate::traffic::ping::{self, Answer};

const NAMESPACE: &str = "netweft-e2e";
const SURROUNDINGS: &str = include_str!("../../manifests/probes.yaml");
const PROBE: &str = include_str!("../../manifests/probe.yaml");

/// One test pod.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its namespace.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// The address of it that is meant, at first the one that Kubernetes names first; the node's for a look from the node.
    pub address: IpAddr,
    /// All its addresses, one of each family at most.
    pub addresses: Vec<IpAddr>,
    /// Its label `app`.
    pub app: String,
}

/// All test pods.
#[derive(Clone)]
pub struct Probes {
    /// Pods with an address of their own.
    pub pods: Vec<Probe>,
    /// One look from each node.
    pub nodes: Vec<Probe>,
    /// The pod with a hostPort.
    pub host_port: Probe,
}

impl Probes {
    /// Create them from this image and wait until they run.
    ///
    /// # Errors
    /// They cannot be created or do not come up.
    pub fn create(image: &str) -> anyhow::Result<Self> {
        let nodes = get(&["nodes"])?;
        let worker = |node: &&Value| {
            node.pointer("/metadata/labels/node-role.kubernetes.io~1control-plane")
                .is_none()
        };
        let worker = items(&nodes)
            .find(worker)
            .context("the cluster has no worker")?;
        let manifest = [
            SURROUNDINGS,
            &PROBE.replace("NAME", "probe-a"),
            &PROBE.replace("NAME", "probe-b"),
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

    /// A pod on every node, in a namespace that exists.
    #[must_use]
    pub fn manifest(namespace: &str, set: &str, image: &str) -> String {
        let named = PROBE.replace(
            &format!("namespace: {NAMESPACE}"),
            &format!("namespace: {namespace}"),
        );
        named.replace("NAME", set).replace("IMAGE", image)
    }

    /// The test pods of a namespace.
    ///
    /// # Errors
    /// They have no node or no address yet.
    pub fn in_namespace(namespace: &str) -> anyhow::Result<Vec<Probe>> {
        let all = get(&["pods", "-n", namespace])?;
        items(&all).map(probe).collect()
    }

    /// See which test pods there are now, after nodes have come: those on all nodes run.
    ///
    /// # Errors
    /// They do not come up.
    pub fn refresh(&mut self) -> anyhow::Result<()> {
        wait_for_sets()?;
        *self = until("the list of test pods", Duration::from_secs(20), Self::list)?;
        Ok(())
    }

    /// Leave out what was on a node that has gone.
    pub fn forget(&mut self, node: &str) {
        self.pods.retain(|probe| probe.node != node);
        self.nodes.retain(|probe| probe.node != node);
    }

    fn list() -> anyhow::Result<Self> {
        let mut probes = Self::in_namespace(NAMESPACE)?;
        probes.sort_by(|a, b| (&a.node, &a.app).cmp(&(&b.node, &b.app)));
        let of = |apps: &[&str]| -> Vec<Probe> {
            probes
                .iter()
                .filter(|probe| apps.contains(&probe.app.as_str()))
                .cloned()
                .collect()
        };
        let host_port = of(&["host-port"])
            .into_iter()
            .next()
            .context("the pod with a hostPort is gone")?;
        Ok(Self {
            pods: of(&["probe-a", "probe-b"]),
            nodes: of(&["node"]),
            host_port,
        })
    }

    /// The same pods once for each family that they all have an address of, and then that one is meant.
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

    /// All pods and nodes ping each other, with the `options` of the probe.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix(&self, options: &[&str]) -> anyhow::Result<Matrix> {
        self.matrix_where(options, |_, _| true)
    }

    /// The same of the pairs that are wanted, the source first.
    ///
    /// # Errors
    /// A probe cannot be run; pairs that do not answer are in the matrix.
    pub fn matrix_where(
        &self,
        options: &[&str],
        wanted: impl Fn(&Probe, &Probe) -> bool,
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
                .filter(|(_, target)| wanted(probe, target))
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

/// Wait until one of the test pods is ready.
///
/// # Errors
/// It does not become so.
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

/// `worker2/a` for a pod, `worker2` for a node: kind's names begin with the cluster's, which says nothing here.
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
    /// Run a command in the pod.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        self.exec_in("probe", command)
    }

    /// Run a command in one of the pod's containers.
    ///
    /// # Errors
    /// It fails.
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

    /// Ask probes' servers, one after the other: of each `peer=… own=…`, the addresses that it saw.
    ///
    /// # Errors
    /// One does not answer.
    pub fn ask(
        &self,
        protocol: &str,
        servers: &[SocketAddr],
        payload: usize,
    ) -> anyhow::Result<Vec<String>> {
        let payload = payload.to_string();
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let mut command = vec!["netweft-probe", "ask", protocol, "--payload", &payload];
        command.extend(servers.iter().map(String::as_str));
        let said = self.exec(&command)?;
        let answers: Vec<String> = said.lines().map(str::to_owned).collect();
        anyhow::ensure!(
            answers.len() == servers.len(),
            "{} asked {servers:?} and got {answers:?}",
            self.pod
        );
        Ok(answers)
    }
}
