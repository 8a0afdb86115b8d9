//! Applies a plan.
//!
//! # Guarantees
//! - A node owns a block because the creation of its NodeSubnet succeeded. A NodeNetwork is not written if one of its
//!   NodeSubnets could not be created or updated: another leader may be about to delete that NodeSubnet.
//! - Every update and delete carries the UID and the resource version that the plan is based on.
//! - A failed write does not stop independent writes.
//!
//! ```text
//!   finalizers of pools ─▶ passwords ─▶ NodeSubnets ─▶ NodeNetworks ─▶ statuses ─▶ events
//! ```

mod kinds;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use netweft_crds::names::{OPERATOR_FIELD_MANAGER, PASSWORDS_SECRET, node_subnet_name};
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::controller::api_request::request;
use crate::controller::api_request_error::{Class, RequestError};
use crate::controller::apply::kinds::{KindName, PlannedObject};
use crate::controller::events::Events;
use crate::controller::timers::drift_events::DriftEvent;
use crate::plan::conditions::network_unavailable::NETWORK_UNAVAILABLE;
use crate::plan::model::cluster_state::NetworkUp;
use crate::plan::model::cluster_state::{Changes, FinalizerChange, Plan, StatusChange};
use crate::plan::model::secret::{Password, PasswordChange};
use crate::telemetry::admin::Health;
use crate::telemetry::metrics::{Metrics, WriteResult};
use netweft_common::heartbeat::Heartbeat;

/// Concurrent requests: enough for many nodes that join at once, and few enough for API Priority and Fairness.
const CONCURRENCY: usize = 16;

/// Writes to the API server.
pub struct Writer {
    client: Client,
    namespace: String,
    metrics: Arc<Metrics>,
    heartbeat: Arc<Heartbeat>,
    events: Events,
}

/// The result of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Names of the created NodeSubnets, which the watch does not show yet.
    pub created: BTreeSet<String>,
    /// Whether a write failed and should be retried.
    pub failed: bool,
}

