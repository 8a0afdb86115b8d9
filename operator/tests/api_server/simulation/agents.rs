//! [`Agents`]: in the place of all agents, acknowledges NodeNetworks and says how many pods there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::NodeNetwork;
use serde_json::json;
use tokio::task::JoinSet;

use super::nodes::name;
use crate::ledger::{Book, Ledger, Network};

/// Reports under way at a time.
const BATCH: usize = 16;
/// Pods of a node that has room, and of one that runs short.
const PODS: (i64, i64) = (5, 55);
/// Addresses for pods in a block, but for the tunnel's.
const BLOCK: i64 = 61;

/// All agents.
pub struct Agents {
    shared: Arc<Shared>,
    task: JoinSet<()>,
}

struct Shared {
    api: Api<NodeNetwork>,
    ledger: Arc<Ledger>,
    pods: Mutex<BTreeMap<String, i64>>,
    /// What was last said: of which object and generation, and how many pods.
    said: Mutex<BTreeMap<String, Said>>,
}

type Said = (Option<String>, Option<i64>, i64);

impl Agents {
    /// They say nothing yet.
    pub fn new(admin: &Client, ledger: &Arc<Ledger>) -> Self {
        let shared = Arc::new(Shared {
            api: Api::all(admin.clone()),
            ledger: ledger.clone(),
            pods: Mutex::default(),
            said: Mutex::default(),
        });
        Self {
            shared,
            task: JoinSet::new(),
        }
    }

    /// They begin to report.
    pub fn start(&mut self) {
        self.task.spawn(self.shared.clone().report());
    }

    /// Whether nothing is left to say.
    pub fn have_said_all(&self, book: &Book) -> bool {
        self.shared.due(book).is_empty()
    }

    /// Pods come to these nodes, until they run short, or go again.
    pub fn fill(&self, numbers: &[usize], full: bool) {
        let mut pods = self.shared.pods.lock().unwrap();
        pods.extend(numbers.iter().map(|number| {
            let count = if full { PODS.1 } else { PODS.0 };
            (name(*number), count)
        }));
    }

    /// This node has so many pods now.
    pub fn have(&self, number: usize, count: i64) {
        let mut pods = self.shared.pods.lock().unwrap();
        pods.insert(name(number), count);
    }

    /// How many blocks of each pool a node is to have.
    pub fn wanted(&self) -> impl Fn(&str) -> usize + use<> {
        let pods = self.shared.pods.lock().unwrap().clone();
        move |node| {
            if pods.get(node) == Some(&PODS.1) {
                2
            } else {
                1
            }
        }
    }
}

impl Shared {
    async fn report(self: Arc<Self>) {
        loop {
            let due = self.ledger.with(|book| self.due(book));
            let reports = due.into_iter().map(|(name, network, pods)| {
                let own = self.clone();
                async move { own.say(&name, &network, pods).await }
            });
            let reports = futures::stream::iter(reports).buffer_unordered(BATCH);
            reports.collect::<()>().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// NodeNetworks of Nodes that are there, of which something else was said last, or nothing.
    fn due(&self, book: &Book) -> Vec<(String, Network, i64)> {
        let (pods, said) = (self.pods.lock().unwrap(), self.said.lock().unwrap());
        let own = book.networks().iter().filter(|(name, network)| {
            let uid = book.uid_of(name).flatten();
            uid.is_some() && uid == network.owner.as_deref()
        });
        let counted = own.map(|(name, network)| {
            let pods = pods.get(name).copied().unwrap_or(PODS.0);
            (name, network, pods)
        });
        let due = counted.filter(|(name, network, pods)| {
            said.get(*name) != Some(&(network.uid.clone(), network.generation, *pods))
        });
        due.map(|(name, network, pods)| (name.clone(), network.clone(), pods))
            .collect()
    }

    /// The first block of each family holds all pods. What is refused is said again.
    async fn say(&self, name: &str, network: &Network, pods: i64) {
        let mut usage = Vec::new();
        for cidr in &network.subnets {
            let of_family = |other: &&IpNet| other.addr().is_ipv4() == cidr.addr().is_ipv4();
            let first = network.subnets.iter().find(of_family) == Some(cidr);
            let used = if first { pods } else { 0 };
            self.ledger.with(|book| book.uses(name, *cidr, used));
            usage.push(json!({ "cidr": cidr, "used": used, "free": BLOCK - used }));
        }
        let status = json!({
            "apiVersion": "netweft.io/v1alpha1",
            "kind": "NodeNetwork",
            "metadata": { "name": name, "uid": network.uid },
            "status": {
                "observedGeneration": network.generation,
                "subnets": usage,
                "conditions": [{ "type": "Ready", "status": "True", "reason": "Programmed", "message": "",
                    "lastTransitionTime": Timestamp::UNIX_EPOCH.to_string() }],
            },
        });
        let params = PatchParams::apply("netweft-agent").force();
        let patch = Patch::Apply(status);
        if self.api.patch_status(name, &params, &patch).await.is_ok() {
            let said = (network.uid.clone(), network.generation, pods);
            self.said.lock().unwrap().insert(name.to_owned(), said);
        }
    }
}
