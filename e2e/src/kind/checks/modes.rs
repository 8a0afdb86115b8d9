//! Modes side by side in one cluster, each for the pods of a namespace of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::services::cluster_ip;
use crate::kind::checks::traffic::{is_seen_as, server};
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::kind::probes::{Probe, Probes};

/// A mode, its pools, and by which link its routes to other nodes go.
struct Mode {
    name: &'static str,
    spec: &'static str,
    cidrs: &'static [&'static str],
    link: &'static str,
}

const MODES: [Mode; 4] = [
    Mode {
        name: "host-gw",
        spec: "{mode: host-gw}",
        cidrs: &["10.246.0.0/20", "fd00:10:246::/64"],
        link: "eth0",
    },
    Mode {
        name: "udp",
        spec: "{mode: overlay, overlay: {encapsulation: udp}}",
        cidrs: &["10.246.16.0/20", "fd00:10:246:1::/64"],
        link: "nw-udp8285",
    },
    Mode {
        name: "vxlan-2",
        spec: "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 2}}}",
        cidrs: &["10.246.32.0/20", "fd00:10:246:2::/64"],
        link: "nw-vx2",
    },
    Mode {
        name: "ipip",
        spec: "{mode: overlay, overlay: {encapsulation: ipip}}",
        cidrs: &["10.246.48.0/20"],
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
    let nodes = host::nodes();
    nodes.is_ok_and(|nodes| {
        let tried = nodes.first().map(|node| host::on(node, &words));
        tried.is_some_and(|tried| tried.is_ok())
    })
}

/// Pods of all modes ping each other, see each other at their own addresses, and have names and Services.
pub(crate) fn pods_of_all_modes_reach_each_other(cluster: &mut Cluster) -> anyhow::Result<()> {
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

    /// Its pools of the families that the cluster's pods have: name and range.
    fn pools(&self, cluster: &Cluster) -> Vec<(String, IpNet)> {
        let families = cluster.probes.by_family();
        let has = |pool: &IpNet| {
            let mut pods = families.iter().flat_map(|probes| probes.pods.first());
            pods.any(|pod| pod.address.is_ipv4() == pool.addr().is_ipv4())
        };
        let ranges = self.cidrs.iter().filter_map(|cidr| cidr.parse().ok());
        let named = ranges.filter(has).map(|pool: IpNet| {
            let family = if pool.addr().is_ipv4() { "" } else { "-v6" };
            (format!("{}{family}", self.name), pool)
        });
        named.collect()
    }

    fn declare(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let Self { name, spec, .. } = self;
        apply(&format!(
            "
apiVersion: netweft.io/v1alpha1
kind: NetworkMode
metadata: {{name: {name}}}
spec: {spec}
"
        ))?;
        for (pool, cidr) in self.pools(cluster) {
            apply(&format!(
                "
apiVersion: netweft.io/v1alpha1
kind: IPPool
metadata: {{name: {pool}}}
spec:
  cidr: {cidr}
  networkMode: {name}
  natOutgoing: true
  namespaceSelector: {{matchLabels: {{netweft-e2e/mode: {name}}}}}
"
            ))?;
        }
        Ok(())
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
    fn pods(&self, cluster: &Cluster) -> anyhow::Result<Vec<Probe>> {
        let (namespace, set) = (self.namespace(), format!("daemonset/{}", self.set()));
        rollout_status(&namespace, &set, "120s").with_context(|| {
            kubectl(&["get", "pods,nodenetworks", "-A", "-o", "wide"]).unwrap_or_default()
        })?;
        let pods = Probes::in_namespace(&namespace)?;
        for (pod, (_, pool)) in pods
            .iter()
            .flat_map(|pod| self.pools(cluster).into_iter().map(move |pool| (pod, pool)))
        {
            ensure!(
                pod.addresses.iter().any(|address| pool.contains(address)),
                "pod {} of namespace {namespace} has {:?}, none of which is of its pool {pool}",
                pod.pod,
                pod.addresses
            );
        }
        Ok(pods)
    }

    /// Every node sends to the others' blocks by this mode's link.
    fn check_routes(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let nodes = host::nodes()?;
        for node in &nodes {
            for (_, pool) in self.pools(cluster) {
                let family = if pool.addr().is_ipv4() { "-4" } else { "-6" };
                let range = pool.to_string();
                let words = ["ip", family, "route", "show", "proto", "78", "root", &range];
                let routes = host::on(node, &words)?;
                let ours = routes.lines().filter(|route| !route.contains("blackhole"));
                let wanted = format!("dev {} ", self.link);
                let ways: Vec<&str> = ours.collect();
                ensure!(
                    ways.len() + 1 == nodes.len() && ways.iter().all(|way| way.contains(&wanted)),
                    "{node} sends to {pool} by {ways:?}"
                );
            }
        }
        Ok(())
    }
}

fn meet(cluster: &Cluster) -> anyhow::Result<()> {
    beside(cluster).try_for_each(|mode| mode.declare(cluster))?;
    let own = cluster.probes.by_family().len();
    let declared: usize = beside(cluster).map(|mode| mode.pools(cluster).len()).sum();
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
                let acknowledged = at("/status/observedGeneration") == at("/metadata/generation");
                ensure!(
                    ready && acknowledged && pools == declared + own,
                    "not yet: {network}"
                );
            }
            Ok(())
        },
    )?;
    let subnets = get(&["nodesubnets"])?;
    for subnet in items(&subnets) {
        let pool = text(subnet, "/spec/pool")?;
        let is_default = pool.starts_with("default-");
        ensure!(is_default, "no pod needs {subnet}");
    }
    for mode in beside(cluster) {
        mode.create_pods(&cluster.image)?;
    }
    let mut pods = Vec::new();
    for mode in beside(cluster) {
        pods.extend(mode.pods(cluster)?);
    }
    for mode in beside(cluster) {
        until(
            "all nodes to send by the mode",
            Duration::from_secs(30),
            || mode.check_routes(cluster),
        )?;
    }
    let all = Probes {
        pods: cluster.probes.pods.iter().chain(&pods).cloned().collect(),
        nodes: cluster.probes.nodes.clone(),
        host_port: cluster.probes.host_port.clone(),
    };
    for probes in all.by_family() {
        let matrix = probes.matrix(&[])?;
        println!("{matrix}");
        matrix.check()?;
        no_pod_is_masqueraded(&probes.pods)?;
    }
    have_names_and_services(&pods)
}

