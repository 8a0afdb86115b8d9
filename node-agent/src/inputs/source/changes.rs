//! What of the events of a watch wakes the agent.
//!
//! Statuses change with every pod that starts anywhere in the cluster, and no node goes by them.

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

/// Fills a store from the events of a watch of `kind`, and counts in `signal` what has changed but for statuses.
pub async fn follow<K>(
    kind: &str,
    writer: reflector::store::Writer<K>,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    signal: &watch::Sender<u64>,
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
    let mut failure_log = FailureLog::default();
    while let Some(event) = events.next().await {
        match event {
            // A list counts once, when it is complete. That one begins does not show that the API server answers.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(event) => {
                failure_log.are([]);
                let changed = lock(&changes).take();
                debug!(?event, changed, "received watch event");
                if changed {
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
            }
            Err(error) => {
                let (why, advice) = (error_chain(&error), netweft_client::remedy(&error));
                failure_log.are([format!("watch {kind}: {why}{advice}")]);
            }
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

    /// How often the agent is woken by these events.
    async fn wakes(events: Vec<Event<IPPool>>) -> u64 {
        let (signal, changes) = watch::channel(0);
        let (_store, writer) = reflector::store();
        let events = stream::iter(events.into_iter().map(Ok));
        follow("IPPool", writer, events, &signal).await;
        *changes.borrow()
    }

    #[tokio::test]
    async fn status_only_change_does_not_wake_agent() {
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
    async fn relist_wakes_agent_only_if_objects_differ() {
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
