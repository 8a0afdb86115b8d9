//! Applies plans to a cluster in memory.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{Resource, ResourceExt};

use crate::plan::model::cluster_state::{Changes, Plan, StatusChange};
use crate::testing::{Cluster, at};

impl Cluster {
    /// Applies a plan.
    pub fn apply(&mut self, plan: &Plan) {
        for change in &plan.finalizers {
            let pool = self
                .pools
                .iter_mut()
                .find(|pool| pool.name_any() == change.name)
                .unwrap();
            pool.metadata.finalizers = Some(change.finalizers.clone());
        }
        self.pools.retain(|pool| {
            pool.metadata.deletion_timestamp.is_none() || !pool.finalizers().is_empty()
        });
        if let Some(change) = &plan.passwords {
            self.apply_passwords(change);
        }
        let (clock, versions) = (self.clock, &mut self.versions);
        apply_changes(
            &mut self.subnets,
            &plan.subnets,
            clock,
            versions,
            |old, new| old.spec != new.spec,
        );
        apply_changes(
            &mut self.networks,
            &plan.networks,
            clock,
            versions,
            |old, new| old.spec != new.spec,
        );
        apply_statuses(&mut self.pools, &plan.pool_statuses, |pool, status| {
            pool.status = Some(status);
        });
        apply_statuses(&mut self.modes, &plan.mode_statuses, |mode, status| {
            mode.status = Some(status);
        });
        apply_statuses(&mut self.peers, &plan.peer_statuses, |peer, status| {
            peer.status = Some(status);
        });
        apply_statuses(
            &mut self.networks,
            &plan.assigned,
            |network, condition: Condition| {
                let conditions = &mut network.status.get_or_insert_default().conditions;
                conditions.retain(|old| old.type_ != condition.type_);
                conditions.push(condition);
            },
        );
    }
}

/// Applies creations, updates and deletions. Fails like the API server for conflicts.
fn apply_changes<K: Resource<DynamicType = ()> + Clone>(
    objects: &mut Vec<K>,
    changes: &Changes<K>,
    clock: i64,
    versions: &mut u64,
    spec_differs: fn(&K, &K) -> bool,
) {
    for new in &changes.create {
        assert!(
            objects.iter().all(|old| old.name_any() != new.name_any()),
            "409 {}",
            new.name_any()
        );
        *versions += 1;
        let mut new = at(clock, new.clone());
        let ObjectMeta {
            uid,
            resource_version,
            generation,
            ..
        } = new.meta_mut();
        (*uid, *resource_version, *generation) = (
            Some(format!("uid-{versions}")),
            Some(versions.to_string()),
            Some(1),
        );
        objects.push(new);
    }
    for new in &changes.update {
        let old = objects
            .iter_mut()
            .find(|old| old.uid() == new.uid())
            .expect("updated object exists");
        assert_eq!(old.resource_version(), new.resource_version(), "409");
        *versions += 1;
        let generation = old
            .meta()
            .generation
            .map(|g| g + i64::from(spec_differs(old, new)));
        *old = new.clone();
        old.meta_mut().generation = generation;
        old.meta_mut().resource_version = Some(versions.to_string());
    }
    for deleted in &changes.delete {
        assert!(
            objects.iter().any(|old| old.meta() == deleted.meta()),
            "409"
        );
        objects.retain(|old| old.uid() != deleted.uid());
    }
}

fn apply_statuses<K: Resource<DynamicType = ()>, S: Clone>(
    objects: &mut [K],
    changes: &[StatusChange<S>],
    set: fn(&mut K, S),
) {
    for change in changes {
        let object = objects
            .iter_mut()
            .find(|object| object.name_any() == change.name);
        if let Some(object) = object {
            set(object, change.status.clone());
        }
    }
}
