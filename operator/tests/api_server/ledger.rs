//! [`Ledger`]: who has ever owned which block, written down as it happens, and every breach of what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use ipnet::IpNet;
use kube::core::ClusterResourceScope;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::{NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What has been seen. Blocks never change hands, never share an address, and are not taken back.
pub struct Ledger {
    seen: Arc<Mutex<Seen>>,
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    owners: BTreeMap<IpNet, String>,
    listed: BTreeMap<String, BTreeSet<IpNet>>,
    breaches: Vec<String>,
}

/// What happened to an object.
enum Change<'a, K> {
    Is(&'a K),
    Gone(&'a K),
}

impl Ledger {
    /// Begins to write down; returns when what is there already has been.
    pub async fn begin(client: &Client) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ready = watch::Sender::new(0);
        let mut told = ready.subscribe();
        let mut watches = JoinSet::new();
        watches.spawn(follow(
            client.clone(),
            seen.clone(),
            ready.clone(),
            Seen::subnet,
        ));
        watches.spawn(follow(client.clone(), seen.clone(), ready, Seen::network));
        told.wait_for(|ready| *ready == 2).await.unwrap();
        Self {
            seen,
            _watches: watches,
        }
    }

    /// What must not have happened, and what must not be: a node that hands out from another's block.
    pub fn breaches(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let listed = seen.listed.iter();
        let listed =
            listed.flat_map(|(node, blocks)| blocks.iter().map(move |block| (node, block)));
        let foreign = listed.filter(|(node, block)| seen.owners.get(*block) != Some(*node));
        let foreign =
            foreign.map(|(node, block)| format!("{node} uses {block}, which is not its own"));
        seen.breaches.iter().cloned().chain(foreign).collect()
    }

    /// How many blocks were ever owned.
    pub fn blocks(&self) -> usize {
        self.seen.lock().unwrap().owners.len()
    }
}

async fn follow<K>(
    client: Client,
    seen: Arc<Mutex<Seen>>,
    ready: watch::Sender<i32>,
    note: fn(&mut Seen, &Change<'_, K>),
) where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher::watcher(Api::<K>::all(client), watcher::Config::default());
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let mut seen = seen.lock().unwrap();
        match event.unwrap() {
            Event::Apply(object) | Event::InitApply(object) => {
                note(&mut seen, &Change::Is(&object));
            }
            Event::Delete(object) => note(&mut seen, &Change::Gone(&object)),
            Event::InitDone => ready.send_modify(|ready| *ready += 1),
            Event::Init => {}
        }
    }
}

impl Seen {
    fn subnet(&mut self, change: &Change<'_, NodeSubnet>) {
        let spec = match change {
            Change::Is(subnet) => &subnet.spec,
            Change::Gone(subnet) => {
                let (cidr, node) = (subnet.spec.cidr, &subnet.spec.node);
                return self.breaches.push(format!("{cidr} was taken from {node}"));
            }
        };
        for (cidr, owner) in &self.owners {
            let shared = cidr.contains(&spec.cidr) || spec.cidr.contains(cidr);
            if shared && (*cidr != spec.cidr || *owner != spec.node) {
                let breach = format!(
                    "{} of {} shares addresses with {cidr} of {owner}",
                    spec.cidr, spec.node
                );
                self.breaches.push(breach);
            }
        }
        self.owners.insert(spec.cidr, spec.node.clone());
    }

    fn network(&mut self, change: &Change<'_, NodeNetwork>) {
        let (name, now): (_, BTreeSet<_>) = match change {
            Change::Is(network) => {
                let subnets = network.spec.subnets.iter().copied();
                (network.name_any(), subnets.collect())
            }
            Change::Gone(network) => (network.name_any(), BTreeSet::new()),
        };
        let before = self
            .listed
            .insert(name.clone(), now.clone())
            .unwrap_or_default();
        for lost in before.difference(&now) {
            self.breaches
                .push(format!("{name} may no longer use {lost}"));
        }
    }
}
