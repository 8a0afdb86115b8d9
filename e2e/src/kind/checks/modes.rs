//! Several NetworkModes in one cluster. Each mode has pools for the pods of one namespace.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::services::{SERVICE_NAME, cluster_ip};
use crate::kind::checks::traffic::{check_source_address, server};
use crate::kind::host;
use crate::kind::kubectl::{apply, get, items, kubectl, rollout_status, text};
use crate::kind::probes::{Probe, Probes};

/// A NetworkMode, the ranges of its pools, and the output link of its routes to other nodes.
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

/// The modes that can be used together with the default mode of the cluster: two modes cannot share a UDP port or ipip. Without
/// ipip in the kernel, the ipip mode is excluded.
fn additional_modes(cluster: &Cluster) -> impl Iterator<Item = &'static Mode> {
    let default_mode = cluster.mode.to_string();
    let ipip = has_ipip();
    MODES
        .iter()
        .filter(move |mode| !default_mode.starts_with(mode.name) && (ipip || mode.name != "ipip"))
}

/// Whether the kernel of the nodes can create an ipip link. If not, the check `other_kernel` tests ipip on nodes with another kernel.
fn has_ipip() -> bool {
    let link_add = "--net ip link add name try type ipip local 192.0.2.1 remote 192.0.2.2";
    let mut words = vec!["unshare"];
    words.extend(link_add.split(' '));
    let nodes = host::nodes();
    nodes.is_ok_and(|nodes| {
        let created = nodes.first().map(|node| host::on(node, &words));
        created.is_some_and(|created| created.is_ok())
    })
}

/// Pods of all modes ping each other without masquerading, resolve names, and reach Services.
pub(crate) fn pods_of_all_modes_reach_each_other(cluster: &mut Cluster) -> anyhow::Result<()> {
    let outcome = check_modes(cluster);
    let deleted = delete_modes(cluster);
    outcome?;
    deleted
}

impl Mode {
    fn namespace(&self) -> String {
        format!("netweft-e2e-{}", self.name)
    }

    fn set(&self) -> String {
        format!("probe-{}", self.name)
    }

    /// Name and range of the pools whose family the pods of the cluster have.
    fn pools(&self, cluster: &Cluster) -> Vec<(String, IpNet)> {
        let families = cluster.probes.by_family();
        let has_family = |pool: &IpNet| {
            let mut pods = families.iter().flat_map(|probes| probes.pods.first());
            pods.any(|pod| pod.address.is_ipv4() == pool.addr().is_ipv4())
        };
        let ranges = self.cidrs.iter().filter_map(|cidr| cidr.parse().ok());
        let pools = ranges.filter(has_family).map(|pool: IpNet| {
            let suffix = if pool.addr().is_ipv4() { "" } else { "-v6" };
            (format!("{}{suffix}", self.name), pool)
        });
        pools.collect()
    }

    /// Apply the NetworkMode and its pools.
    fn apply(&self, cluster: &Cluster) -> anyhow::Result<()> {
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

    /// Create the namespace, and a pod on every node.
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

    /// The pods of the mode, after they have become ready.
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
                "pod {} of namespace {namespace} has the addresses {:?}, none of them from the pool {pool}",
                pod.pod,
                pod.addresses
            );
        }
        Ok(pods)
    }

    /// The routes to the blocks of all other nodes use the link of this mode.
    fn check_routes(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let nodes = host::nodes()?;
        for node in &nodes {
            for (_, pool) in self.pools(cluster) {
                let family = if pool.addr().is_ipv4() { "-4" } else { "-6" };
                let range = pool.to_string();
                let words = ["ip", family, "route", "show", "proto", "78", "root", &range];
                let routes = host::on(node, &words)?;
                let routes = routes.lines().filter(|route| !route.contains("blackhole"));
                let device = format!("dev {} ", self.link);
                let routes: Vec<&str> = routes.collect();
                ensure!(
                    routes.len() + 1 == nodes.len()
                        && routes.iter().all(|route| route.contains(&device)),
                    "the routes of {node} to {pool} do not all use {}: {routes:?}",
                    self.link
                );
            }
        }
        Ok(())
    }
}

fn check_modes(cluster: &Cluster) -> anyhow::Result<()> {
    additional_modes(cluster).try_for_each(|mode| mode.apply(cluster))?;
    let default_pools = cluster.probes.by_family().len();
    let pools = additional_modes(cluster).map(|mode| mode.pools(cluster).len());
    let pool_count = default_pools + pools.sum::<usize>();
    // A pod that starts before the agents have its pool gets an address of the default pool.
    until(
        "all agents to acknowledge the pools",
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
                    ready && acknowledged && pools == pool_count,
                    "a NodeNetwork is not Ready with {pool_count} pools: {network}"
                );
            }
            Ok(())
        },
    )?;
    let subnets = get(&["nodesubnets"])?;
    for subnet in items(&subnets) {
        let pool = text(subnet, "/spec/pool")?;
        let is_default = pool.starts_with("default-");
        ensure!(is_default, "a pool without pods has a NodeSubnet: {subnet}");
    }
    for mode in additional_modes(cluster) {
        mode.create_pods(&cluster.image)?;
    }
    let mut pods = Vec::new();
    for mode in additional_modes(cluster) {
        pods.extend(mode.pods(cluster)?);
    }
    for mode in additional_modes(cluster) {
        until(
            "the routes of the mode on all nodes",
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
        check_no_masquerading(&probes.pods)?;
    }
    check_names_and_services(&pods)
}

/// Each pod is seen with its own address by one pod of each mode on another node.
fn check_no_masquerading(pods: &[Probe]) -> anyhow::Result<()> {
    for from in pods {
        let remote = pods.iter().filter(|to| to.node != from.node);
        let mut modes = std::collections::BTreeSet::new();
        let one_per_mode = remote.filter(|to| modes.insert(to.app.clone()));
        let servers: Vec<SocketAddr> = one_per_mode.map(server).collect();
        check_source_address(from.address, from, &servers, 1000)?;
    }
    Ok(())
}

/// Each pod resolves the name of a Service, and reaches the Service.
fn check_names_and_services(pods: &[Probe]) -> anyhow::Result<()> {
    for pod in pods {
        let service = SocketAddr::new(cluster_ip(pod.address)?, 80);
        let address = service.ip().to_string();
        let answer = pod.exec(&["nslookup", SERVICE_NAME])?;
        ensure!(
            answer.contains(&address),
            "{SERVICE_NAME} does not resolve to {address} in {}: {answer}",
            pod.pod
        );
        check_source_address(pod.address, pod, &[service; 4], 0)?;
    }
    Ok(())
}

/// Delete the objects of all modes, and wait until no node has their links and routes.
fn delete_modes(cluster: &Cluster) -> anyhow::Result<()> {
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
    until(
        "the removal of the links and routes of the modes",
        Duration::from_secs(30),
        || {
            for node in host::nodes()? {
                let links = host::on(&node, &["ip", "-o", "link", "show"])?;
                let routes =
                    ["-4", "-6"].map(|family| host::on(&node, &["ip", family, "route", "show"]));
                let [v4, v6] = routes;
                let routes = v4? + &v6?;
                for mode in additional_modes(cluster).filter(|mode| mode.link != "eth0") {
                    ensure!(!links.contains(mode.link), "{node} still has {}", mode.link);
                }
                let has_route = ["10.246.", "fd00:10:246:"].map(|prefix| routes.contains(prefix));
                ensure!(
                    has_route == [false, false],
                    "{node} still has routes of the modes: {routes}"
                );
            }
            Ok(())
        },
    )
}
