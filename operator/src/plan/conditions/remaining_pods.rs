//! Pods that still have addresses of an IPPool that is disabled or being deleted. The user moves them before the pool can go.
//!
//! ```text
//!   agents: pods by name (NodeNetwork.status.drainingPods) ─┐
//!   API server: the owner of each pod                      ─┴─▶ IPPool.status.remainingPods: node, namespace, owner, count
//! ```
//!
//! The operator does not watch pods for this: a cluster can have a hundred thousand of them, and most pools are never drained.

use crate::plan::model::cluster_state::{PodKey, PodOwners};
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use netweft_crds::{DrainingPod, IPPool, NodeNetwork, RemainingPods};

/// Maximum number of entries in a status.
const MAX_GROUPS: usize = 64;

/// Whether the pool must become free of pods.
#[must_use]
pub fn is_draining(pool: &IPPool) -> bool {
    pool.spec.disabled || pool.metadata.deletion_timestamp.is_some()
}

/// The pods of all nodes that keep pools from being drained.
pub fn pods<'a>(
    networks: impl IntoIterator<Item = &'a NodeNetwork>,
) -> impl Iterator<Item = &'a DrainingPod> {
    let statuses = networks
        .into_iter()
        .filter_map(|network| network.status.as_ref());
    statuses.flat_map(|status| &status.draining_pods)
}

/// Groups of pods that still have addresses of `pool`.
#[must_use]
pub fn remaining<'a>(
    pool: &IPPool,
    networks: impl IntoIterator<Item = &'a NodeNetwork>,
    owners: &PodOwners,
) -> Vec<RemainingPods> {
    if !is_draining(pool) {
        return Vec::new();
    }
    let name = pool.name_any();
    let mut counts: BTreeMap<(String, &str, Option<&String>), i64> = BTreeMap::new();
    for network in networks {
        for pod in pods([network]).filter(|pod| pod.pool == name) {
            let owner = owners.get(&pod_key(pod));
            let group = (network.name_any(), pod.namespace.as_str(), owner);
            *counts.entry(group).or_default() += 1;
        }
    }
    let groups = counts.into_iter().take(MAX_GROUPS);
    groups
        .map(|((node, namespace, owner), count)| RemainingPods {
            node,
            namespace: namespace.to_owned(),
            owner: owner.cloned(),
            count,
        })
        .collect()
}

/// Namespace and name of a pod.
#[must_use]
pub fn pod_key(pod: &DrainingPod) -> PodKey {
    (pod.namespace.clone(), pod.name.clone())
}

/// Kind and name of the controller of the pod with this metadata, or of the pod itself if it has no controller. The
/// name of a ReplicaSet is the name of its Deployment with a hash, which is also a label of the pod.
#[must_use]
pub fn owner_of(pod: &ObjectMeta) -> String {
    let owners = pod.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    let Some(owner) = controllers.next() else {
        return format!("Pod/{}", pod.name.as_deref().unwrap_or_default());
    };
    let labels = pod.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(&format!("-{hash}")));
    match deployment {
        Some(name) if owner.kind == "ReplicaSet" => format!("Deployment/{name}"),
        _ => format!("{}/{}", owner.kind, owner.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn owner(metadata: &str) -> String {
        owner_of(&yaml::<ObjectMeta>(metadata))
    }

    #[test]
    fn pod_owner_is_controller_or_its_deployment() {
        assert_eq!(owner("{name: alone}"), "Pod/alone");
        let by = |kind: &str, name: &str| {
            format!(
                "{{name: p, labels: {{pod-template-hash: 5d4f}}, ownerReferences: [{{apiVersion: v1, kind: Other, name: o, uid: u}}, {{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]}}"
            )
        };
        assert_eq!(owner(&by("StatefulSet", "db")), "StatefulSet/db");
        assert_eq!(owner(&by("ReplicaSet", "web-5d4f")), "Deployment/web");
        assert_eq!(owner(&by("ReplicaSet", "bare")), "ReplicaSet/bare");
        assert_eq!(owner(&by("Rollout", "web-5d4f")), "Rollout/web-5d4f");
    }
}
