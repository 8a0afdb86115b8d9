//! Carries out a plan.
//!
//! # Guarantees
//! - A block is owned because creating its NodeSubnet succeeded. No NodeNetwork is written that names a block whose
//!   NodeSubnet could not be created, or not be changed: another may be about to delete it.
//! - Every update and delete carries the UID and resource version that the plan looked at.
//! - One write that fails does not stop those that do not depend on it.
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
use crate::controller::apply::kinds::{Named, Written};
use crate::controller::events::Events;
use crate::controller::timers::drift_events::DriftEvent;
use crate::plan::conditions::network_unavailable::NETWORK_UNAVAILABLE;
use crate::plan::model::cluster_state::NetworkUp;
use crate::plan::model::cluster_state::{Changes, FinalizerChange, Plan, StatusChange};
use crate::plan::model::secret::{Password, PasswordChange};
use crate::telemetry::admin::Health;
use crate::telemetry::metrics::{Metrics, WriteResult};
use netweft_common::heartbeat::Heartbeat;

/// Requests under way at a time: enough for many nodes that join at once, few enough for the API server's fairness.
const CONCURRENCY: usize = 16;

/// Writes to the API server.
pub struct Writer {
    client: Client,
    namespace: String,
    metrics: Arc<Metrics>,
    heartbeat: Arc<Heartbeat>,
    events: Events,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Names of NodeSubnets that exist now, and that the watch has yet to show.
    pub created: BTreeSet<String>,
    /// Whether a write failed in a way that is worth trying again.
    pub failed: bool,
}

impl Writer {
    /// A writer that counts and shows that it lives by `health`, and tells users by `events`; what has a namespace is in
    /// `namespace`.
    pub fn new(client: Client, namespace: &str, health: &Health, events: Events) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            metrics: health.metrics.clone(),
            heartbeat: health.heartbeat.clone(),
            events,
        }
    }

    /// Carries out `plan`.
    pub async fn carry_out(&self, plan: &Plan) -> Outcome {
        let mut outcome = Outcome::default();
        let finalizers = each(&plan.finalizers, |change| self.finalize(change)).await;
        outcome.note(&finalizers);
        if let Some(change) = &plan.passwords {
            outcome.note(&[self.passwords(change).await]);
        }
        let missing = self.subnets(&plan.subnets, &mut outcome).await;
        self.networks(&plan.networks, &missing, &mut outcome).await;
        self.statuses(plan, &mut outcome).await;
        outcome.note(&each(&plan.network_up, |up| self.network_up(up)).await);
        outcome
    }

    /// Publishes an Event for each external change that an agent has repaired.
    pub fn publish_drift_events(&self, drift_events: &[DriftEvent]) {
        for DriftEvent { name, uid, event } in drift_events {
            self.events
                .publish::<NodeNetwork>(name, uid.as_deref(), event);
        }
    }

    /// Writes NodeSubnets; returns the names of those that are not the plan's, whatever the reason.
    async fn subnets(
        &self,
        changes: &Changes<NodeSubnet>,
        outcome: &mut Outcome,
    ) -> BTreeSet<String> {
        let created = each(&changes.create, |subnet| self.create(subnet)).await;
        let updated = each(&changes.update, |subnet| self.replace(subnet)).await;
        let deleted = each(&changes.delete, |subnet| self.delete(subnet)).await;
        for results in [&created, &updated, &deleted] {
            outcome.note(results);
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

    async fn networks(
        &self,
        changes: &Changes<NodeNetwork>,
        missing: &BTreeSet<String>,
        outcome: &mut Outcome,
    ) {
        let owns = |network: &&NodeNetwork| {
            !network
                .spec
                .subnets
                .iter()
                .any(|s| missing.contains(&node_subnet_name(s)))
        };
        let create: Vec<_> = changes.create.iter().filter(owns).collect();
        let update: Vec<_> = changes.update.iter().filter(owns).collect();
        outcome.note(&each(&create, |network| self.create(*network)).await);
        outcome.note(&each(&update, |network| self.replace(*network)).await);
        outcome.note(&each(&changes.delete, |network| self.delete(network)).await);
    }

    async fn statuses(&self, plan: &Plan, outcome: &mut Outcome) {
        outcome.note(
            &each(&plan.pool_statuses, |change| {
                self.status::<IPPool, _>(change)
            })
            .await,
        );
        outcome.note(
            &each(&plan.mode_statuses, |change| {
                self.status::<NetworkMode, _>(change)
            })
            .await,
        );
        outcome.note(
            &each(&plan.peer_statuses, |change| {
                self.status::<BGPPeer, _>(change)
            })
            .await,
        );
        let assigned = each(&plan.assigned, |change| {
            // Only this condition is ours: the list is keyed by type, and the agent has applied the others.
            let status = json!({ "conditions": [change.status] });
            let StatusChange {
                name, uid, event, ..
            } = change.clone();
            async move {
                self.status::<NodeNetwork, _>(&StatusChange {
                    name,
                    uid,
                    status,
                    event,
                })
                .await
            }
        });
        outcome.note(&assigned.await);
    }

    async fn create<K: Written>(&self, object: &K) -> Result<(), RequestError> {
        let (name, api) = (object.name_any(), Api::<K>::all(self.client.clone()));
        self.write::<K, _>("create", &name, api.create(&post(), object))
            .await
    }

    async fn replace<K: Written>(&self, object: &K) -> Result<(), RequestError> {
        let (name, api) = (object.name_any(), Api::<K>::all(self.client.clone()));
        self.write::<K, _>("update", &name, api.replace(&name, &post(), object))
            .await
    }

    async fn delete<K: Written>(&self, object: &K) -> Result<(), RequestError> {
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

    async fn finalize(&self, change: &FinalizerChange) -> Result<(), RequestError> {
        let request = set_finalizers(&self.client, change);
        self.write::<IPPool, _>("finalize", &change.name, request)
            .await
    }

    /// Changes keys of the agents' Secret, or makes it. Keys of others are theirs.
    async fn passwords(&self, change: &PasswordChange) -> Result<(), RequestError> {
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
            // Applying is the one way to create by which a role can say the name.
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

    async fn status<K: Written, S: Serialize>(
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

    /// Clears the condition `NetworkUnavailable` of a Node, and touches no other.
    async fn network_up(&self, up: &NetworkUp) -> Result<(), RequestError> {
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

    /// Sends a request, counts it and logs it.
    async fn write<K: Named, T>(
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
        self.metrics.wrote(K::KIND, verb, label);
        result.map(|_| ())
    }
}

impl Outcome {
    fn note(&mut self, results: &[Result<(), RequestError>]) {
        self.failed |= results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .any(|error| error.class() == Class::Failed);
    }
}

/// Gives a pool its finalizers, unless it has changed since it was looked at.
///
/// # Errors
/// The API server refuses.
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

fn post() -> PostParams {
    PostParams {
        field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Does something with each item, some of them at a time; the results are in the order of the items.
async fn each<'a, T, F>(items: &'a [T], act: impl Fn(&'a T) -> F) -> Vec<F::Output>
where
    F: Future,
{
    futures::stream::iter(items.iter().map(act))
        .buffered(CONCURRENCY)
        .collect()
        .await
}
