//! [`Agents`]: simulates all agents. They acknowledge NodeNetworks and report numbers of pods.

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
use crate::invariants::{InvariantChecker, InvariantMonitor, ObservedNetwork};

/// Maximum number of concurrent reports.
const CONCURRENCY: usize = 16;
/// Number of pods of a node with enough addresses, and of a node with few free addresses.
const PODS: (i64, i64) = (5, 55);
/// Addresses of a block that pods can use.
const BLOCK_SIZE: i64 = 61;

/// All simulated agents.
pub struct Agents {
    shared: Arc<Shared>,
    task: JoinSet<()>,
}

struct Shared {
    api: Api<NodeNetwork>,
    monitor: Arc<InvariantMonitor>,
    pods: Mutex<BTreeMap<String, i64>>,
    /// The last report for each NodeNetwork: UID, generation, and number of pods.
    reports: Mutex<BTreeMap<String, LastReport>>,
}

type LastReport = (Option<String>, Option<i64>, i64);

impl Agents {
    /// Agents that do not report yet.
    pub fn new(admin: &Client, monitor: &Arc<InvariantMonitor>) -> Self {
        let shared = Arc::new(Shared {
            api: Api::all(admin.clone()),
            monitor: monitor.clone(),
            pods: Mutex::default(),
            reports: Mutex::default(),
        });
        Self {
            shared,
            task: JoinSet::new(),
        }
    }

    /// Starts reporting.
    pub fn start(&mut self) {
        self.task.spawn(self.shared.clone().report());
    }

    /// Whether all NodeNetworks have a current report.
    pub fn have_reported(&self, checker: &InvariantChecker) -> bool {
        self.shared.due(checker).is_empty()
    }

    /// Sets many or few pods on these nodes.
    pub fn fill(&self, numbers: &[usize], many: bool) {
        let mut pods = self.shared.pods.lock().unwrap();
        pods.extend(numbers.iter().map(|number| {
            let count = if many { PODS.1 } else { PODS.0 };
            (name(*number), count)
        }));
    }

    /// Sets the number of pods of a node.
    pub fn set_pods(&self, number: usize, count: i64) {
        let mut pods = self.shared.pods.lock().unwrap();
        pods.insert(name(number), count);
    }

    /// Number of blocks of each pool that a node needs.
    pub fn expected_count(&self) -> impl Fn(&str) -> usize + use<> {
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
            let due = self.monitor.with(|checker| self.due(checker));
            let reports = due.into_iter().map(|(name, network, pods)| {
                let shared = self.clone();
                async move { shared.report_node(&name, &network, pods).await }
            });
            let reports = futures::stream::iter(reports).buffer_unordered(CONCURRENCY);
            reports.collect::<()>().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// NodeNetworks of existing Nodes whose last report differs from the current state.
    fn due(&self, checker: &InvariantChecker) -> Vec<(String, ObservedNetwork, i64)> {
        let (pods, reports) = (self.pods.lock().unwrap(), self.reports.lock().unwrap());
        let owned = checker.networks().iter().filter(|(name, network)| {
            let uid = checker.node_uid(name).flatten();
            uid.is_some() && uid == network.owner.as_deref()
        });
        let counted = owned.map(|(name, network)| {
            let pods = pods.get(name).copied().unwrap_or(PODS.0);
            (name, network, pods)
        });
        let due = counted.filter(|(name, network, pods)| {
            reports.get(*name) != Some(&(network.uid.clone(), network.generation, *pods))
        });
        due.map(|(name, network, pods)| (name.clone(), network.clone(), pods))
            .collect()
    }

    /// Reports all pods in the first block of each family. A failed report is repeated later.
    async fn report_node(&self, name: &str, network: &ObservedNetwork, pods: i64) {
        let mut usage = Vec::new();
        for cidr in &network.subnets {
            let of_family = |other: &&IpNet| other.addr().is_ipv4() == cidr.addr().is_ipv4();
            let first = network.subnets.iter().find(of_family) == Some(cidr);
            let used = if first { pods } else { 0 };
            self.monitor
                .with(|checker| checker.set_pods(name, *cidr, used));
            usage.push(json!({ "cidr": cidr, "used": used, "free": BLOCK_SIZE - used }));
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
            let reports = (network.uid.clone(), network.generation, pods);
            self.reports
                .lock()
                .unwrap()
                .insert(name.to_owned(), reports);
        }
    }
}
