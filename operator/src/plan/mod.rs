//! [`plan()`]: from the cluster state to all writes that are due.
//!
//! ```text
//!   ClusterState ─▶ ClusterIndex (validate) ─▶ ipam, bgp, rollout ─▶ node_networks ─▶ conditions ─▶ Plan
//! ```
//!
//! Pure, total and deterministic: the order of objects does not matter, and the plan after an applied plan is empty.

pub mod bgp;
#[cfg(test)]
mod condition_texts;
pub mod conditions;
pub mod ipam;
pub mod message_lists;
pub mod model;
pub mod node_networks;
#[cfg(test)]
mod plan_cost;
pub mod rollout;
#[cfg(test)]
mod tests;
pub mod validate;

use std::collections::BTreeSet;

use kube::ResourceExt;
use netweft_crds::IPPool;
use netweft_crds::names::POOL_FINALIZER;

use crate::plan::conditions::network_unavailable;
use crate::plan::ipam::node_subnets;
use crate::plan::model::cluster_state::{ClusterState, FinalizerChange, Plan};
use crate::plan::model::index::ClusterIndex;

/// Computes all differences between the cluster state and the desired objects.
#[must_use]
pub fn plan(cluster_state: &ClusterState<'_>) -> Plan {
    let index = ClusterIndex::new(cluster_state);
    let (subnets, assignment) = node_subnets::plan_subnets(&index);
    let peers = bgp::peers(&index);
    let topology = bgp::resolve(&index, &peers);
    let bgp_topology = topology.as_ref().ok();
    let rollouts = rollout::rollouts(&index);
    let networks = node_networks::plan_networks(&index, &rollouts, bgp_topology, &subnets.create);
    let assigned = node_networks::plan_assigned(&index, &assignment, &networks);
    let created = subnets.create.iter().map(|subnet| &subnet.spec.pool);
    let in_use: BTreeSet<&String> = cluster_state
        .subnets
        .iter()
        .map(|subnet| &subnet.spec.pool)
        .chain(created)
        .collect();
    Plan {
        finalizers: index
            .pool_objects
            .values()
            .filter_map(|pool| finalizers(pool, &in_use))
            .collect(),
        pool_statuses: conditions::ip_pool::plan_pools(&index, &assignment),
        mode_statuses: conditions::network_mode::plan_modes(&index, &rollouts, bgp_topology),
        peer_statuses: conditions::bgp_peer::plan_peers(&index, &peers, topology.as_ref()),
        passwords: bgp::passwords::plan(cluster_state, &peers),
        network_up: network_unavailable::plan(&index),
        assigned,
        subnets,
        networks,
    }
}

/// A pool gets netweft's finalizer with its first block. The finalizer is removed when the pool is being deleted and
/// has no block.
fn finalizers(pool: &IPPool, in_use: &BTreeSet<&String>) -> Option<FinalizerChange> {
    let name = pool.name_any();
    let mut finalizers = pool.finalizers().to_vec();
    let own = finalizers
        .iter()
        .position(|finalizer| finalizer == POOL_FINALIZER);
    let deleting = pool.metadata.deletion_timestamp.is_some();
    match (own, in_use.contains(&name)) {
        // The API server refuses new finalizers on an object that is being deleted.
        (None, true) if !deleting => finalizers.push(POOL_FINALIZER.to_owned()),
        (Some(position), false) if deleting => {
            finalizers.remove(position);
        }
        (Some(_) | None, _) => return None,
    }
    Some(FinalizerChange {
        name,
        uid: pool.uid(),
        resource_version: pool.resource_version(),
        finalizers,
    })
}
