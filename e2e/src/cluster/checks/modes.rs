//! Modes side by side in one cluster, each for the pods of a namespace of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;

use super::Cluster;
use super::traffic::expect_peer;
use crate::cluster::kubectl::{apply, get, items, kubectl, text};
use crate::cluster::machine;
use crate::cluster::probes::{Probe, Probes};
use crate::poll::until;

/// A mode, its pool, and by which link its routes to other nodes go.
struct Mode {
    name: &'static str,
    spec: &'static str,
    cidr: &'static str,
    link: &'static str,
}

const MODES: [Mode; 4] = [
    Mode {
        name: "host-gw",
        spec: "{mode: host-gw}",
        cidr: "10.246.0.0/20",
        link: "eth0",
    },
    Mode {
        name: "udp",
        spec: "{mode: overlay, overlay: {encapsulation: udp}}",
        cidr: "10.246.16.0/20",
        link: "nw-udp8285",
    },
    Mode {
        name: "vxlan-2",
        spec: "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 2}}}",
        cidr: "10.246.32.0/20",
        link: "nw-vx2",
    },
    Mode {
        name: "ipip",
        spec: "{mode: overlay, overlay: {encapsulation: ipip}}",
        cidr: "10.246.48.0/20",
        link: "nw-ipip",
    },
];

/// Those that can stand beside the cluster's own: a UDP port is one mode's only, and so is ipip, which not every kernel has.
fn beside(cluster: &Cluster) -> impl Iterator<Item = &'static Mode> {
    let own = cluster.mode.to_string();
    let ipip = has_ipip();
    MODES
        .iter()
        .filter(move |mode| !own.starts_with(mode.name) && (ipip || mode.name != "ipip"))
}

/// Whether the nodes' kernel has it, which is tried. Where not, machines with another kernel carry it (`other_kernel`).
fn has_ipip() -> bool {
    let tunnel = "--net ip link add name try type ipip local 192.0.2.1 remote 192.0.2.2";
    let mut words = vec!["unshare"];
    words.extend(tunnel.split(' '));
    let nodes = machine::nodes();
    nodes.is_ok_and(|nodes| {
        let tried = nodes.first().map(|node| machine::on(node, &words));
        tried.is_some_and(|tried| tried.is_ok())
    })
}

/// Pods of all modes ping each other, see each other at their own addresses, and have names and Services.
pub(super) fn modes_work_side_by_side(cluster: &mut Cluster) -> anyhow::Result<()> {
    let outcome = meet(cluster);
    let gone = take_away(cluster);
    outcome?;
    gone
}

impl Mode {
    fn namespace(&self) -> String {
        format!("netweft-e2e-{}", self.name)
    }

    fn set(&self) -> String {
        format!("probe-{}", self.name)
    }

    fn declare(&self) -> anyhow::Result<()> {
        let Self {
            name, spec, cidr, ..
        } = self;
        apply(&format!(
            "
apiVersion: netweft.io/v1alpha1
kind: NetworkMode
metadata: {{name: {name}}}
spec: {spec}
---
apiVersion: netweft.io/v1alpha1
kind: IPPool
metadata: {{name: {name}}}
spec:
  cidr: {cidr}
  networkMode: {name}
  natOutgoing: true
  namespaceSelector: {{matchLabels: {{netweft-e2e/mode: {name}}}}}
"
        ))
    }

    /// A namespace and a pod on every node.
    fn create_pods(&self, image: &str) -> anyhow::Result<()> {
        let (namespace, name) = (self.namespace(), self.name);
        apply(&format!(
            "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{netweft-e2e/mode: {name}}}}}
"
        ))?;
        apply(&Probes::manifest(&namespace, &self.set(), image))
    }

    /// Its pods, when they run.
    fn pods(&self) -> anyhow::Result<Vec<Probe>> {
        let (namespace, set) = (self.namespace(), format!("daemonset/{}", self.set()));
        kubectl(&[
            "-n",
            &namespace,
            "rollout",
            "status",
            &set,
            "--timeout=120s",
        ])
        .with_context(|| {
            kubectl(&["get", "pods,nodenetworks", "-A", "-o", "wide"]).unwrap_or_default()
        })?;
        let pool: IpNet = self.cidr.parse()?;
        let pods = Probes::in_namespace(&namespace)?;
        for pod in &pods {
            ensure!(
                pool.contains(&pod.address),
                "pod {} of namespace {namespace} has {}, which is not of its pool {pool}",
                pod.pod,
                pod.address
            );
        }
        Ok(pods)
    }

