//! A cluster in memory for tests. It holds the objects of a cluster, and applies plans as the API server does.

mod agents;
mod api;
mod apply;
mod bgp;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::Selector;
use netweft_crds::condition::READY;
use netweft_crds::{BGPPeer, IPPool, IpFamily, NetworkMode, NodeNetwork, NodeSubnet};

use crate::plan;
use crate::plan::bgp::passwords::secret_names;
use crate::plan::model::cluster_state::{ClusterState, Plan, PodOwners};
use crate::plan::model::secret::Secret;

pub use crate::testing::api::{error_response, responding_client, unresponsive_client};
pub use crate::testing::bgp::{labelled, peer, secret, underlay};
pub use crate::testing::objects::{
    at, condition, kube_proxy, mode, node, pool, services, vxlan, yaml,
};

/// The objects of a cluster, and the results of the timers.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub pools: Vec<IPPool>,
    pub modes: Vec<NetworkMode>,
    pub peers: Vec<BGPPeer>,
    pub nodes: Vec<Node>,
    pub subnets: Vec<NodeSubnet>,
    pub networks: Vec<NodeNetwork>,
    pub services: Vec<ServiceCIDR>,
    pub kube_proxy: Option<ConfigMap>,
    pub secrets: BTreeMap<String, Option<Secret>>,
    pub pod_owners: PodOwners,
    pub without_bird: bool,
    pub unreadable_secrets: bool,
    pub ignore_pod_cidrs: bool,
    pub expired: BTreeSet<String>,
    pub surplus: BTreeSet<String>,
    pub reclaimable: Vec<String>,
    pub recent_usage_writes: BTreeSet<String>,
    pub not_ready: BTreeMap<String, Duration>,
    pub unacknowledged: BTreeMap<String, Duration>,
    pub agent_nodes: Selector,
    pub released: Vec<ipnet::IpNet>,
    /// Current time in seconds, for new objects and conditions.
    pub clock: i64,
    /// The last resource version.
    pub versions: u64,
}

/// The default objects of the chart, and `nodes` Nodes.
pub fn cluster(nodes: usize) -> Cluster {
    Cluster {
        pools: vec![at(0, pool("default-v4", "10.244.0.0/16", ""))],
        modes: vec![at(0, vxlan("default", 4096))],
        nodes: (1..=nodes)
            .map(|n| {
                node(
                    &format!("worker-{n}"),
                    &[&format!("10.1.{}.{}", n / 250, n % 250)],
                )
            })
            .collect(),
        kube_proxy: Some(kube_proxy(
            "{detectLocalMode: InterfaceNamePrefix, detectLocal: {interfaceNamePrefix: nw}}",
        )),
        clock: 1,
        ..Cluster::default()
    }
}

impl Cluster {
    pub fn cluster_state(&self) -> ClusterState<'_> {
        ClusterState {
            pools: self.pools.iter().collect(),
            modes: self.modes.iter().collect(),
            peers: self.peers.iter().collect(),
            nodes: self.nodes.iter().collect(),
            subnets: self.subnets.iter().collect(),
            networks: self.networks.iter().collect(),
            services: self.services.iter().collect(),
            kube_proxy: self.kube_proxy.as_ref(),
            secrets: self.secrets.clone(),
            pod_owners: self.pod_owners.clone(),
            without_bird: self.without_bird,
            password_secrets: if self.unreadable_secrets {
                BTreeSet::new()
            } else {
                secret_names(self.peers.iter())
            },
            ignore_pod_cidrs: self.ignore_pod_cidrs,
            expired: self.expired.clone(),
            surplus: self.surplus.clone(),
            reclaimable: self.reclaimable.clone(),
            recent_usage_writes: self.recent_usage_writes.clone(),
            not_ready: self.not_ready.clone(),
            unacknowledged: self.unacknowledged.clone(),
            agent_nodes: self.agent_nodes.clone(),
            released: self.released.clone(),
            now: Timestamp::from_second(self.clock).unwrap(),
            ..ClusterState::default()
        }
    }

    pub fn plan(&self) -> Plan {
        plan(&self.cluster_state())
    }

    /// Makes a plan and applies it. The clock advances by one second.
    pub fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.apply(&plan);
        self.clock += 1;
        plan
    }

    /// Steps until the plan is empty.
    pub fn reconcile(&mut self) {
        self.reconcile_until(Plan::is_empty);
    }

    /// CIDRs of the blocks of a node.
    pub fn blocks(&self, node: &str) -> Vec<String> {
        let own = self
            .subnets
            .iter()
            .filter(|subnet| subnet.spec.node == node);
        own.map(|subnet| subnet.spec.cidr.to_string()).collect()
    }

    /// Address families of the tunnels of all nodes.
    pub fn outer_families(&self) -> Vec<IpFamily> {
        let modes = self.networks.iter().flat_map(|network| &network.spec.modes);
        modes.map(|mode| mode.outer_family).collect()
    }

    /// Status, reason and message of the condition `Ready` of a pool.
    pub fn pool_message(&self, name: &str) -> String {
        let pool = self
            .pools
            .iter()
            .find(|pool| pool.name_any() == name)
            .unwrap();
        condition_text(&pool.status.as_ref().unwrap().conditions, READY)
    }

    /// Asserts that a pool is Ready.
    pub fn assert_pool_allocatable(&self, name: &str) {
        let message = self.pool_message(name);
        assert!(message.starts_with("True Allocatable"), "{message}");
    }

    /// Status, reason and message of the condition `Assigned` of a NodeNetwork.
    pub fn node_message(&self, name: &str) -> String {
        let network = self
            .networks
            .iter()
            .find(|network| network.name_any() == name)
            .unwrap();
        condition_text(&network.status.as_ref().unwrap().conditions, "Assigned")
    }

    /// Steps until the plan changes at most the condition `NetworkUnavailable` of Nodes.
    pub fn reconcile_except_network_unavailable(&mut self) {
        self.reconcile_until(|plan| {
            let plan = Plan {
                network_up: Vec::new(),
                ..plan.clone()
            };
            plan.is_empty()
        });
    }

    fn reconcile_until(&mut self, is_done: impl Fn(&Plan) -> bool) {
        for _ in 0..10 {
            if is_done(&self.step()) {
                return;
            }
        }
        panic!("the plan does not become empty: {:#?}", self.plan());
    }

    /// Replaces the spec of the first mode.
    pub fn edit_mode(&mut self, spec: &str) {
        self.modes[0].spec = mode("edited", spec).spec;
    }
}

/// Status, reason and message of a condition.
fn condition_text(conditions: &[Condition], type_: &str) -> String {
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .unwrap();
    format!(
        "{} {}: {}",
        condition.status, condition.reason, condition.message
    )
}
