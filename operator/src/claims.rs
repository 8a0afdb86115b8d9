//! What pods must not have because the cluster has it: addresses of nodes and of Services.
//!
//! A pool that covers one of them draws traffic that is not its own. It gets no new blocks; those it has given stay, for
//! they may carry traffic.

use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};

use crate::blocks::overlap;
use crate::pool::Pool;
use crate::view::stated;
use crate::words::list;
use crate::world::World;

/// Most nodes that a verdict names.
const NAMED: usize = 3;

/// The pool, if it is apart from nodes and Services.
///
/// # Errors
/// What it covers, and what to do.
pub fn apart(pool: Pool, world: &World<'_>) -> Result<Pool, Verdict> {
    let (nodes, services) = (nodes_in(&pool, world), services_in(&pool, world));
    let covered = match (nodes.as_slice(), services.as_slice()) {
        ([], []) => return Ok(pool),
        ([], services) => format!(
            "shares addresses with the Services' range {}",
            list(services, NAMED)
        ),
        (nodes, _) => format!("covers the address of {}", list(nodes, NAMED)),
    };
    Err(Verdict::stalled(
        Reason::Overlap,
        format!(
            "spec.cidr {} {covered}: no new blocks are assigned; create a pool with a range outside and delete this one",
            pool.cidr
        ),
    ))
}

fn nodes_in(pool: &Pool, world: &World<'_>) -> Vec<String> {
    let addresses = world.nodes.iter().flat_map(|node| {
        let addresses = stated(node, &["InternalIP", "ExternalIP"]);
        addresses.map(|address| (node.name_any(), address))
    });
    let mut covered: Vec<_> = addresses
        .filter(|(_, address)| pool.cidr.contains(address))
        .map(|(node, address)| format!("Node {node} ({address})"))
        .collect();
    covered.sort();
    covered.dedup();
    covered
}

fn services_in(pool: &Pool, world: &World<'_>) -> Vec<String> {
    let ranges = world.services.iter().flat_map(|object| {
        let cidrs = object
            .spec
            .iter()
            .flat_map(|spec| spec.cidrs.iter().flatten());
        cidrs.map(|cidr| (object.name_any(), cidr))
    });
    let overlapping = ranges.filter(|(_, cidr)| {
        let cidr: Option<IpNet> = cidr.parse().ok();
        cidr.is_some_and(|cidr| overlap(&cidr, &pool.cidr))
    });
    let mut covered: Vec<_> = overlapping
        .map(|(name, cidr)| format!("{cidr} (ServiceCIDR {name})"))
        .collect();
    covered.sort();
    covered
}
