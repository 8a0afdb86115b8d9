//! Fifty pods start each second. The test measures the cost for the API server, and which agents have to act.
//!
//! An agent acts on a new generation or the deletion of an IPPool, of any NodeSubnet and of its own NodeNetwork. A
//! changed status causes no action.

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

/// Pods that start per second.
const STARTS: u32 = 50;
/// Duration of the phase.
const TIME: Duration = Duration::from_secs(25);
/// A node with more pods would get another block.
const MAX_PODS: i64 = 40;
/// Pods of a node at the start.
const MIN_PODS: i64 = 5;
/// Minimum interval between two writes of a pool's utilization.
const INTERVAL: Duration = Duration::from_secs(10);

/// Numbers of events of a kind since the initial list.
#[derive(Clone, Copy, Debug, Default)]
struct EventCounts {
    /// New generations, new objects and deletions.
    causing_action: usize,
    /// Changes of status or metadata.
    other: usize,
}

/// Counts events by kind.
struct EventCounter {
    counts: Arc<Mutex<BTreeMap<String, EventCounts>>>,
    _watches: JoinSet<()>,
}

impl EventCounter {
    async fn start(client: &Client) -> Self {
        let counts = Arc::default();
        let ready = watch::Sender::new(0);
        let mut ready_receiver = ready.subscribe();
        let mut watches = JoinSet::new();
        watches.spawn(count::<IPPool>(
            client.clone(),
            Arc::clone(&counts),
            ready.clone(),
        ));
        watches.spawn(count::<NodeSubnet>(
            client.clone(),
            Arc::clone(&counts),
            ready.clone(),
        ));
        watches.spawn(count::<NodeNetwork>(
            client.clone(),
            Arc::clone(&counts),
            ready,
        ));
        ready_receiver.wait_for(|ready| *ready == 3).await.unwrap();
        Self {
            counts,
            _watches: watches,
        }
    }

    fn of(&self, kind: &str) -> EventCounts {
        let counts = self.counts.lock().unwrap();
        counts.get(kind).copied().unwrap_or_default()
    }
}

async fn count<K>(
    client: Client,
    counts: Arc<Mutex<BTreeMap<String, EventCounts>>>,
    ready: watch::Sender<i32>,
) where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher::watcher(Api::<K>::all(client), watcher::Config::default());
    let mut events = std::pin::pin!(events);
    let mut generations = BTreeMap::new();
    while let Some(event) = events.next().await {
        let causes_action = match event.expect("the watch continues") {
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
        let mut counts = counts.lock().unwrap();
        let counts = counts.entry(K::kind(&()).into_owned()).or_default();
        counts.causing_action += usize::from(causes_action);
        counts.other += usize::from(!causes_action);
    }
}

impl Simulation {
    /// Pods start on random nodes with enough addresses.
    pub async fn pods(&mut self) {
        let counter = EventCounter::start(&self.plane.admin()).await;
        let mut pods: BTreeMap<usize, i64> = BTreeMap::new();
        let end = Instant::now() + TIME;
        let mut ticks = interval(Duration::from_secs(1) / STARTS);
        while Instant::now() < end {
            ticks.tick().await;
            let index = self.random.below(self.existing.len());
            let number = self.existing[index];
            let count = pods.entry(number).or_insert(MIN_PODS);
            *count = if *count == MAX_PODS {
                MIN_PODS
            } else {
                *count + 1
            };
            self.agents.set_pods(number, *count);
        }
        self.converge("all pods have been counted", false).await;
        self.end_phase("pods").await;
        let [own, subnets, networks] =
            ["IPPool", "NodeSubnet", "NodeNetwork"].map(|kind| counter.of(kind));
        println!("pods: IPPool {own:?}, NodeSubnet {subnets:?}, NodeNetwork {networks:?}");
        #[expect(clippy::cast_precision_loss, reason = "the values are rounded anyway")]
        let value = |count: usize| count as f64;
        let causing_action = own.causing_action + subnets.causing_action + networks.causing_action;
        self.measurements
            .add("agents woken by other nodes' pods", value(causing_action));
        self.measurements
            .add("statuses of pools while pods start", value(own.other));
        self.measurements
            .add("statuses of nodes while pods start", value(networks.other));
        assert_eq!(
            causing_action, 0,
            "pods of other nodes cause actions of agents"
        );
        assert!(networks.other > 500, "{networks:?}");
        let intervals = TIME.as_secs() / INTERVAL.as_secs() + 2;
        let max_writes = pools::names().count() * usize::try_from(intervals).unwrap();
        assert!(own.other <= max_writes, "{own:?}, and {max_writes} at most");
        let changed: Vec<usize> = pods.into_keys().collect();
        self.agents.fill(&changed, false);
        self.converge("the pods are deleted", false).await;
    }
}