    /// Every node sends to the others' blocks by this mode's link.
    fn check_routes(&self) -> anyhow::Result<()> {
        let nodes = machine::nodes()?;
        for node in &nodes {
            let routes = machine::on(
                node,
                &["ip", "route", "show", "proto", "78", "root", self.cidr],
            )?;
            let ours = routes.lines().filter(|route| !route.contains("blackhole"));
            let wanted = format!("dev {} ", self.link);
            let ways: Vec<&str> = ours.collect();
            ensure!(
                ways.len() + 1 == nodes.len() && ways.iter().all(|way| way.contains(&wanted)),
                "{node} sends to {} by {ways:?}",
                self.cidr
            );
        }
        Ok(())
    }
}

fn meet(cluster: &Cluster) -> anyhow::Result<()> {
    beside(cluster).try_for_each(Mode::declare)?;
    // A pod that comes before its pool is known gets an address of the pool for all.
    until(
        "all agents to know the pools",
        Duration::from_secs(60),
        || {
            for network in items(&get(&["nodenetworks"])?) {
                let at = |pointer: &str| network.pointer(pointer);
                let pools = at("/spec/pools").and_then(|pools| pools.as_array());
                let pools = pools.map_or(0, Vec::len);
                let conditions = at("/status/conditions").and_then(|list| list.as_array());
                let ready = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
                let told = at("/status/observedGeneration") == at("/metadata/generation");
                ensure!(
                    ready && told && pools == beside(cluster).count() + 1,
                    "not yet: {network}"
                );
            }
            Ok(())
        },
    )?;
    for mode in beside(cluster) {
        mode.create_pods(&cluster.image)?;
    }
    let mut pods = Vec::new();
    for mode in beside(cluster) {
        pods.extend(mode.pods()?);
    }
    for mode in beside(cluster) {
        until(
            "all nodes to send by the mode",
            Duration::from_secs(30),
            || mode.check_routes(),
        )?;
    }
    let everybody = Probes {
        pods: cluster.probes.pods.iter().chain(&pods).cloned().collect(),
        nodes: cluster.probes.nodes.clone(),
        host_port: cluster.probes.host_port.clone(),
    };
    let matrix = everybody.matrix(&[])?;
    println!("{matrix}");
    matrix.check()?;
    nobody_is_masqueraded(&everybody.pods)?;
    have_names_and_services(&pods)
}

fn nobody_is_masqueraded(pods: &[Probe]) -> anyhow::Result<()> {
    for from in pods {
        // One of each mode on another node.
        let elsewhere = pods.iter().filter(|to| to.node != from.node);
        let mut seen = std::collections::BTreeSet::new();
        for to in elsewhere.filter(|to| seen.insert(to.app.clone())) {
            let server = SocketAddr::new(to.address, 8080);
            for protocol in ["tcp", "udp"] {
                let said = from.ask(protocol, server, 1000)?;
                let what = format!("{} to {} by {protocol}", from.pod, to.pod);
                expect_peer(&said, from.address, &what)?;
            }
        }
    }
    Ok(())
}

fn have_names_and_services(pods: &[Probe]) -> anyhow::Result<()> {
    let service = get(&["service", "cluster-ip", "-n", "netweft-e2e"])?;
    let address = text(&service, "/spec/clusterIP")?;
    let server = SocketAddr::new(address.parse()?, 80);
    for pod in pods {
        let name = "cluster-ip.netweft-e2e.svc.cluster.local";
        let answer = pod.exec(&["nslookup", name])?;
        ensure!(
            answer.contains(address),
            "{name} is {answer} to {}",
            pod.pod
        );
        for _ in 0..4 {
            let seen = pod.ask("tcp", server, 0)?;
            expect_peer(&seen, pod.address, &format!("{} to the ClusterIP", pod.pod))?;
        }
    }
    Ok(())
}

fn take_away(cluster: &Cluster) -> anyhow::Result<()> {
    for mode in &MODES {
        let namespace = mode.namespace();
        kubectl(&[
            "delete",
            "namespace",
            &namespace,
            "--ignore-not-found",
            "--timeout=120s",
        ])?;
    }
    for kind in ["ippool", "networkmode"] {
        let mut words = vec!["delete", kind, "--ignore-not-found", "--timeout=60s"];
        words.extend(MODES.iter().map(|mode| mode.name));
        kubectl(&words)?;
    }
    // Nothing of theirs is left on any node.
    until(
        "the modes' links and routes to go",
        Duration::from_secs(30),
        || {
            for node in machine::nodes()? {
                let links = machine::on(&node, &["ip", "-o", "link", "show"])?;
                let routes = machine::on(&node, &["ip", "route", "show"])?;
                for mode in beside(cluster).filter(|mode| mode.link != "eth0") {
                    ensure!(!links.contains(mode.link), "{node} still has {}", mode.link);
                }
                ensure!(!routes.contains("10.246."), "{node} still has {routes}");
            }
            Ok(())
        },
    )
}
