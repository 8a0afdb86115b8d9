//! Ranges that another pod network most likely uses: `spec.podCIDRs` of Nodes.
//!
//! A podCIDR alone says little: the controller manager allocates one for each Node where kubeadm was given `--pod-network-cidr`, whether or
//! not anybody uses it. But a kubelet says that its Node is Ready only when the runtime has a pod network. So a Node that is Ready and has
//! no block of netweft's has another network, and its podCIDRs are taken for that network's.
//!
//! Besides, agents report routes and addresses of other networks inside the ranges of pools, and program nothing while these exist. A
//! report counts only as long as no node has programmed a block of the pool: no node can take a pool from the others.

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

/// Most Nodes that a verdict names.
const MAX_LISTED: usize = 3;

/// The pool, if no other network uses its range.
///
/// # Errors
/// Which Nodes' podCIDRs it overlaps, and what to do.
pub fn unused_by_others(
    pool: Pool,
    object: &IPPool,
    cluster_state: &ClusterState<'_>,
) -> Result<Pool, Verdict> {
    let reported = reported(&pool, cluster_state);
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
    // A pool that has given blocks has no other network below it, at the most some Nodes have.
    if cluster_state.ignore_pod_cidrs || has_blocks {
        return Ok(pool);
    }
    let served = served(cluster_state);
    // Of another pool a node may have got blocks meanwhile, and be no less the other network's.
    let refused = is_refused(object);
    let nodes = cluster_state.nodes.iter().copied();
    let nodes = nodes.filter(|node| refused || !served.contains(node.name_any().as_str()));
    let overlapping: Vec<(&Node, IpNet)> = nodes
        .filter(|node| cluster_state.agent_nodes.matches(node.labels()))
        .filter_map(|node| Some((node, pod_cidrs(node).find(|it| overlap(it, &pool.cidr))?)))
        .collect();
    let of_status = |status: &str| {
        let nodes = overlapping.iter();
        let nodes = nodes.filter(|(node, _)| ready(node) == Some(status));
        nodes.copied().collect::<Vec<_>>()
    };
    let mut others = of_status("True");
    // Kubelets that fell silent were Ready before, unless others say that they never were.
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

/// What agents report of other networks inside the pool's range, in words; nothing once a node has programmed a block of the pool.
fn reported(pool: &Pool, cluster_state: &ClusterState<'_>) -> Vec<String> {
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

/// podCIDRs of single Nodes that have another network, in a cluster whose other nodes are netweft's: no block of them is assigned.
pub fn occupied(cluster_state: &ClusterState<'_>) -> Vec<IpNet> {
    if cluster_state.ignore_pod_cidrs {
        return Vec::new();
    }
    let served = served(cluster_state);
    let nodes = cluster_state.nodes.iter().filter(|node| {
        ready(node).is_some_and(|status| status != "False")
            && cluster_state.agent_nodes.matches(node.labels())
            && !served.contains(node.name_any().as_str())
    });
    nodes.flat_map(|node| pod_cidrs(node)).collect()
}

/// Names of nodes that have a block.
fn served<'a>(cluster_state: &ClusterState<'a>) -> BTreeSet<&'a str> {
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

/// What the Node's condition Ready says.
fn ready(node: &Node) -> Option<&str> {
    let status = node.status.iter();
    let mut conditions = status.flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}
