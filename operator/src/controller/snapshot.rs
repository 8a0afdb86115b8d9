//! [`Snapshot`]: the content of all local copies at one moment, as a [`ClusterState`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::core::Selector;
use netweft_crds::names::node_subnet_cidr;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet};

use crate::controller::timers::Elapsed;
use crate::controller::watches::{Guarded, Stores};
use crate::plan::model::cluster_state::{ClusterState, PodOwners, Unreadable, UserKind};
use crate::plan::model::secret::Secret;

/// The content of all local copies.
pub struct Snapshot {
    pools: Vec<Arc<Guarded<IPPool>>>,
    modes: Vec<Arc<Guarded<NetworkMode>>>,
    peers: Vec<Arc<Guarded<BGPPeer>>>,
    nodes: Vec<Arc<Guarded<Node>>>,
    subnets: Vec<Arc<Guarded<NodeSubnet>>>,
    networks: Vec<Arc<Guarded<NodeNetwork>>>,
    services: Vec<Arc<Guarded<ServiceCIDR>>>,
    kube_proxy: Vec<Arc<Guarded<ConfigMap>>>,
    /// Metadata of Nodes that cannot be parsed.
    unreadable_nodes: Vec<Node>,
}

/// Properties of the cluster that the operator's flags set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Labels of the Nodes on which the agent runs.
    pub agent_nodes: Selector,
    /// Whether `spec.podCIDRs` of Nodes are no sign of another network.
    pub ignore_pod_cidrs: bool,
    /// Whether nodes have the relay for encapsulation udp.
    pub udp_relay: bool,
    /// Whether nodes have BIRD for mode underlay.
    pub bird: bool,
    /// Names of the Secrets that BGPPeers can name.
    pub password_secrets: BTreeSet<String>,
}

/// The parts of a cluster state that are not copies of watched objects.
pub struct Context<'a> {
    /// The settings of the operator's flags.
    pub settings: &'a Settings,
    /// The results of the timers.
    pub elapsed: Elapsed,
    /// Secrets of the release's namespace that have been looked up, by name.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// PodOwners of the pods that keep pools from being drained.
    pub pod_owners: PodOwners,
    /// The transition time of conditions that change.
    pub now: Timestamp,
}

impl Snapshot {
    /// Copies the current content of `stores`.
    pub fn take(stores: &Stores) -> Self {
        let nodes = stores.nodes.state();
        let unreadable_nodes = unreadable(&nodes)
            .map(|(metadata, _)| node_without_content(metadata))
            .collect();
        Self {
            pools: stores.pools.state(),
            modes: stores.modes.state(),
            peers: stores.peers.state(),
            subnets: stores.subnets.state(),
            networks: stores.networks.state(),
            services: stores.services.state(),
            kube_proxy: stores.kube_proxy.state(),
            nodes,
            unreadable_nodes,
        }
    }

    /// The Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        readable(&self.nodes)
    }

    /// The NodeSubnets.
    pub fn subnets(&self) -> impl Iterator<Item = &NodeSubnet> {
        readable(&self.subnets)
    }

    /// The NodeNetworks.
    pub fn networks(&self) -> impl Iterator<Item = &NodeNetwork> {
        readable(&self.networks)
    }

    /// The BGPPeers.
    pub fn peers(&self) -> impl Iterator<Item = &BGPPeer> {
        readable(&self.peers)
    }

    /// The cluster state for a plan.
    pub fn cluster_state(&self, context: Context<'_>) -> ClusterState<'_> {
        let Context {
            settings,
            elapsed,
            secrets,
            pod_owners,
            now,
        } = context;
        let user_objects = user_objects(&self.pools, UserKind::Pool)
            .chain(user_objects(&self.modes, UserKind::Mode))
            .chain(user_objects(&self.peers, UserKind::Peer));
        let names = unreadable(&self.subnets).filter_map(|(metadata, _)| metadata.name.as_deref());
        ClusterState {
            pools: readable(&self.pools).collect(),
            modes: readable(&self.modes).collect(),
            peers: readable(&self.peers).collect(),
            nodes: readable(&self.nodes)
                .chain(&self.unreadable_nodes)
                .collect(),
            agent_nodes: settings.agent_nodes.clone(),
            subnets: readable(&self.subnets).collect(),
            networks: readable(&self.networks).collect(),
            services: readable(&self.services).collect(),
            kube_proxy: readable(&self.kube_proxy).next(),
            ignore_pod_cidrs: settings.ignore_pod_cidrs,
            without_udp_relay: !settings.udp_relay,
            without_bird: !settings.bird,
            password_secrets: settings.password_secrets.clone(),
            secrets,
            pod_owners,
            unreadable: user_objects.collect(),
            unreadable_blocks: names.filter_map(node_subnet_cidr).collect(),
            expired: elapsed.expired,
            reclaimable: elapsed.reclaimable,
            recent_usage_writes: elapsed.recent_usage_writes,
            surplus: elapsed.surplus,
            not_ready: elapsed.not_ready,
            unacknowledged: elapsed.unacknowledged,
            released: elapsed.released,
            now,
        }
    }
}

