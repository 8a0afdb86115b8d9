//! What the operator decides from ([`ClusterState`]) and what it decides ([`Plan`]).
//!
//! ```text
//!   watches ─▶ ClusterState ─▶ plan() ─▶ Plan ─▶ writes
//! ```
//!
//! Both are plain data: a `ClusterState` is one complete picture of the cluster, a `Plan` is every difference between that
//! picture and what should be. A plan for a cluster that is as it should be is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::core::Selector;
use netweft_crds::{
    BGPPeer, BGPPeerStatus, IPPool, IPPoolStatus, NetworkMode, NetworkModeStatus, NodeNetwork,
    NodeSubnet,
};

use crate::plan::model::secret::{PasswordChange, Secret};

/// One complete picture of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterState<'a> {
    /// All IPPools.
    pub pools: Vec<&'a IPPool>,
    /// All NetworkModes.
    pub modes: Vec<&'a NetworkMode>,
    /// All BGPPeers.
    pub peers: Vec<&'a BGPPeer>,
    /// All Nodes; names, labels, `spec.podCIDRs`, `status.addresses` and two conditions are looked at.
    pub nodes: Vec<&'a Node>,
    /// Labels of the Nodes on which the agent is to run; empty: of all.
    pub agent_nodes: Selector,
    /// All NodeSubnets.
    pub subnets: Vec<&'a NodeSubnet>,
    /// All NodeNetworks.
    pub networks: Vec<&'a NodeNetwork>,
    /// The ranges of Services' addresses.
    pub services: Vec<&'a ServiceCIDR>,
    /// kube-proxy's ConfigMap, where there is one.
    pub kube_proxy: Option<&'a ConfigMap>,
    /// Whether `spec.podCIDRs` of Nodes say nothing about other networks.
    pub ignore_pod_cidrs: bool,
    /// Whether nodes have no relay for encapsulation udp.
    pub without_udp_relay: bool,
    /// Whether nodes have no BIRD for mode underlay.
    pub without_bird: bool,
    /// Secrets of the release's namespace that have been looked for, by name; `None`: there is none of that name.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// Who made the pods that keep pools from being drained, as far as known.
    pub owners: Owners,
    /// Objects of users that exist but could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Blocks of NodeSubnets that exist but could not be read. They must not be assigned to another node.
    pub unreadable_blocks: BTreeSet<IpNet>,
    /// Names of orphaned NodeSubnets whose grace has run out.
    pub expired: BTreeSet<String>,
    /// Names of orphaned NodeSubnets that can be reclaimed where no other block is left, the longest orphaned first.
    pub reclaimable: Vec<String>,
    /// Pools whose counts were written a moment ago: a change of nothing else waits.
    pub counted_lately: BTreeSet<String>,
    /// Names of NodeSubnets that have been empty for so long, beside so much room, that their nodes can do without them.
    pub surplus: BTreeSet<String>,
    /// Nodes that are not Ready, and for how long this leader has seen that.
    pub not_ready: BTreeMap<String, Duration>,
    /// Nodes whose agent has not acknowledged the present spec of the NodeNetwork, and for how long this leader has seen that.
    pub silent: BTreeMap<String, Duration>,
    /// Blocks that were given back, the longest ago first, as far as this leader knows.
    pub freed: Vec<IpNet>,
    /// The time that stands in conditions that change now.
    pub now: Timestamp,
}

/// A user's object that could not be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Its kind.
    pub kind: UserKind,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is wrong with it.
    pub error: String,
}

/// Kinds that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UserKind {
    /// IPPool.
    Pool,
    /// NetworkMode.
    Mode,
    /// BGPPeer.
    Peer,
}

/// Everything that has to be written to make the cluster as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Finalizers of pools.
    pub finalizers: Vec<FinalizerChange>,
    /// Blocks.
    pub subnets: Changes<NodeSubnet>,
    /// Specs of NodeNetworks. A new one names blocks that this very plan creates: it must not be written before they
    /// exist.
    pub networks: Changes<NodeNetwork>,
    /// Statuses of IPPools.
    pub pool_statuses: Vec<StatusChange<IPPoolStatus>>,
    /// Statuses of NetworkModes.
    pub mode_statuses: Vec<StatusChange<NetworkModeStatus>>,
    /// Statuses of BGPPeers.
    pub peer_statuses: Vec<StatusChange<BGPPeerStatus>>,
    /// The Secret of the agents' BGP passwords.
    pub passwords: Option<PasswordChange>,
    /// Nodes whose condition `NetworkUnavailable` is to be cleared.
    pub network_up: Vec<NetworkUp>,
    /// The condition `Assigned` of NodeNetworks.
    pub assigned: Vec<StatusChange<Condition>>,
}

impl Plan {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Objects to create, to update and to delete.
///
/// Updated and deleted objects are complete and carry the `uid` and `resourceVersion` that were looked at, so that a
/// write that rests on an old picture is refused by the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<K> {
    /// Objects that are not there.
    pub create: Vec<K>,
    /// Objects that are there and differ.
    pub update: Vec<K>,
    /// Objects that have served.
    pub delete: Vec<K>,
}

impl<K> Default for Changes<K> {
    fn default() -> Self {
        Self {
            create: Vec::new(),
            update: Vec::new(),
            delete: Vec::new(),
        }
    }
}

/// The finalizers a pool shall have from now on.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalizerChange {
    /// Name of the pool.
    pub name: String,
    /// The pool that was looked at.
    pub uid: Option<String>,
    /// The version that was looked at.
    pub resource_version: Option<String>,
    /// All its finalizers, other people's included.
    pub finalizers: Vec<String>,
}

/// A status that differs from the object's current status.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusChange<S> {
    /// Name of the object.
    pub name: String,
    /// The object that was looked at.
    pub uid: Option<String>,
    /// The status, or the part of it that is the operator's.
    pub status: S,
    /// What is worth an event: the condition by which a human judges the object (`Ready`, or `Assigned` on a
    /// NodeNetwork) has another status or reason than before.
    pub event: Option<ConditionEvent>,
}

/// The Event for a user when an object's condition has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionEvent {
    /// Type of the condition that changed.
    pub condition: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// Whether it takes a human to make it better.
    pub warning: bool,
}

impl ConditionEvent {
    /// The Event to publish when `new` replaces the condition of its type in `before`.
    #[must_use]
    pub fn of(before: &[Condition], new: &Condition, warning: bool) -> Option<Self> {
        let same = |old: &Condition| {
            (&old.type_, &old.status, &old.reason) == (&new.type_, &new.status, &new.reason)
        };
        (!before.iter().any(same)).then(|| Self {
            condition: new.type_.clone(),
            reason: new.reason.clone(),
            message: new.message.clone(),
            warning,
        })
    }
}

/// A Node that is told that its network is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkUp {
    /// Its name.
    pub node: String,
    /// Its UID.
    pub uid: Option<String>,
    /// Since when, by the operator's clock.
    pub since: Timestamp,
}

/// Who made pods, by namespace and name.
pub type Owners = BTreeMap<(String, String), String>;
