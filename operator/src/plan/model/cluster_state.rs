//! Input ([`ClusterState`]) and output ([`Plan`]) of the planner.
//!
//! ```text
//!   watches ─▶ ClusterState ─▶ plan() ─▶ Plan ─▶ writes
//! ```
//!
//! Both are plain data. A `ClusterState` is all objects at one moment. A `Plan` is all differences between these
//! objects and the desired ones. The plan for a converged cluster is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::core::Selector;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{
    BGPPeer, BGPPeerStatus, IPPool, IPPoolStatus, NetworkMode, NetworkModeStatus, NodeNetwork,
    NodeSubnet,
};

use crate::plan::model::secret::{PasswordChange, Secret};

/// All objects that a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct ClusterState<'a> {
    /// All IPPools.
    pub pools: Vec<&'a IPPool>,
    /// All NetworkModes.
    pub modes: Vec<&'a NetworkMode>,
    /// All BGPPeers.
    pub peers: Vec<&'a BGPPeer>,
    /// All Nodes, with names, labels, `spec.podCIDRs`, `status.addresses` and two conditions.
    pub nodes: Vec<&'a Node>,
    /// Labels of the Nodes on which the agent runs; empty: all Nodes.
    pub agent_nodes: Selector,
    /// All NodeSubnets.
    pub subnets: Vec<&'a NodeSubnet>,
    /// All NodeNetworks.
    pub networks: Vec<&'a NodeNetwork>,
    /// All ServiceCIDRs.
    pub services: Vec<&'a ServiceCIDR>,
    /// The ConfigMap of kube-proxy, if it exists.
    pub kube_proxy: Option<&'a ConfigMap>,
    /// Whether `spec.podCIDRs` of Nodes are no sign of another network.
    pub ignore_pod_cidrs: bool,
    /// Whether the nodes run no relay for encapsulation udp.
    pub without_udp_relay: bool,
    /// Whether the nodes run no BIRD for mode underlay.
    pub without_bird: bool,
    /// Names of the Secrets that BGPPeers can name.
    pub password_secrets: BTreeSet<String>,
    /// Secrets of the release's namespace that have been looked up, by name; `None`: the Secret does not exist.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// Owners of the pods that keep pools from being drained, as far as they have been looked up.
    pub pod_owners: PodOwners,
    /// Objects of users that exist and cannot be parsed.
    pub unreadable: Vec<Unreadable>,
    /// Blocks of NodeSubnets that exist and cannot be parsed. They must not be assigned to another node.
    pub unreadable_blocks: BTreeSet<IpNet>,
    /// Names of orphaned NodeSubnets whose grace period is over.
    pub expired: BTreeSet<String>,
    /// Names of orphaned NodeSubnets that can be reclaimed if no other block is free, the longest orphaned first.
    pub reclaimable: Vec<String>,
    /// Pools whose utilization was written within the last seconds. A status that differs only in its utilization
    /// waits.
    pub recent_usage_writes: BTreeSet<String>,
    /// Names of NodeSubnets that have been surplus for the whole delay.
    pub surplus: BTreeSet<String>,
    /// Nodes that are not Ready, and for how long this leader has observed that.
    pub not_ready: BTreeMap<String, Duration>,
    /// Nodes whose agent has not acknowledged the current NodeNetwork, and for how long this leader has observed that.
    pub unacknowledged: BTreeMap<String, Duration>,
    /// Blocks whose release this leader has observed, the longest released first.
    pub released: Vec<IpNet>,
    /// The transition time of conditions that change.
    pub now: Timestamp,
}

/// An object of a user that cannot be parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Kind of the object.
    pub kind: UserKind,
    /// Metadata of the object.
    pub metadata: ObjectMeta,
    /// The error of the parser.
    pub error: String,
}

impl Unreadable {
    /// The verdict about the object.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::stalled(
            Reason::Invalid,
            format!("the object cannot be read: {}", self.error),
        )
    }
}

/// Kinds of objects that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UserKind {
    /// IPPool.
    Pool,
    /// NetworkMode.
    Mode,
    /// BGPPeer.
    Peer,
}

/// All writes that are due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Finalizers of pools.
    pub finalizers: Vec<FinalizerChange>,
    /// Blocks.
    pub subnets: Changes<NodeSubnet>,
    /// Specs of NodeNetworks. A new spec refers to blocks that the same plan creates, so it is written after the
    /// NodeSubnets.
    pub networks: Changes<NodeNetwork>,
    /// Statuses of IPPools.
    pub pool_statuses: Vec<StatusChange<IPPoolStatus>>,
    /// Statuses of NetworkModes.
    pub mode_statuses: Vec<StatusChange<NetworkModeStatus>>,
    /// Statuses of BGPPeers.
    pub peer_statuses: Vec<StatusChange<BGPPeerStatus>>,
    /// The Secret of the agents' BGP passwords.
    pub passwords: Option<PasswordChange>,
    /// Nodes whose condition `NetworkUnavailable` must be cleared.
    pub network_up: Vec<NetworkUp>,
    /// The condition `Assigned` of NodeNetworks.
    pub assigned: Vec<StatusChange<Condition>>,
}

impl Plan {
    /// Whether no write is due.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Objects to create, to update and to delete.
///
/// Updated and deleted objects are complete and carry the `uid` and `resourceVersion` that the plan is based on, so the
/// API server refuses a write that is based on an outdated state.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<K> {
    /// Objects that do not exist.
    pub create: Vec<K>,
    /// Objects that differ.
    pub update: Vec<K>,
    /// Objects that are no longer needed.
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

/// The desired finalizers of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalizerChange {
    /// Name of the pool.
    pub name: String,
    /// UID of the pool that the plan is based on.
    pub uid: Option<String>,
    /// Resource version that the plan is based on.
    pub resource_version: Option<String>,
    /// All finalizers, including those of other controllers.
    pub finalizers: Vec<String>,
}

/// A status that differs from the object's current status.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusChange<S> {
    /// Name of the object.
    pub name: String,
    /// UID of the object that the plan is based on.
    pub uid: Option<String>,
    /// The status, or the operator's part of it.
    pub status: S,
    /// The Event to publish if the status or the reason of the condition changes that sums up the object (`Ready`, or
    /// `Assigned` of a NodeNetwork).
    pub event: Option<ConditionEvent>,
}

/// The Event about a changed condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionEvent {
    /// Type of the condition that changed.
    pub condition: String,
    /// Reason of the condition.
    pub reason: String,
    /// Message of the condition.
    pub message: String,
    /// Whether a user has to act.
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

/// A Node whose condition `NetworkUnavailable` is set to False.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkUp {
    /// Name of the Node.
    pub node: String,
    /// UID of the Node.
    pub uid: Option<String>,
    /// Transition time, by the operator's clock.
    pub since: Timestamp,
}

/// Owners of pods, as kind and name.
pub type PodOwners = BTreeMap<PodKey, String>;

/// Namespace and name of a pod.
pub type PodKey = (String, String);
