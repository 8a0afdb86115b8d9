//! A cluster in memory for tests: it owns the objects of a cluster and carries out plans as the API server would.

mod api;
mod bgp;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::core::Selector;
use kube::{Resource, ResourceExt};
use netweft_crds::condition::READY;
use netweft_crds::{
    BGPPeer, BlockUsage, FoundAddress, IPPool, IpFamily, LinkStatus, NetworkMode, NodeNetwork,
    NodeNetworkStatus, NodeSubnet, ProbeStatus,
};
use serde::de::DeserializeOwned;

use crate::plan;
use crate::plan::model::cluster_state::{Changes, ClusterState, Plan, StatusChange};
use crate::plan::model::secret::Secret;

pub use crate::testing::api::{error_response, responding_client, unresponsive_client};
pub use crate::testing::bgp::{labelled, peer, secret, underlay};

/// The cluster.
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
    pub pod_owners: plan::model::cluster_state::PodOwners,
    pub without_bird: bool,
    pub ignore_pod_cidrs: bool,
    pub expired: BTreeSet<String>,
    pub surplus: BTreeSet<String>,
    pub reclaimable: Vec<String>,
    pub recent_usage_writes: BTreeSet<String>,
    pub not_ready: BTreeMap<String, Duration>,
    pub unacknowledged: BTreeMap<String, Duration>,
    pub agent_nodes: Selector,
    pub released: Vec<ipnet::IpNet>,
    /// Seconds since the beginning; the time of every new object and condition.
    pub clock: i64,
    /// How many versions of objects there have been.
    pub versions: u64,
}

/// An object from YAML.
pub fn yaml<K: DeserializeOwned>(text: &str) -> K {
    serde_saphyr::from_str(text).unwrap()
}

/// A pool with this range and these further fields of its spec.
pub fn pool(name: &str, cidr: &str, more: &str) -> IPPool {
    yaml(&format!(
        "{{apiVersion: netweft.io/v1alpha1, kind: IPPool, metadata: {{name: {name}, generation: 1}}, spec: {{cidr: '{cidr}', {more}}}}}"
    ))
}

/// A mode with this spec.
pub fn mode(name: &str, spec: &str) -> NetworkMode {
    yaml(&format!(
        "{{apiVersion: netweft.io/v1alpha1, kind: NetworkMode, metadata: {{name: {name}, generation: 1}}, spec: {spec}}}"
    ))
}

/// VXLAN with this VNI.
pub fn vxlan(name: &str, vni: u32) -> NetworkMode {
    mode(
        name,
        &format!("{{mode: overlay, overlay: {{encapsulation: vxlan, vxlan: {{vni: {vni}}}}}}}"),
    )
}

/// A Node with these InternalIPs.
pub fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|a| format!("{{type: InternalIP, address: '{a}'}}"))
        .collect();
    yaml(&format!(
        "{{metadata: {{name: {name}, uid: uid-{name}, labels: {{kubernetes.io/hostname: {name}}}}}, status: {{addresses: [{}]}}}}",
        addresses.join(", ")
    ))
}

/// A range of Services' addresses.
pub fn services(name: &str, cidr: &str) -> ServiceCIDR {
    yaml(&format!(
        "{{metadata: {{name: {name}}}, spec: {{cidrs: ['{cidr}']}}}}"
    ))
}

/// kube-proxy's ConfigMap with this configuration.
pub fn kube_proxy(configuration: &str) -> ConfigMap {
    yaml(&format!(
        "{{metadata: {{name: kube-proxy}}, data: {{config.conf: \"{configuration}\"}}}}"
    ))
}

/// Created at this second.
pub fn at<K: Resource>(second: i64, mut object: K) -> K {
    object.meta_mut().creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    object
}

