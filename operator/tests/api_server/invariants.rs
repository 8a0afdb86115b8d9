//! [`InvariantMonitor`]: watches NodeSubnets and NodeNetworks, and records every violation of an invariant of block
//! ownership.
//!
//! [`InvariantChecker`] contains the rules and is pure. This module feeds it from watches. Every event is checked, not
//! only the final state. Times are the arrival times of events, by the monotonic clock of this process.

mod assignment_order;
mod checker;
mod convergence;
mod input;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::StreamExt;
use kube::core::ClusterResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::IPPool;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use checker::InvariantChecker;
pub use input::{InvariantConfig, ObjectChange, ObservedNetwork};

use crate::objects::all;

/// Watches a cluster.
pub struct InvariantMonitor {
    checker: Arc<Mutex<InvariantChecker>>,
    _watches: JoinSet<()>,
}

impl InvariantMonitor {
    /// Watches a cluster in which no block is ever released. Returns when all existing objects have been observed.
    pub async fn start(client: &Client) -> Self {
        Self::start_with(client, InvariantConfig::default()).await
    }

    /// Watches a cluster with this configuration. The pools are read from the cluster.
    pub async fn start_with(client: &Client, mut config: InvariantConfig) -> Self {
        let pools = all::<IPPool>(client).await;
        config.pools = pools
            .iter()
            .map(|pool| (pool.name_any(), pool.spec.cidr))
            .collect::<BTreeMap<_, _>>();
        let checker = Arc::new(Mutex::new(InvariantChecker::new(config)));
        let ready = watch::Sender::new(0);
        let mut ready_receiver = ready.subscribe();
        let mut watches = JoinSet::new();
        watches.spawn(watch_kind(
            client.clone(),
            checker.clone(),
            ready.clone(),
            InvariantChecker::observe_subnet,
        ));
        watches.spawn(watch_kind(
            client.clone(),
            checker.clone(),
            ready,
            InvariantChecker::observe_network,
        ));
        ready_receiver.wait_for(|ready| *ready == 2).await.unwrap();
        Self {
            checker,
            _watches: watches,
        }
    }

    /// All violations so far, and blocks in NodeNetworks that belong to other nodes.
    pub fn violations(&self) -> Vec<String> {
        self.with(|checker| {
            let violations = checker.violations().iter().cloned();
            violations.chain(checker.blocks_of_other_nodes()).collect()
        })
    }

    /// Number of assignments so far.
    pub fn assignment_count(&self) -> usize {
        self.with(|checker| checker.assignment_count())
    }

    /// Reads the checker, or adds information that no watch has.
    pub fn with<T>(&self, action: impl FnOnce(&mut InvariantChecker) -> T) -> T {
        action(&mut self.checker.lock().unwrap())
    }
}

async fn watch_kind<K>(
    client: Client,
    checker: Arc<Mutex<InvariantChecker>>,
    ready: watch::Sender<i32>,
    observe: fn(&mut InvariantChecker, &ObjectChange<'_, K>, Instant),
) where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events =
        watcher::watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut complete = false;
    while let Some(event) = events.next().await {
        let now = Instant::now();
        let mut checker = checker.lock().unwrap();
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                observe(&mut checker, &ObjectChange::Applied(&object), now);
            }
            Ok(Event::Delete(object)) => {
                observe(&mut checker, &ObjectChange::Deleted(&object), now);
            }
            Ok(Event::InitDone) => {
                complete = true;
                ready.send_modify(|ready| *ready += 1);
            }
            // An interrupted watch continues. A watch that lists again may have missed events.
            Ok(Event::Init) if complete => checker.record_missed_events(&K::kind(&())),
            Ok(Event::Init) => {}
            Err(error) => println!("invariant monitor: watch interrupted, will retry: {error}"),
        }
    }
}
