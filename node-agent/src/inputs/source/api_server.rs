//! Objects from the API server: one watch for each kind.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use futures::{FutureExt, Stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_client::backoff;
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::{Instrument, info_span};

use crate::inputs::source::{TaskGuard, change_filter};
use crate::inputs::{Namespaces, Objects};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The stores behind the watches.
pub struct Watches {
    pools: Store<DeserializeGuard<IPPool>>,
    subnets: Store<DeserializeGuard<NodeSubnet>>,
    networks: Store<DeserializeGuard<NodeNetwork>>,
    client: Client,
    /// Names and labels. The watch starts when a pool has a namespace selector.
    namespaces: OnceLock<Store<PartialObjectMeta<Namespace>>>,
    shared: Shared,
    changes: watch::Receiver<u64>,
    ended: Option<UnboundedReceiver<String>>,
}

impl Watches {
    /// Start the watches; they end with the process.
    pub fn start(client: &Client, node: &str) -> Self {
        let (sender, changes) = watch::channel(0);
        let (ended_sender, ended) = unbounded_channel();
        let shared = Arc::new(WatchContext {
            changes: sender,
            ended: ended_sender,
            runtime: Handle::current(),
        });
        let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
        Self {
            pools: start(
                Api::all(client.clone()),
                watcher::Config::default(),
                &shared,
            ),
            subnets: start(
                Api::all(client.clone()),
                watcher::Config::default(),
                &shared,
            ),
            networks: start(Api::all(client.clone()), own, &shared),
            client: client.clone(),
            namespaces: OnceLock::new(),
            shared,
            changes,
            ended: Some(ended),
        }
    }

    pub fn ended_tasks(&mut self) -> UnboundedReceiver<String> {
        self.ended.take().unwrap_or_else(|| unbounded_channel().1)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    pub fn snapshot(&self) -> Option<Objects> {
        let complete = ready(&self.pools) && ready(&self.subnets) && ready(&self.networks);
        if !complete {
            return None;
        }
        let mut unreadable = Vec::new();
        let pools = readable(&self.pools, &mut unreadable);
        let has_selector = |pool: &IPPool| pool.spec.namespace_selector.is_some();
        let namespaces = if pools.iter().any(has_selector) {
            self.namespaces()?
        } else {
            Namespaces::new()
        };
        let subnets = readable(&self.subnets, &mut unreadable);
        let network = readable(&self.networks, &mut unreadable).into_iter().next();
        Some(Objects {
            pools,
            subnets,
            namespaces,
            network,
            unreadable: unreadable.into_iter().collect(),
        })
    }
}

impl Watches {
    /// `None` until all namespaces have been received.
    fn namespaces(&self) -> Option<Namespaces> {
        let store = self.namespaces.get_or_init(|| {
            let (store, writer) = reflector::store();
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
            let events = watcher(api, watcher::Config::default());
            spawn_watch(writer, events, "Namespace", &self.shared);
            store
        });
        ready(store).then(|| {
            let named = store.state().into_iter().filter_map(|namespace| {
                let labels = namespace.labels().clone();
                Some((namespace.metadata.name.clone()?, labels))
            });
            named.collect()
        })
    }
}

/// The context of all watches.
struct WatchContext {
    changes: watch::Sender<u64>,
    ended: UnboundedSender<String>,
    /// The runtime of the first watches. A later watch is started from another thread, and must not depend on that thread.
    runtime: Handle,
}

type Shared = Arc<WatchContext>;

/// A kind whose watch continues after a malformed object.
trait Watchable:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static>
    Watchable for K
{
}

fn start<K: Watchable>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    shared: &Shared,
) -> Store<DeserializeGuard<K>> {
    let (store, writer) = reflector::store();
    spawn_watch(writer, watcher(api, config), &K::kind(&()), shared);
    store
}

/// Starts a task that fills a store from the events of a watch and signals changes.
fn spawn_watch<K>(
    writer: reflector::store::Writer<K>,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    kind: &str,
    shared: &Shared,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let events = events.backoff(backoff::of_watch()).modify(|object| {
        object.managed_fields_mut().clear();
        object.annotations_mut().clear();
    });
    let context = Arc::clone(shared);
    let guard = TaskGuard {
        watched: format!("objects of the kind {kind}"),
        ended: shared.ended.clone(),
    };
    let kind_name = kind.to_owned();
    let task = async move {
        let _guard = guard;
        change_filter::fill_store(&kind_name, writer, events, &context.changes).await;
    };
    shared
        .runtime
        .spawn(task.instrument(info_span!("watch", kind)));
}

fn ready<K>(store: &Store<K>) -> bool
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .wait_until_ready()
        .now_or_never()
        .is_some_and(|outcome| outcome.is_ok())
}

/// The readable objects, sorted by name. Unreadable objects become problems.
fn readable<K: Watchable>(
    store: &Store<DeserializeGuard<K>>,
    unreadable: &mut Vec<Problem>,
) -> Vec<K> {
    let mut objects = Vec::new();
    for object in store.state() {
        match &object.0 {
            Ok(object) => objects.push(object.clone()),
            Err(error) => {
                let cause = Cause::ObjectUnreadable {
                    object: format!("{} {}", K::kind(&()), object.name_any()),
                    error: error.to_string(),
                };
                unreadable.push(Problem::from(cause));
            }
        }
    }
    objects.sort_by_key(ResourceExt::name_any);
    unreadable.sort_by(|a, b| a.message.cmp(&b.message));
    objects
}
