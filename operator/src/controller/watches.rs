//! Watches: one local copy of each watched kind. Each relevant change triggers a reconcile.
//!
//! # Guarantees
//! - [`Stores::wait_until_complete`] returns when every kind has been listed in full. No copy is used before.
//! - An object that cannot be parsed does not stop its watch.
//! - A change that can affect a plan triggers a reconcile. Heartbeats of Nodes do not.
//!
//! # Caveats
//! A copy lags behind the API server. It lacks the operator's own writes for a moment.

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ClusterResourceScope, DeserializeGuard};
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_client::backoff;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{Instrument, debug, info_span, warn};

use crate::controller::reconcile_trigger::ReconcileTrigger;
use crate::plan::conditions::network_unavailable::NETWORK_UNAVAILABLE;
use crate::plan::validate::kube_proxy;

/// An object, or its metadata and the error if it cannot be parsed.
pub type Guarded<K> = DeserializeGuard<K>;

/// The local copies.
#[derive(Clone)]
pub struct Stores {
    /// IPPools.
    pub pools: Store<Guarded<IPPool>>,
    /// NetworkModes.
    pub modes: Store<Guarded<NetworkMode>>,
    /// BGPPeers.
    pub peers: Store<Guarded<BGPPeer>>,
    /// Nodes, reduced to the fields in use.
    pub nodes: Store<Guarded<Node>>,
    /// NodeSubnets.
    pub subnets: Store<Guarded<NodeSubnet>>,
    /// NodeNetworks.
    pub networks: Store<Guarded<NodeNetwork>>,
    /// ServiceCIDRs.
    pub services: Store<Guarded<ServiceCIDR>>,
    /// kube-proxy's ConfigMap.
    pub kube_proxy: Store<Guarded<ConfigMap>>,
}

impl Stores {
    /// Starts the watches as tasks of `tasks`. They trigger `trigger`.
    pub fn start(
        client: &Client,
        trigger: &Arc<ReconcileTrigger>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let mut starter = WatchStarter::new(trigger, tasks);
        let proxy = Api::namespaced(client.clone(), kube_proxy::NAMESPACE);
        let by_name = format!("metadata.name={}", kube_proxy::NAME);
        let by_name = watcher::Config::default().fields(&by_name);
        Self {
            pools: starter.watch_all(client, strip, |_, _| true),
            modes: starter.watch_all(client, strip, |_, _| true),
            peers: starter.watch_all(client, strip, |_, _| true),
            nodes: starter.watch_all(client, strip_node, node_differs),
            subnets: starter.watch_all(client, strip, |_, _| true),
            networks: starter.watch_all(client, strip, |_, _| true),
            services: starter.watch_all(client, strip, |old, new| old.spec != new.spec),
            kube_proxy: starter.watch(proxy, by_name, strip, |old, new| old.data != new.data),
        }
    }

    /// Waits until every kind has been listed in full.
    ///
    /// # Errors
    /// A watch has ended, which happens only at the end of the program.
    pub async fn wait_until_complete(&self) -> Result<(), WriterDropped> {
        self.pools.wait_until_ready().await?;
        self.modes.wait_until_ready().await?;
        self.peers.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.subnets.wait_until_ready().await?;
        self.networks.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.kube_proxy.wait_until_ready().await
    }
}

/// A kind that can be watched.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// Starts watches that share a trigger and a set of tasks.
pub struct WatchStarter<'a> {
    trigger: &'a Arc<ReconcileTrigger>,
    tasks: &'a mut JoinSet<()>,
    /// Aborts the watch that was started last.
    pub last_watch: Option<AbortHandle>,
}

impl<'a> WatchStarter<'a> {
    /// Watches that are tasks of `tasks` and trigger `trigger`.
    pub fn new(trigger: &'a Arc<ReconcileTrigger>, tasks: &'a mut JoinSet<()>) -> Self {
        let last_watch = None;
        Self {
            trigger,
            tasks,
            last_watch,
        }
    }

    /// Watches all objects of a cluster-scoped kind.
    fn watch_all<K: Watched + Resource<Scope = ClusterResourceScope>>(
        &mut self,
        client: &Client,
        strip: fn(&mut Guarded<K>),
        differs: fn(&K, &K) -> bool,
    ) -> Store<Guarded<K>> {
        let api = Api::all(client.clone());
        self.watch(api, watcher::Config::default(), strip, differs)
    }

