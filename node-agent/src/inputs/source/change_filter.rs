//! Selects the watch events that trigger a reconcile.
//!
//! A change of a status does not, because statuses change with every pod that starts in the cluster, and the agent does not use
//! them.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher;
use tokio::sync::watch;
use tracing::debug;

use crate::telemetry::failure_log::FailureLog;
use netweft_common::error_chain;

/// Fills a store from the events of a watch of `kind`, and increments `signal` for changes other than of a status.
pub async fn fill_store<K>(
    kind: &str,
    writer: reflector::store::Writer<K>,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    signal: &watch::Sender<u64>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let changes = Arc::new(Mutex::new(ChangeFilter::new(writer.as_reader())));
    let filter = Arc::clone(&changes);
    let events = events.inspect(move |event| {
        if let Ok(event) = event {
            lock(&filter).add(event);
        }
    });
    let mut events = pin!(reflector::reflector(writer, events));
    let mut failure_log = FailureLog::default();
    while let Some(event) = events.next().await {
        match event {
            // A list counts once, when it is complete. Its start does not show that the API server responds.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(event) => {
                failure_log.set([]);
                let changed = lock(&changes).take();
                debug!(?event, changed, "received watch event");
                if changed {
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
            }
            Err(error) => {
                let (cause, advice) = (error_chain(&error), netweft_client::remedy(&error));
                failure_log.set([format!("watch {kind}: {cause}{advice}")]);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether objects have changed, except for their status. Events are added before the store applies them.
struct ChangeFilter<K: Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    changed: bool,
    /// Number of unchanged objects in the present list.
    unchanged: usize,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> ChangeFilter<K> {
    fn new(store: Store<K>) -> Self {
        Self {
            store,
            // The first list is a change, even if it is empty.
            changed: true,
            unchanged: 0,
        }
    }

    fn add(&mut self, event: &watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.unchanged = 0,
            watcher::Event::InitApply(object) if self.is_unchanged(object) => self.unchanged += 1,
            watcher::Event::Apply(object) if self.is_unchanged(object) => {}
            watcher::Event::InitApply(_) | watcher::Event::Apply(_) | watcher::Event::Delete(_) => {
                self.changed = true;
            }
            // An object that was deleted while the watch was interrupted is missing in the list.
            watcher::Event::InitDone => self.changed |= self.unchanged < self.store.len(),
        }
    }

    /// Whether only the status or the annotations of the object have changed. The API server counts changes of the spec in
    /// `metadata.generation`. Namespaces have no generation; the agent uses their labels.
    fn is_unchanged(&self, object: &K) -> bool {
        let stored = self.store.get(&ObjectRef::from_obj(object));
        stored.is_some_and(|stored| {
            let [stored, new] = [stored.meta(), object.meta()];
            stored.uid == new.uid
                && stored.generation == new.generation
                && stored.deletion_timestamp == new.deletion_timestamp
                && stored.labels == new.labels
        })
    }

    fn take(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::ResourceExt;
    use kube::runtime::watcher::Event;
    use netweft_crds::IPPool;

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

    /// The number of changes that these events signal.
    async fn signals(events: Vec<Event<IPPool>>) -> u64 {
        let (signal, changes) = watch::channel(0);
        let (_store, writer) = reflector::store();
        let events = stream::iter(events.into_iter().map(Ok));
        fill_store("IPPool", writer, events, &signal).await;
        *changes.borrow()
    }

    #[tokio::test]
    async fn status_only_change_does_not_wake_agent() {
        let first = listed(&[pool("a", 1, "1"), pool("b", 1, "2")]);
        assert_eq!(signals(first.clone()).await, 1);
        assert_eq!(signals(listed(&[])).await, 1, "an empty list");
        let with = |more: Vec<Event<IPPool>>| first.iter().cloned().chain(more).collect();
        let additional = |more| async { signals(with(more)).await - 1 };
        assert_eq!(additional(vec![Event::Apply(pool("a", 1, "3"))]).await, 0);
        assert_eq!(additional(vec![Event::Apply(pool("a", 2, "3"))]).await, 1);
        assert_eq!(additional(vec![Event::Apply(pool("c", 1, "3"))]).await, 1);
        assert_eq!(additional(vec![Event::Delete(pool("a", 1, "3"))]).await, 1);
        let mut deleted = pool("a", 1, "3");
        deleted.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").ok();
        assert_eq!(additional(vec![Event::Apply(deleted)]).await, 1);
        let mut labelled = pool("a", 1, "3");
        labelled.labels_mut().insert("a".into(), "b".into());
        assert_eq!(additional(vec![Event::Apply(labelled)]).await, 1);
    }

    #[tokio::test]
    async fn relist_wakes_agent_only_if_objects_differ() {
        let first = [pool("a", 1, "1"), pool("b", 1, "2")];
        let again = |second: &[IPPool]| {
            let events: Vec<_> = listed(&first).into_iter().chain(listed(second)).collect();
            async { signals(events).await - 1 }
        };
        assert_eq!(again(&[pool("a", 1, "8"), pool("b", 1, "9")]).await, 0);
        assert_eq!(again(&[pool("a", 1, "1")]).await, 1, "one is deleted");
        assert_eq!(again(&[pool("a", 1, "1"), pool("c", 1, "2")]).await, 1);
        assert_eq!(again(&[pool("a", 1, "1"), pool("b", 2, "3")]).await, 1);
    }
}