impl Writer {
    /// A writer that reports to `health` and publishes `events`. Namespaced objects are in `namespace`.
    pub fn new(client: Client, namespace: &str, health: &Health, events: Events) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            metrics: health.metrics.clone(),
            heartbeat: health.heartbeat.clone(),
            events,
        }
    }

    /// Applies `plan`.
    pub async fn apply(&self, plan: &Plan) -> Outcome {
        let mut outcome = Outcome::default();
        let finalizers = each(&plan.finalizers, |change| self.set_finalizers(change)).await;
        outcome.record(&finalizers);
        if let Some(change) = &plan.passwords {
            outcome.record(&[self.write_passwords(change).await]);
        }
        let missing = self.write_subnets(&plan.subnets, &mut outcome).await;
        self.write_networks(&plan.networks, &missing, &mut outcome)
            .await;
        self.write_statuses(plan, &mut outcome).await;
        outcome.record(&each(&plan.network_up, |up| self.clear_network_unavailable(up)).await);
        outcome
    }

    /// Publishes an Event for each external change that an agent has repaired.
    pub fn publish_drift_events(&self, drift_events: &[DriftEvent]) {
        for DriftEvent { name, uid, event } in drift_events {
            self.events
                .publish::<NodeNetwork>(name, uid.as_deref(), event);
        }
    }

    /// Writes NodeSubnets. Returns the names of those that could not be written.
    async fn write_subnets(
        &self,
        changes: &Changes<NodeSubnet>,
        outcome: &mut Outcome,
    ) -> BTreeSet<String> {
        let created = each(&changes.create, |subnet| self.create(subnet)).await;
        let updated = each(&changes.update, |subnet| self.replace(subnet)).await;
        let deleted = each(&changes.delete, |subnet| self.delete(subnet)).await;
        for results in [&created, &updated, &deleted] {
            outcome.record(results);
        }
        for (subnet, result) in changes.create.iter().zip(&created) {
            let failure = result.as_ref().err();
            if failure.is_none_or(RequestError::already_exists) {
                outcome.created.insert(subnet.name_any());
            }
        }
        let writes = changes.create.iter().zip(&created);
        let writes = writes.chain(changes.update.iter().zip(&updated));
        let missing = writes.filter(|(_, result)| result.is_err());
        missing.map(|(subnet, _)| subnet.name_any()).collect()
    }

    async fn write_networks(
        &self,
        changes: &Changes<NodeNetwork>,
        missing: &BTreeSet<String>,
        outcome: &mut Outcome,
    ) {
        let has_all_subnets = |network: &&NodeNetwork| {
            !network
                .spec
                .subnets
                .iter()
                .any(|s| missing.contains(&node_subnet_name(s)))
        };
        let create: Vec<_> = changes.create.iter().filter(has_all_subnets).collect();
        let update: Vec<_> = changes.update.iter().filter(has_all_subnets).collect();
        outcome.record(&each(&create, |network| self.create(*network)).await);
        outcome.record(&each(&update, |network| self.replace(*network)).await);
        outcome.record(&each(&changes.delete, |network| self.delete(network)).await);
    }

    async fn write_statuses(&self, plan: &Plan, outcome: &mut Outcome) {
        outcome.record(
            &each(&plan.pool_statuses, |change| {
                self.write_status::<IPPool, _>(change)
            })
            .await,
        );
        outcome.record(
            &each(&plan.mode_statuses, |change| {
                self.write_status::<NetworkMode, _>(change)
            })
            .await,
        );
        outcome.record(
            &each(&plan.peer_statuses, |change| {
                self.write_status::<BGPPeer, _>(change)
            })
            .await,
        );
        let assigned = each(&plan.assigned, |change| {
            // The list is a map by type: the agent keeps its conditions, because the operator applies only this one.
            let status = json!({ "conditions": [change.status] });
            let StatusChange {
                name, uid, event, ..
            } = change.clone();
            async move {
                self.write_status::<NodeNetwork, _>(&StatusChange {
                    name,
                    uid,
                    status,
                    event,
                })
                .await
            }
        });
        outcome.record(&assigned.await);
    }

    async fn create<K: PlannedObject>(&self, object: &K) -> Result<(), RequestError> {
        let (name, api) = (object.name_any(), Api::<K>::all(self.client.clone()));
        self.write::<K, _>("create", &name, api.create(&post_params(), object))
            .await
    }

    async fn replace<K: PlannedObject>(&self, object: &K) -> Result<(), RequestError> {
        let (name, api) = (object.name_any(), Api::<K>::all(self.client.clone()));
        self.write::<K, _>("update", &name, api.replace(&name, &post_params(), object))
            .await
    }

    async fn delete<K: PlannedObject>(&self, object: &K) -> Result<(), RequestError> {
        let (name, api) = (object.name_any(), Api::<K>::all(self.client.clone()));
        let preconditions = Preconditions {
            resource_version: object.resource_version(),
            uid: object.uid(),
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        self.write::<K, _>("delete", &name, api.delete(&name, &params))
            .await
    }

    async fn set_finalizers(&self, change: &FinalizerChange) -> Result<(), RequestError> {
        let request = set_finalizers(&self.client, change);
        self.write::<IPPool, _>("finalize", &change.name, request)
            .await
    }

    /// Updates keys of the agents' Secret, or creates the Secret. Keys of other writers stay.
    async fn write_passwords(&self, change: &PasswordChange) -> Result<(), RequestError> {
        let PasswordChange { seen, set, remove } = change;
        let encoded = |password: &Password| json!(ByteString(password.expose().to_vec()));
        let set = set.iter().map(|(key, password)| (key, encoded(password)));
        let removed = remove.iter().map(|key| (key, Value::Null));
        let data: BTreeMap<_, _> = set.chain(removed).collect();
        let name = PASSWORDS_SECRET;
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER);
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let patch = match seen {
            Some((uid, version)) => Patch::Merge(json!({
                "metadata": { "uid": uid, "resourceVersion": version },
                "data": data,
            })),
            // RBAC can limit an apply to this name, but not a create.
            None => Patch::Apply(json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": { "name": name },
                "type": "Opaque",
                "data": data,
            })),
        };
        self.write::<Secret, _>("patch", name, api.patch_metadata(name, &params, &patch))
            .await
    }

    async fn write_status<K: PlannedObject, S: Serialize>(
        &self,
        change: &StatusChange<S>,
    ) -> Result<(), RequestError> {
        let StatusChange {
            name,
            uid,
            status,
            event,
        } = change;
        let object = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::KIND,
            "metadata": { "name": name, "uid": uid },
            "status": status,
        });
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let api = Api::<K>::all(self.client.clone());
        let patch = Patch::Apply(object);
        self.write::<K, _>("status", name, api.patch_status(name, &params, &patch))
            .await?;
        if let Some(event) = event {
            self.events.publish::<K>(name, uid.as_deref(), event);
        }
        Ok(())
    }

    /// Sets the condition `NetworkUnavailable` of a Node to False. Other conditions stay.
    async fn clear_network_unavailable(&self, up: &NetworkUp) -> Result<(), RequestError> {
        let NetworkUp { node, uid, since } = up;
        let since = Time(*since);
        let patch = Patch::Strategic(json!({
            "metadata": { "uid": uid },
            "status": { "conditions": [{
                "type": NETWORK_UNAVAILABLE,
                "status": "False",
                "reason": "NetweftIsUp",
                "message": "netweft has programmed the node's pod network",
                "lastHeartbeatTime": since,
                "lastTransitionTime": since,
            }] },
        }));
        let params = PatchParams {
            field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = Api::<Node>::all(self.client.clone());
        let sent = api.patch_status(node, &params, &patch);
        self.write::<Node, _>("status", node, sent).await
    }

    /// Sends a request, counts it and logs its result.
    async fn write<K: KindName, T>(
        &self,
        verb: &'static str,
        name: &str,
        sent: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<(), RequestError> {
        let result = request(verb, K::KIND, name, sent).await;
        self.heartbeat.beat();
        let label = match &result {
            Ok(_) => {
                info!(kind = K::KIND, name, verb, "wrote object");
                WriteResult::done
            }
            Err(error) => match error.class() {
                Class::Stale => {
                    debug!(error = error.chain(), "write conflict, planning again");
                    WriteResult::stale
                }
                Class::Failed => {
                    warn!(error = error.chain(), "write failed, will retry");
                    WriteResult::failed
                }
            },
        };
        self.metrics.count_write(K::KIND, verb, label);
        result.map(|_| ())
    }
}

impl Outcome {
    fn record(&mut self, results: &[Result<(), RequestError>]) {
        self.failed |= results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .any(|error| error.class() == Class::Failed);
    }
}

/// Sets the finalizers of a pool, unless the pool has changed since it was read.
///
/// # Errors
/// The API server refuses the request.
pub async fn set_finalizers(client: &Client, change: &FinalizerChange) -> Result<(), kube::Error> {
    let FinalizerChange {
        name,
        uid,
        resource_version,
        finalizers,
    } = change;
    let metadata =
        json!({ "uid": uid, "resourceVersion": resource_version, "finalizers": finalizers });
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let params = PatchParams {
        field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = Api::<IPPool>::all(client.clone());
    api.patch_metadata(name, &params, &patch).await.map(drop)
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Runs `action` for each item with limited concurrency. The results have the order of the items.
async fn each<'a, T, F>(items: &'a [T], action: impl Fn(&'a T) -> F) -> Vec<F::Output>
where
    F: Future,
{
    futures::stream::iter(items.iter().map(action))
        .buffered(CONCURRENCY)
        .collect()
        .await
}