    /// Watches the objects that `api` lists with `config`. `strip` removes unused fields, `differs` detects relevant
    /// changes.
    pub fn watch<K: Watched>(
        &mut self,
        api: Api<Guarded<K>>,
        config: watcher::Config,
        strip: fn(&mut Guarded<K>),
        differs: fn(&K, &K) -> bool,
    ) -> Store<Guarded<K>> {
        let (store, mut writer) = reflector::store::<Guarded<K>>();
        let (trigger, copy) = (self.trigger.clone(), store.clone());
        let kind = K::kind(&());
        let span = info_span!("watch", %kind);
        let events = watcher(api, config)
            .modify(strip)
            .backoff(backoff::of_watch());
        let watch = async move {
            let events = events.inspect_err(|error| warn!(%error, "watch interrupted, will retry"));
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let affects_plan = affects_plan(&event, &copy, differs);
                writer.apply_watcher_event(&event);
                if affects_plan {
                    trigger.trigger(&kind);
                }
            }
        };
        self.last_watch = Some(self.tasks.spawn(watch.instrument(span)));
        store
    }
}

/// Whether `event` can change a plan.
fn affects_plan<K: Watched>(
    event: &Event<Guarded<K>>,
    copy: &Store<Guarded<K>>,
    differs: fn(&K, &K) -> bool,
) -> bool {
    match event {
        Event::Apply(new) => {
            if let Err(invalid) = &new.0 {
                warn!(
                    name = new.name_any(),
                    error = invalid.error,
                    "object cannot be read"
                );
            }
            match (copy.get(&ObjectRef::from(new)).as_deref(), new) {
                (Some(DeserializeGuard(Ok(old))), DeserializeGuard(Ok(new))) => differs(old, new),
                (_, _) => true,
            }
        }
        Event::InitApply(new) => {
            if let Err(invalid) = &new.0 {
                warn!(
                    name = new.name_any(),
                    error = invalid.error,
                    "object cannot be read"
                );
            }
            false
        }
        Event::Init => {
            debug!("listing objects");
            false
        }
        Event::Delete(_) | Event::InitDone => true,
    }
}

/// Removes the managed fields, which are unused.
pub fn strip<K: Watched>(object: &mut Guarded<K>) {
    object.meta_mut().managed_fields = None;
}

/// Reduces a Node to the fields in use. With thousands of Nodes the other fields would need most of the memory.
fn strip_node(object: &mut Guarded<Node>) {
    let meta = std::mem::take(object.meta_mut());
    *object.meta_mut() = ObjectMeta {
        name: meta.name,
        uid: meta.uid,
        resource_version: meta.resource_version,
        creation_timestamp: meta.creation_timestamp,
        deletion_timestamp: meta.deletion_timestamp,
        labels: meta.labels,
        ..ObjectMeta::default()
    };
    if let DeserializeGuard(Ok(node)) = object {
        let spec = node.spec.take().unwrap_or_default();
        node.spec = Some(NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..NodeSpec::default()
        });
        let status = node.status.take().unwrap_or_default();
        // The time of the heartbeat is removed: a heartbeat is not a change.
        let conditions = status
            .conditions
            .into_iter()
            .flatten()
            .filter(|it| ["Ready", NETWORK_UNAVAILABLE].contains(&it.type_.as_str()));
        let conditions = conditions.map(|NodeCondition { type_, status, .. }| NodeCondition {
            type_,
            status,
            ..NodeCondition::default()
        });
        // How many pods the node can have limits its blocks.
        let pods = status.allocatable.into_iter().flatten();
        let pods = pods.filter(|(resource, _)| resource == "pods");
        node.status = Some(NodeStatus {
            addresses: status.addresses,
            allocatable: Some(pods.collect()),
            conditions: Some(conditions.collect()),
            ..NodeStatus::default()
        });
    }
}

/// Compares everything but the resource version: a heartbeat is not a change.
fn node_differs(old: &Node, new: &Node) -> bool {
    old.status != new.status
        || old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.uid != new.metadata.uid
}
