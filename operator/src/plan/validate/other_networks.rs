//! Ranges that another pod network probably uses: `spec.podCIDRs` of Nodes, and ranges that agents report.
//!
//! A podCIDR alone is no proof: with `--pod-network-cidr` of kubeadm the controller manager allocates one for each
//! Node, used or not. But a kubelet reports its Node as Ready only when the runtime has a pod network. So a Ready Node
//! without a block of netweft has another network, which uses its podCIDRs.
//!
//! Agents report routes and addresses of other networks inside the CIDRs of pools, and program nothing while these
//! exist. A report counts only while no node has programmed a block of the pool, so a single node cannot stall a pool
//! in use.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::core::SelectorExt;
use netweft_crds::IPPool;
use netweft_crds::condition::{READY, Reason, Verdict};

use crate::plan::ipam::blocks::overlap;
use crate::plan::message_lists::list;
use crate::plan::model::cluster_state::ClusterState;
use crate::plan::validate::ip_pool::Pool;

/// Maximum number of Nodes in a message.
const MAX_LISTED: usize = 3;

/// Returns the pool if no other network uses its range.
///
/// # Errors
/// The overlap and the remedy.
pub fn check_unused(
    pool: Pool,
    object: &IPPool,
    cluster_state: &ClusterState<'_>,
) -> Result<Pool, Verdict> {
    let reported = reported_ranges(&pool, cluster_state);
    if !reported.is_empty() {
        return Err(Verdict::stalled(
            Reason::Overlap,
            format!(
                "spec.cidr {} shares addresses with another pod network: {}: no new blocks are assigned; create a pool with a range outside and \
                 delete this one, or set agent.ignoreOtherNetworks to true in the chart's values if no pod uses these addresses",
                pool.cidr,
                list(&reported, MAX_LISTED)
            ),
        ));
    }
    let has_blocks = cluster_state
        .subnets
        .iter()
        .any(|it| it.spec.pool == pool.name);
    // A pool with blocks does not overlap another network of the whole cluster, at most of some Nodes.
    if cluster_state.ignore_pod_cidrs || has_blocks {
        return Ok(pool);
    }
    let nodes_with_blocks = nodes_with_blocks(cluster_state);
    // A node may have got a block of another pool since the refusal. The other network still uses the range.
    let refused = is_refused(object);
    let nodes = cluster_state.nodes.iter().copied();
    let nodes =
        nodes.filter(|node| refused || !nodes_with_blocks.contains(node.name_any().as_str()));
    let overlapping: Vec<(&Node, IpNet)> = nodes
        .filter(|node| cluster_state.agent_nodes.matches(node.labels()))
        .filter_map(|node| Some((node, pod_cidrs(node).find(|it| overlap(it, &pool.cidr))?)))
        .collect();
    let of_status = |status: &str| {
        let nodes = overlapping.iter();
        let nodes = nodes.filter(|(node, _)| ready_status(node) == Some(status));
        nodes.copied().collect::<Vec<_>>()
    };
    let mut others = of_status("True");
    // Nodes with an unknown state were Ready before, unless other Nodes report that they never were.
    if others.is_empty() && of_status("False").is_empty() {
        others = of_status("Unknown");
    }
    if others.is_empty() {
        return Ok(pool);
    }
    let mut named: Vec<String> = others
        .into_iter()
        .map(|(node, cidr)| format!("Node {} ({cidr})", node.name_any()))
        .collect();
    named.sort();
    Err(Verdict::stalled(
        Reason::Overlap,
        format!(
            "spec.cidr {} shares addresses with spec.podCIDRs of {}, which had a pod network before netweft: no new blocks are assigned; \
             create a pool with a range outside and delete this one, or set operator.ignoreNodePodCIDRs to true in the chart's values if no \
             other network uses these addresses",
            pool.cidr,
            list(&named, MAX_LISTED)
        ),
    ))
}

/// Ranges of other networks inside the pool, as agents report them; empty if a node has programmed a block of the pool.
fn reported_ranges(pool: &Pool, cluster_state: &ClusterState<'_>) -> Vec<String> {
    let statuses = || {
        let networks = cluster_state.networks.iter();
        networks.filter_map(|network| Some((network.name_any(), network.status.as_ref()?)))
    };
    let programmed = statuses().any(|(_, status)| {
        let mut blocks = status.subnets.iter();
        blocks.any(|block| pool.cidr.contains(&block.cidr))
    });
    if programmed {
        return Vec::new();
    }
    let mut found: Vec<String> = statuses()
        .filter_map(|(node, status)| {
            let mut others = status.other_networks.iter();
            let other = others.find(|it| pool.cidr.contains(&it.cidr))?;
            let link = other.interface.as_ref();
            let link = link.map_or_else(String::new, |link| format!(" on link {link}"));
            Some(format!("{}{link} of Node {node}", other.cidr))
        })
        .collect();
    found.sort();
    found
}

/// podCIDRs of single Nodes with another network, in a cluster of netweft. Blocks in them are not assigned.
pub fn occupied(cluster_state: &ClusterState<'_>) -> Vec<IpNet> {
    if cluster_state.ignore_pod_cidrs {
        return Vec::new();
    }
    let nodes_with_blocks = nodes_with_blocks(cluster_state);
    let nodes = cluster_state.nodes.iter().filter(|node| {
        ready_status(node).is_some_and(|status| status != "False")
            && cluster_state.agent_nodes.matches(node.labels())
            && !nodes_with_blocks.contains(node.name_any().as_str())
    });
    nodes.flat_map(|node| pod_cidrs(node)).collect()
}

/// Names of nodes that have a block.
fn nodes_with_blocks<'a>(cluster_state: &ClusterState<'a>) -> BTreeSet<&'a str> {
    let subnets = cluster_state.subnets.iter().copied();
    subnets.map(|it| it.spec.node.as_str()).collect()
}

fn is_refused(object: &IPPool) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|it| it.type_ == READY);
    ready.any(|it| it.status == "False" && it.reason == Reason::Overlap.as_str())
}

fn pod_cidrs(node: &Node) -> impl Iterator<Item = IpNet> + '_ {
    let spec = node.spec.iter();
    let cidrs = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    cidrs.filter_map(|cidr| cidr.parse().ok())
}

/// Status of the Node's condition Ready.
fn ready_status(node: &Node) -> Option<&str> {
    let status = node.status.iter();
    let mut conditions = status.flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}
