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

use crate::inputs::source::{Ending, changes};
use crate::inputs::{Namespaces, Objects};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The stores behind the watches.
pub struct Watches {
    pools: Store<DeserializeGuard<IPPool>>,
    subnets: Store<DeserializeGuard<NodeSubnet>>,
    networks: Store<DeserializeGuard<NodeNetwork>>,
    client: Client,
    /// Names and labels; watched from when a pool first asks for them.
    namespaces: OnceLock<Store<PartialObjectMeta<Namespace>>>,
    signal: Signal,
    changes: watch::Receiver<u64>,
    ends: Option<UnboundedReceiver<String>>,
}

impl Watches {
    /// Start the watches; they end with the process.
    pub fn start(client: &Client, node: &str) -> Self {
        let (signal, changes) = watch::channel(0);
        let (ends, ended) = unbounded_channel();
        let signal = Signal::new(Hub {
            changes: signal,
            ends,
            runtime: Handle::current(),
        });
        let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
        Self {
            pools: start(
                Api::all(client.clone()),
                watcher::Config::default(),
                &signal,
            ),
            subnets: start(
                Api::all(client.clone()),
                watcher::Config::default(),
                &signal,
            ),
            networks: start(Api::all(client.clone()), own, &signal),
            client: client.clone(),
            namespaces: OnceLock::new(),
            signal,
            changes,
            ends: Some(ended),
        }
    }

    pub fn ends(&mut self) -> UnboundedReceiver<String> {
        self.ends.take().unwrap_or_else(|| unbounded_channel().1)
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
        let by_namespace = |pool: &IPPool| pool.spec.namespace_selector.is_some();
        let namespaces = if pools.iter().any(by_namespace) {
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
    /// `None` until they have been heard of completely.
    fn namespaces(&self) -> Option<Namespaces> {
        let store = self.namespaces.get_or_init(|| {
            let (store, writer) = reflector::store();
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
            let events = watcher(api, watcher::Config::default());
            follow(writer, events, "Namespace", &self.signal);
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

/// What all watches share.
struct Hub {
    changes: watch::Sender<u64>,
    ends: UnboundedSender<String>,
    /// The one that they began in: a watch that is begun later, from another thread, must not depend on that thread.
    runtime: Handle,
}

type Signal = Arc<Hub>;

/// A kind that can be watched without one malformed object stopping the watch.
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
    signal: &Signal,
) -> Store<DeserializeGuard<K>> {
    let (store, writer) = reflector::store();
    follow(writer, watcher(api, config), &K::kind(&()), signal);
    store
}

/// Fill a store from the events of a watch, and signal when something has changed that a node goes by.
fn follow<K>(
    writer: reflector::store::Writer<K>,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    kind: &str,
    signal: &Signal,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let events = events.backoff(backoff::of_watch()).modify(|object| {
        object.managed_fields_mut().clear();
        object.annotations_mut().clear();
    });
    let hub = signal.clone();
    let ending = Ending {
        what: format!("objects of the kind {kind}"),
        ends: signal.ends.clone(),
    };
    let watched = kind.to_owned();
    let task = async move {
        let _ending = ending;
        changes::follow(&watched, writer, events, &hub.changes).await;
    };
    signal
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

/// The objects that could be read, by name; the others become problems.
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