fn no_pod_is_masqueraded(pods: &[Probe]) -> anyhow::Result<()> {
    for from in pods {
        // One of each mode on another node.
        let elsewhere = pods.iter().filter(|to| to.node != from.node);
        let mut modes = std::collections::BTreeSet::new();
        let each = elsewhere.filter(|to| modes.insert(to.app.clone()));
        let servers: Vec<SocketAddr> = each.map(server).collect();
        is_seen_as(from.address, from, &servers, 1000)?;
    }
    Ok(())
}

fn have_names_and_services(pods: &[Probe]) -> anyhow::Result<()> {
    for pod in pods {
        let service = SocketAddr::new(cluster_ip(pod.address)?, 80);
        let address = service.ip().to_string();
        let name = "cluster-ip.netweft-e2e.svc.cluster.local";
        let answer = pod.exec(&["nslookup", name])?;
        ensure!(
            answer.contains(&address),
            "{name} is {answer} to {}",
            pod.pod
        );
        is_seen_as(pod.address, pod, &[service; 4], 0)?;
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
        let names: Vec<String> = MODES
            .iter()
            .flat_map(|mode| [mode.name.to_owned(), format!("{}-v6", mode.name)])
            .collect();
        words.extend(names.iter().map(String::as_str));
        kubectl(&words)?;
    }
    // Nothing of theirs is left on any node.
    until(
        "the modes' links and routes to go",
        Duration::from_secs(30),
        || {
            for node in host::nodes()? {
                let links = host::on(&node, &["ip", "-o", "link", "show"])?;
                let routes =
                    ["-4", "-6"].map(|family| host::on(&node, &["ip", family, "route", "show"]));
                let [v4, v6] = routes;
                let routes = v4? + &v6?;
                for mode in beside(cluster).filter(|mode| mode.link != "eth0") {
                    ensure!(!links.contains(mode.link), "{node} still has {}", mode.link);
                }
                let ours = ["10.246.", "fd00:10:246:"].map(|begin| routes.contains(begin));
                ensure!(ours == [false, false], "{node} still has {routes}");
            }
            Ok(())
        },
    )
}
