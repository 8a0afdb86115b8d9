//! `plan`: from a complete picture of the cluster to everything that has to be written.
//!
//! ```text
//!   ClusterState ─▶ ClusterIndex (validate: pools, modes) ─▶ subnets (assign), bgp, change ─▶ networks ─▶ statuses
//!                                                                         └─────▶ Plan
//! ```
//!
//! Pure, total and deterministic: the order of objects in the cluster does not matter, and a plan that has been carried
//! out leads to a plan that is empty.

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

/// Every difference between the cluster and what it should be.
#[must_use]
pub fn plan(cluster_state: &ClusterState<'_>) -> Plan {
    let index = ClusterIndex::new(cluster_state);
    let (subnets, assignment) = node_subnets::plan_subnets(&index);
    let peers = bgp::peers(&index);
    let topology = bgp::resolve(&index, &peers);
    let speaking = topology.as_ref().ok();
    let ways = rollout::rollouts(&index);
    let networks = node_networks::plan_networks(&index, &ways, speaking, &subnets.create);
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
        pool_statuses: conditions::plan_pools(&index, &assignment),
        mode_statuses: conditions::plan_modes(&index, &ways, speaking),
        peer_statuses: conditions::bgp_peer::plan_peers(&index, &peers, topology.as_ref()),
        passwords: bgp::passwords::plan(cluster_state, &peers),
        network_up: network_unavailable::plan(&index),
        assigned,
        subnets,
        networks,
    }
}

/// A pool has our finalizer from its first block on, and loses it when it is being deleted and its last is gone.
fn finalizers(pool: &IPPool, in_use: &BTreeSet<&String>) -> Option<FinalizerChange> {
    let name = pool.name_any();
    let mut finalizers = pool.finalizers().to_vec();
    let ours = finalizers
        .iter()
        .position(|finalizer| finalizer == POOL_FINALIZER);
    let deleting = pool.metadata.deletion_timestamp.is_some();
    match (ours, in_use.contains(&name)) {
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
