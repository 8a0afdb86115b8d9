//! Objects from the API server: one watch for each kind.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_client::Patience;
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{Instrument, debug, info_span, warn};

use crate::inputs::{Namespaces, Objects};

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
}

impl Watches {
    /// Start the watches; they end with the process.
    pub fn start(client: &Client, node: &str) -> Self {
        let (signal, changes) = watch::channel(0);
        let signal = Signal::new(signal);
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
        }
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
            unreadable,
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

type Signal = Arc<watch::Sender<u64>>;

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
    let events = events.backoff(Patience::default()).modify(|object| {
        object.managed_fields_mut().clear();
        object.annotations_mut().clear();
    });
    let followed = signal_changes(writer, events, signal.clone());
    tokio::spawn(followed.instrument(info_span!("watch", kind)));
}

/// Statuses change with every pod that starts anywhere, and no node goes by them.
async fn signal_changes<K>(
    writer: reflector::store::Writer<K>,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    signal: Signal,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let changes = Arc::new(Mutex::new(Changes::new(writer.as_reader())));
    let noted = Arc::clone(&changes);
    let events = events.inspect(move |event| {
        if let Ok(event) = event {
            lock(&noted).note(event);
        }
    });
    let mut events = pin!(reflector::reflector(writer, events));
    while let Some(event) = events.next().await {
        match event {
            // A list counts once, when it is complete.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(event) => {
                let changed = lock(&changes).take();
                debug!(?event, changed, "heard");
                if changed {
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
            }
            Err(error) => warn!(%error, "watch interrupted, will retry"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what has been heard since the last time is more than statuses. Events are noted before the store has them.
struct Changes<K: Resource<DynamicType = ()> + 'static> {
    before: Store<K>,
    changed: bool,
    /// Objects of the list under way that are the same as before.
    kept: usize,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Changes<K> {
    fn new(before: Store<K>) -> Self {
        Self {
            before,
            // The first list counts, also an empty one.
            changed: true,
            kept: 0,
        }
    }

    fn note(&mut self, event: &watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.kept = 0,
            watcher::Event::InitApply(object) if self.is_known(object) => self.kept += 1,
            watcher::Event::Apply(object) if self.is_known(object) => {}
            watcher::Event::InitApply(_) | watcher::Event::Apply(_) | watcher::Event::Delete(_) => {
                self.changed = true;
            }
            // One that was deleted while the watch was interrupted is not in the list.
            watcher::Event::InitDone => self.changed |= self.kept < self.before.len(),
        }
    }

    /// Whether nothing of the object has changed but its status or annotations. The API server counts changes of the spec in
    /// `metadata.generation`; Namespaces have none, and matter by their labels.
    fn is_known(&self, object: &K) -> bool {
        let known = self.before.get(&ObjectRef::from_obj(object));
        known.is_some_and(|known| {
            let [known, now] = [known.meta(), object.meta()];
            known.uid == now.uid
                && known.generation == now.generation
                && known.deletion_timestamp == now.deletion_timestamp
                && known.labels == now.labels
        })
    }

    fn take(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
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

/// The objects that could be read, by name; the others become sentences.
fn readable<K: Watchable>(
    store: &Store<DeserializeGuard<K>>,
    unreadable: &mut Vec<String>,
) -> Vec<K> {
    let mut objects = Vec::new();
    for object in store.state() {
        match &object.0 {
            Ok(object) => objects.push(object.clone()),
            Err(error) => unreadable.push(format!(
                "{} {} cannot be read: {error}",
                K::kind(&()),
                object.name_any()
            )),
        }
    }
    objects.sort_by_key(ResourceExt::name_any);
    unreadable.sort();
    objects
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::runtime::watcher::Event;

    use super::*;

    fn pool(name: &str, generation: i64, status: &str) -> IPPool {
        let text = format!(
            "metadata: {{name: {name}, uid: u, generation: {generation}, resourceVersion: '{status}'}}\nspec: {{cidr: 10.0.0.0/16}}"
        );
        serde_saphyr::from_str(&format!(
            "apiVersion: netweft.io/v1alpha1\nkind: IPPool\n{text}"
        ))
        .unwrap()
    }

    fn listed(pools: &[IPPool]) -> Vec<Event<IPPool>> {
        let objects = pools.iter().cloned().map(Event::InitApply);
        let begin = [Event::Init].into_iter().chain(objects);
        begin.chain([Event::InitDone]).collect()
    }

    /// How often the agent is woken by these events.
    async fn wakes(events: Vec<Event<IPPool>>) -> u64 {
        let (signal, changes) = watch::channel(0);
        let (_store, writer) = reflector::store();
        let events = stream::iter(events.into_iter().map(Ok));
        signal_changes(writer, events, Signal::new(signal)).await;
        *changes.borrow()
    }

    #[tokio::test]
    async fn changes_of_a_status_wake_nobody() {
        let first = listed(&[pool("a", 1, "1"), pool("b", 1, "2")]);
        assert_eq!(wakes(first.clone()).await, 1);
        assert_eq!(wakes(listed(&[])).await, 1, "an empty list");
        let with = |more: Vec<Event<IPPool>>| first.iter().cloned().chain(more).collect();
        let more = |more| async { wakes(with(more)).await - 1 };
        assert_eq!(more(vec![Event::Apply(pool("a", 1, "3"))]).await, 0);
        assert_eq!(more(vec![Event::Apply(pool("a", 2, "3"))]).await, 1);
        assert_eq!(more(vec![Event::Apply(pool("c", 1, "3"))]).await, 1);
        assert_eq!(more(vec![Event::Delete(pool("a", 1, "3"))]).await, 1);
        let mut deleted = pool("a", 1, "3");
        deleted.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").ok();
        assert_eq!(more(vec![Event::Apply(deleted)]).await, 1);
        let mut labelled = pool("a", 1, "3");
        labelled.labels_mut().insert("a".into(), "b".into());
        assert_eq!(more(vec![Event::Apply(labelled)]).await, 1);
    }

    #[tokio::test]
    async fn a_list_anew_wakes_only_if_something_is_another() {
        let first = [pool("a", 1, "1"), pool("b", 1, "2")];
        let again = |second: &[IPPool]| {
            let events: Vec<_> = listed(&first).into_iter().chain(listed(second)).collect();
            async { wakes(events).await - 1 }
        };
        assert_eq!(again(&[pool("a", 1, "8"), pool("b", 1, "9")]).await, 0);
        assert_eq!(again(&[pool("a", 1, "1")]).await, 1, "one is gone");
        assert_eq!(again(&[pool("a", 1, "1"), pool("c", 1, "2")]).await, 1);
        assert_eq!(again(&[pool("a", 1, "1"), pool("b", 2, "3")]).await, 1);
    }
}
