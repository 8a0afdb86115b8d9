//! Ranges of the cluster that pools must not overlap: addresses of nodes and of Services.
//!
//! An overlapping pool attracts traffic that does not belong to it. The pool gets no new blocks. Assigned blocks stay,
//! because they may carry traffic. A single Node that reports an address inside a pool does not stall the pool: then
//! the address is unusable (`node_address`), and the block with the address is not assigned.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;
use netweft_crds::condition::{Reason, Verdict};

use crate::plan::ipam::blocks::overlap;
use crate::plan::message_lists::list;
use crate::plan::model::cluster_state::ClusterState;
use crate::plan::model::node::status_addresses;
use crate::plan::validate::ip_pool::Pool;

/// Maximum number of nodes in a message.
const MAX_LISTED: usize = 3;

/// Returns the pool if it overlaps neither nodes nor Services.
///
/// # Errors
/// The overlap and the remedy.
pub fn check_disjoint(pool: Pool, cluster_state: &ClusterState<'_>) -> Result<Pool, Verdict> {
    let (nodes, services) = (
        nodes_in(&pool, cluster_state),
        services_in(&pool, cluster_state),
    );
    let covered = match (nodes.as_slice(), services.as_slice()) {
        ([], []) => return Ok(pool),
        ([], services) => format!("overlaps the Service range {}", list(services, MAX_LISTED)),
        (nodes, _) => format!("contains the address of {}", list(nodes, MAX_LISTED)),
    };
    Err(Verdict::stalled(
        Reason::Overlap,
        format!(
            "spec.cidr {} {covered}: no new blocks are assigned; create a pool with a range outside and delete this one",
            pool.cidr
        ),
    ))
}

/// Types of node addresses.
pub const TYPES: &[&str] = &["InternalIP", "ExternalIP"];

/// All addresses in the status of Nodes.
pub fn addresses_of_nodes<'a>(
    cluster_state: &'a ClusterState<'_>,
) -> impl Iterator<Item = (&'a Node, IpAddr)> {
    let nodes = cluster_state.nodes.iter();
    nodes.flat_map(|node| status_addresses(node, TYPES).map(move |address| (*node, address)))
}

/// Ranges and names of the pools, except for pools that overlap the network of the nodes: those are themselves invalid.
pub fn ranges_of_pods<'a>(cluster_state: &'a ClusterState<'_>) -> Vec<(IpNet, &'a str)> {
    let pools = cluster_state.pools.iter();
    let ranges = pools.filter_map(|pool| Some((pool.spec.cidr, pool.metadata.name.as_deref()?)));
    ranges
        .filter(|(range, _)| {
            in_use(range, cluster_state).next().is_none() && !covers_most(range, cluster_state)
        })
        .collect()
}

/// Whether most Nodes with an address of the family have one inside `range`.
fn covers_most(range: &IpNet, cluster_state: &ClusterState<'_>) -> bool {
    let (mut inside, mut all) = (0_usize, 0_usize);
    for node in &cluster_state.nodes {
        let addresses = || status_addresses(node, TYPES);
        all += usize::from(addresses().any(|it| it.is_ipv4() == range.addr().is_ipv4()));
        inside += usize::from(addresses().any(|it| range.contains(&it)));
    }
    inside * 2 > all
}

/// NodeNetworks with addresses in use inside `range`.
fn in_use<'a>(
    range: &'a IpNet,
    cluster_state: &'a ClusterState<'_>,
) -> impl Iterator<Item = (&'a NodeNetwork, IpAddr)> {
    let addresses = cluster_state.networks.iter().flat_map(|network| {
        let addresses = network.spec.addresses.iter();
        addresses.map(move |address| (*network, address))
    });
    addresses.filter(|(_, address)| range.contains(address))
}

/// Nodes that make the pool invalid: those with addresses in use inside it, and all if the pool covers most Nodes.
fn nodes_in(pool: &Pool, cluster_state: &ClusterState<'_>) -> Vec<String> {
    let in_use = in_use(&pool.cidr, cluster_state);
    let mut covered: Vec<_> = in_use
        .map(|(network, address)| (network.name_any(), address))
        .collect();
    if covers_most(&pool.cidr, cluster_state) {
        let addresses =
            addresses_of_nodes(cluster_state).map(|(node, address)| (node.name_any(), address));
        covered.extend(addresses.filter(|(_, address)| pool.cidr.contains(address)));
    }
    let mut named: Vec<_> = covered
        .into_iter()
        .map(|(node, address)| format!("Node {node} ({address})"))
        .collect();
    named.sort();
    named.dedup();
    named
}

/// The ranges of Services, and a description of each.
pub fn ranges_of_services(cluster_state: &ClusterState<'_>) -> Vec<(IpNet, String)> {
    let ranges = cluster_state.services.iter().flat_map(|object| {
        let cidrs = object
            .spec
            .iter()
            .flat_map(|spec| spec.cidrs.iter().flatten());
        cidrs.map(|cidr| (object.name_any(), cidr))
    });
    let parsed = ranges.filter_map(|(name, cidr)| {
        let description = format!("{cidr} (ServiceCIDR {name})");
        Some((cidr.parse().ok()?, description))
    });
    parsed.collect()
}

fn services_in(pool: &Pool, cluster_state: &ClusterState<'_>) -> Vec<String> {
    let ranges = ranges_of_services(cluster_state).into_iter();
    let overlapping = ranges.filter(|(range, _)| overlap(range, &pool.cidr));
    let mut covered: Vec<String> = overlapping.map(|(_, description)| description).collect();
    covered.sort();
    covered
}
