//! Objects from the API server: one watch for each kind.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{Instrument, debug, info_span, warn};

use super::patience::Patience;
use crate::inputs::Objects;

/// The stores behind the watches.
pub struct Watches {
    pools: Store<DeserializeGuard<IPPool>>,
    subnets: Store<DeserializeGuard<NodeSubnet>>,
    networks: Store<DeserializeGuard<NodeNetwork>>,
    changes: watch::Receiver<u64>,
}

impl Watches {
    /// Start the watches; they end with the process.
    pub fn start(client: &Client, node: &str) -> Self {
        let (signal, changes) = watch::channel(0);
        let signal = Arc::new(signal);
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
        let subnets = readable(&self.subnets, &mut unreadable);
        let network = readable(&self.networks, &mut unreadable).into_iter().next();
        Some(Objects {
            pools,
            subnets,
            network,
            unreadable,
        })
    }
}

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
    signal: &Arc<watch::Sender<u64>>,
) -> Store<DeserializeGuard<K>> {
    let (store, writer) = reflector::store();
    let signal = signal.clone();
    let events = watcher(api, config)
        .backoff(Patience::default())
        .modify(|object| {
            object.managed_fields_mut().clear();
            object.annotations_mut().clear();
        });
    let events = reflector::reflector(writer, events).for_each(move |event| {
        match event {
            // A list counts once, when it is complete.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(event) => {
                debug!(?event, "heard");
                signal.send_modify(|version| *version = version.wrapping_add(1));
            }
            Err(error) => warn!(%error, "watch interrupted, will retry"),
        }
        std::future::ready(())
    });
    tokio::spawn(events.instrument(info_span!("watch", kind = %K::kind(&()))));
    store
}

fn ready<K: Watchable>(store: &Store<DeserializeGuard<K>>) -> bool {
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