fn readable<K>(objects: &[Arc<Guarded<K>>]) -> impl Iterator<Item = &K> {
    objects.iter().filter_map(|object| object.0.as_ref().ok())
}

fn unreadable<K>(objects: &[Arc<Guarded<K>>]) -> impl Iterator<Item = (&ObjectMeta, &str)> {
    let errors = objects.iter().filter_map(|object| object.0.as_ref().err());
    errors.map(|invalid| (&invalid.metadata, invalid.error.as_str()))
}

fn user_objects<K>(
    objects: &[Arc<Guarded<K>>],
    kind: UserKind,
) -> impl Iterator<Item = Unreadable> {
    unreadable(objects).map(move |(metadata, error)| Unreadable {
        kind,
        metadata: metadata.clone(),
        error: error.to_owned(),
    })
}

/// A Node that cannot be parsed exists: its blocks are not orphaned.
fn node_without_content(metadata: &ObjectMeta) -> Node {
    Node {
        metadata: metadata.clone(),
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn arcs<K: DeserializeOwned + kube::Resource>(values: &[Value]) -> Vec<Arc<Guarded<K>>> {
        values
            .iter()
            .map(|value| Arc::new(serde_json::from_value(value.clone()).unwrap()))
            .collect()
    }

    #[test]
    fn unreadable_objects_are_kept_in_cluster_state() {
        let nodes = arcs(&[
            json!({ "metadata": { "name": "n", "uid": "u" }, "status": { "addresses": 5 } }),
        ]);
        let snapshot = Snapshot {
            pools: arcs(&[json!({ "metadata": { "name": "p" }, "spec": { "cidr": 7 } })]),
            modes: Vec::new(),
            peers: Vec::new(),
            unreadable_nodes: unreadable(&nodes)
                .map(|(metadata, _)| node_without_content(metadata))
                .collect(),
            nodes,
            subnets: arcs(&[json!({ "metadata": { "name": "10-0-0-0-26" }, "spec": {} })]),
            networks: Vec::new(),
            services: Vec::new(),
            kube_proxy: Vec::new(),
        };
        let settings = Settings {
            agent_nodes: Selector::default(),
            ignore_pod_cidrs: false,
            udp_relay: true,
            bird: true,
            password_secrets: BTreeSet::new(),
        };
        let cluster_state = snapshot.cluster_state(Context {
            settings: &settings,
            elapsed: Elapsed::default(),
            secrets: BTreeMap::new(),
            pod_owners: BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(cluster_state.nodes.len(), 1);
        assert_eq!(cluster_state.nodes[0].metadata.uid.as_deref(), Some("u"));
        assert_eq!(
            cluster_state.unreadable_blocks,
            ["10.0.0.0/26".parse().unwrap()].into()
        );
        assert_eq!(
            (cluster_state.pools.len(), cluster_state.unreadable[0].kind),
            (0, UserKind::Pool)
        );
    }
}