/// The chart's defaults and `nodes` Nodes.
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

    /// Makes a plan and carries it out; a second passes.
    pub fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.carry_out(&plan);
        self.clock += 1;
        plan
    }

    /// Steps until there is nothing left to do.
    pub fn settle(&mut self) {
        for _ in 0..10 {
            if self.step().is_empty() {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.plan());
    }

    /// Every agent reports: in sync, and so many pods in each block of up to 64 addresses.
    pub fn agents_report(&mut self, pods: i64) {
        for network in &mut self.networks {
            let usage = |cidr: &ipnet::IpNet| BlockUsage {
                cidr: *cidr,
                used: pods,
                free: 61 - pods,
            };
            let tunnels = network.spec.subnets.iter().map(|cidr| LinkStatus {
                name: "nw-vx4096".to_owned(),
                mtu: 1450,
                address: Some(cidr.addr()),
            });
            let status = network.status.get_or_insert_default();
            let assigned = status
                .conditions
                .iter()
                .filter(|c| c.type_ != READY)
                .cloned();
            let ready = condition(READY, "True", "Programmed");
            let sessions = std::mem::take(&mut status.sessions);
            let addresses = std::mem::take(&mut status.addresses);
            *status = NodeNetworkStatus {
                sessions,
                addresses,
                observed_generation: network.metadata.generation,
                subnets: network.spec.subnets.iter().map(usage).collect(),
                links: tunnels.collect(),
                conditions: assigned.chain([ready]).collect(),
                ..NodeNetworkStatus::default()
            };
        }
    }

    /// The agent of a node reports that these links have these addresses, and acknowledges its NodeNetwork.
    pub fn agent_finds(&mut self, node: &str, found: &[(&str, &str)]) {
        let networks = &mut self.networks;
        let network = networks.iter_mut().find(|it| it.name_any() == node);
        let network = network.unwrap();
        let selectors = network.spec.address_selectors.clone().unwrap_or_default();
        let status = network.status.get_or_insert_default();
        status.observed_generation = network.metadata.generation;
        let found = found.iter().map(|(interface, address)| {
            let address = address.parse().unwrap();
            let selector = selectors.of(IpFamily::of(address));
            FoundAddress {
                address,
                interface: (*interface).to_owned(),
                reaches: selector.and_then(|selector| selector.reaches),
            }
        });
        status.addresses = found.collect();
    }

    /// The first mode gets another spec.
    pub fn edit_mode(&mut self, spec: &str) {
        let old = &mut self.modes[0];
        old.spec = mode("edited", spec).spec;
    }

    /// Every agent reports, and that it gets no answer from `silent` by what stands by.
    pub fn agents_try(&mut self, silent: &[&str]) {
        self.agents_report(0);
        for network in &mut self.networks {
            let own = network.name_any();
            let others = silent.iter().filter(|name| **name != own);
            let silent: Vec<String> = others.map(|name| (*name).to_owned()).collect();
            let standby = network
                .spec
                .modes
                .iter()
                .filter(|mode| !mode.standby_pools.is_empty());
            let tried = standby.map(|mode| ProbeStatus {
                mode: mode.name.clone(),
                transport: mode.transport.get().unwrap().into(),
                probed: 1,
                unreachable: silent.clone(),
                protocols: vec!["ICMP echo".to_owned(), "UDP port 9471".to_owned()],
                message: None,
            });
            network.status.get_or_insert_default().probes = tried.collect();
        }
    }

    /// Agents carry out and try what they are told, until a change is over.
    pub fn follow(&mut self) {
        for _ in 0..self.nodes.len() + 5 {
            self.settle();
            self.agents_try(&[]);
        }
    }

    /// The cidrs of a node's blocks.
    pub fn blocks(&self, node: &str) -> Vec<String> {
        let own = self
            .subnets
            .iter()
            .filter(|subnet| subnet.spec.node == node);
        own.map(|subnet| subnet.spec.cidr.to_string()).collect()
    }

    /// Families of the tunnels, by node.
    pub fn outer_families(&self) -> Vec<IpFamily> {
        let modes = self.networks.iter().flat_map(|network| &network.spec.modes);
        modes.map(|mode| mode.outer_family).collect()
    }

    /// Reason and message of a pool's `Ready`.
    pub fn pool_message(&self, name: &str) -> String {
        let pool = self
            .pools
            .iter()
            .find(|pool| pool.name_any() == name)
            .unwrap();
        say(&pool.status.as_ref().unwrap().conditions, READY)
    }

    /// Status, reason and message of a node's `Assigned`.
    pub fn node_message(&self, name: &str) -> String {
        let network = self
            .networks
            .iter()
            .find(|network| network.name_any() == name)
            .unwrap();
        say(&network.status.as_ref().unwrap().conditions, "Assigned")
    }

    /// Steps until there is nothing left to do but to tell Nodes that their network is there.
    pub fn settle_but_for_conditions_of_nodes(&mut self) {
        for _ in 0..10 {
            let mut plan = self.step();
            plan.network_up.clear();
            if plan.is_empty() {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.plan());
    }

    fn carry_out(&mut self, plan: &Plan) {
        for change in &plan.finalizers {
            let pool = self
                .pools
                .iter_mut()
                .find(|pool| pool.name_any() == change.name)
                .unwrap();
            pool.metadata.finalizers = Some(change.finalizers.clone());
        }
        self.pools.retain(|pool| {
            pool.metadata.deletion_timestamp.is_none() || !pool.finalizers().is_empty()
        });
        if let Some(change) = &plan.passwords {
            self.keep_passwords(change);
        }
        let (clock, versions) = (self.clock, &mut self.versions);
        change(
            &mut self.subnets,
            &plan.subnets,
            clock,
            versions,
            |old, new| old.spec != new.spec,
        );
        change(
            &mut self.networks,
            &plan.networks,
            clock,
            versions,
            |old, new| old.spec != new.spec,
        );
        statuses(&mut self.pools, &plan.pool_statuses, |pool, status| {
            pool.status = Some(status);
        });
        statuses(&mut self.modes, &plan.mode_statuses, |mode, status| {
            mode.status = Some(status);
        });
        statuses(&mut self.peers, &plan.peer_statuses, |peer, status| {
            peer.status = Some(status);
        });
        statuses(
            &mut self.networks,
            &plan.assigned,
            |network, condition: Condition| {
                let conditions = &mut network.status.get_or_insert_default().conditions;
                conditions.retain(|old| old.type_ != condition.type_);
                conditions.push(condition);
            },
        );
    }
}

/// A condition of time 0.
pub fn condition(type_: &str, status: &str, reason: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn say(conditions: &[Condition], type_: &str) -> String {
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .unwrap();
    format!(
        "{} {}: {}",
        condition.status, condition.reason, condition.message
    )
}

fn change<K: Resource<DynamicType = ()> + Clone>(
    objects: &mut Vec<K>,
    changes: &Changes<K>,
    clock: i64,
    versions: &mut u64,
    spec_differs: fn(&K, &K) -> bool,
) {
    for new in &changes.create {
        assert!(
            objects.iter().all(|old| old.name_any() != new.name_any()),
            "409 {}",
            new.name_any()
        );
        *versions += 1;
        let mut new = at(clock, new.clone());
        let ObjectMeta {
            uid,
            resource_version,
            generation,
            ..
        } = new.meta_mut();
        (*uid, *resource_version, *generation) = (
            Some(format!("uid-{versions}")),
            Some(versions.to_string()),
            Some(1),
        );
        objects.push(new);
    }
    for new in &changes.update {
        let old = objects
            .iter_mut()
            .find(|old| old.uid() == new.uid())
            .expect("an update without its object");
        assert_eq!(old.resource_version(), new.resource_version(), "409");
        *versions += 1;
        let generation = old
            .meta()
            .generation
            .map(|g| g + i64::from(spec_differs(old, new)));
        *old = new.clone();
        old.meta_mut().generation = generation;
        old.meta_mut().resource_version = Some(versions.to_string());
    }
    for gone in &changes.delete {
        assert!(objects.iter().any(|old| old.meta() == gone.meta()), "409");
        objects.retain(|old| old.uid() != gone.uid());
    }
}

fn statuses<K: Resource<DynamicType = ()>, S: Clone>(
    objects: &mut [K],
    changes: &[StatusChange<S>],
    set: fn(&mut K, S),
) {
    for change in changes {
        let object = objects
            .iter_mut()
            .find(|object| object.name_any() == change.name);
        if let Some(object) = object {
            set(object, change.status.clone());
        }
    }
}
