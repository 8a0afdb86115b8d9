//! Pods that start, fifty each second: what that costs the API server, and whom it wakes.
//!
//! An agent acts on a new generation, or the deletion, of an IPPool, of any NodeSubnet and of its own NodeNetwork; a status that
//! changes wakes none.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::core::ClusterResourceScope;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use super::Simulation;
use super::pools;

/// Pods that start in a second.
const STARTS: u32 = 50;
/// For how long.
const TIME: Duration = Duration::from_secs(25);
/// A node with more pods would get another block.
const MAX_PODS: i64 = 40;
/// Pods of a node before.
const MIN_PODS: i64 = 5;
/// The least time between two writes of a pool's counts.
const INTERVAL: Duration = Duration::from_secs(10);

/// Events of a kind since the watch was complete.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Of a new generation, a new object, or a deletion.
    waking: usize,
    /// Of a status, or metadata.
    other: usize,
}

/// Counts events by kind.
struct Wakes {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    _watches: JoinSet<()>,
}

impl Wakes {
    async fn begin(client: &Client) -> Self {
        let seen = Arc::default();
        let ready = watch::Sender::new(0);
        let mut told = ready.subscribe();
        let mut watches = JoinSet::new();
        watches.spawn(count::<IPPool>(
            client.clone(),
            Arc::clone(&seen),
            ready.clone(),
        ));
        watches.spawn(count::<NodeSubnet>(
            client.clone(),
            Arc::clone(&seen),
            ready.clone(),
        ));
        watches.spawn(count::<NodeNetwork>(
            client.clone(),
            Arc::clone(&seen),
            ready,
        ));
        told.wait_for(|ready| *ready == 3).await.unwrap();
        Self {
            seen,
            _watches: watches,
        }
    }

    fn of(&self, kind: &str) -> Seen {
        let seen = self.seen.lock().unwrap();
        seen.get(kind).copied().unwrap_or_default()
    }
}

async fn count<K>(
    client: Client,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    ready: watch::Sender<i32>,
) where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher::watcher(Api::<K>::all(client), watcher::Config::default());
    let mut events = std::pin::pin!(events);
    let mut generations = BTreeMap::new();
    while let Some(event) = events.next().await {
        let woken = match event.expect("the watch goes on") {
            Event::Init => continue,
            Event::InitApply(object) => {
                generations.insert(object.name_any(), object.meta().generation);
                continue;
            }
            Event::InitDone => {
                ready.send_modify(|ready| *ready += 1);
                continue;
            }
            Event::Apply(object) => {
                let generation = object.meta().generation;
                generations.insert(object.name_any(), generation) != Some(generation)
            }
            Event::Delete(_) => true,
        };
        let mut seen = seen.lock().unwrap();
        let seen = seen.entry(K::kind(&()).into_owned()).or_default();
        seen.waking += usize::from(woken);
        seen.other += usize::from(!woken);
    }
}

impl Simulation {
    /// Pods start on random nodes, which have room for them.
    pub async fn pods(&mut self) {
        let wakes = Wakes::begin(&self.plane.admin()).await;
        let mut pods: BTreeMap<usize, i64> = BTreeMap::new();
        let end = Instant::now() + TIME;
        let mut ticks = interval(Duration::from_secs(1) / STARTS);
        while Instant::now() < end {
            ticks.tick().await;
            let place = self.random.below(self.live.len());
            let number = self.live[place];
            let count = pods.entry(number).or_insert(MIN_PODS);
            *count = if *count == MAX_PODS {
                MIN_PODS
            } else {
                *count + 1
            };
            self.agents.have(number, *count);
        }
        self.settle("all pods have been counted", false).await;
        self.end_of("pods").await;
        let [own, subnets, networks] =
            ["IPPool", "NodeSubnet", "NodeNetwork"].map(|kind| wakes.of(kind));
        println!("pods: IPPool {own:?}, NodeSubnet {subnets:?}, NodeNetwork {networks:?}");
        #[expect(clippy::cast_precision_loss, reason = "figures are rounded anyway")]
        let figure = |count: usize| count as f64;
        let waking = own.waking + subnets.waking + networks.waking;
        self.figures
            .note("agents woken by other nodes' pods", figure(waking));
        self.figures
            .note("statuses of pools while pods start", figure(own.other));
        self.figures
            .note("statuses of nodes while pods start", figure(networks.other));
        assert_eq!(waking, 0, "pods of other nodes wake agents");
        assert!(networks.other > 500, "{networks:?}");
        let turns = TIME.as_secs() / INTERVAL.as_secs() + 2;
        let most = pools::names().count() * usize::try_from(turns).unwrap();
        assert!(own.other <= most, "{own:?}, and {most} at most");
        let touched: Vec<usize> = pods.into_keys().collect();
        self.agents.fill(&touched, false);
        self.settle("the pods are gone", false).await;
    }
}
