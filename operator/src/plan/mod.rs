//! `plan`: from a complete picture of the cluster to everything that has to be written.
//!
//! ```text
//!   World ─▶ View (validate: pools, modes) ─▶ subnets (assign), bgp, change ─▶ networks ─▶ statuses
//!                                                                         └─────▶ Plan
//! ```
//!
//! Pure, total and deterministic: the order of objects in the world does not matter, and a plan that has been carried
//! out leads to a plan that is empty.

pub mod bgp;
pub mod ipam;
pub mod model;
pub mod node_networks;
#[cfg(test)]
mod reasons;
pub mod rollout;
#[cfg(test)]
mod scale;
pub mod status;
#[cfg(test)]
mod tests;
pub mod text;
pub mod validate;

use std::collections::BTreeSet;

use kube::ResourceExt;
use netweft_crds::IPPool;
use netweft_crds::names::POOL_FINALIZER;

use crate::plan::ipam::node_subnets;
use crate::plan::model::cluster_state::{FinalizerChange, Plan, World};
use crate::plan::model::index::View;
use crate::plan::status::network_unavailable;

/// Every difference between the world and what it should be.
#[must_use]
pub fn plan(world: &World<'_>) -> Plan {
    let view = View::new(world);
    let (subnets, assignment) = node_subnets::plan_subnets(&view);
    let peers = bgp::peers(&view);
    let fabric = bgp::resolve(&view, &peers);
    let speaking = fabric.as_ref().ok();
    let ways = rollout::ways(&view);
    let networks = node_networks::plan_networks(&view, &ways, speaking, &subnets.create);
    let assigned = node_networks::plan_assigned(&view, &assignment, &networks);
    let created = subnets.create.iter().map(|subnet| &subnet.spec.pool);
    let in_use: BTreeSet<&String> = world
        .subnets
        .iter()
        .map(|subnet| &subnet.spec.pool)
        .chain(created)
        .collect();
    Plan {
        finalizers: view
            .pool_objects
            .values()
            .filter_map(|pool| finalizers(pool, &in_use))
            .collect(),
        pool_statuses: status::plan_pools(&view, &assignment),
        mode_statuses: status::plan_modes(&view, &ways, speaking),
        peer_statuses: bgp::peer_status::plan_peers(&view, &peers, fabric.as_ref()),
        passwords: bgp::passwords::plan(world, &peers),
        network_up: network_unavailable::plan(&view),
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
