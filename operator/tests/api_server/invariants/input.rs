//! Configuration and observations of the checker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;
use netweft_crds::condition::{ASSIGNED, is_true};

/// Configuration of the checker.
#[derive(Clone, Debug, Default)]
pub struct InvariantConfig {
    /// Grace period of blocks of deleted Nodes; `None`: no block is ever released.
    pub grace: Option<Duration>,
    /// Maximum difference between the arrival times of simultaneous events.
    pub event_lag: Duration,
    /// Maximum interval between two observations of the leader.
    pub observation_interval: Duration,
    /// CIDRs of the pools.
    pub pools: BTreeMap<String, IpNet>,
    /// All blocks of the pools whose assignment order is checked.
    pub blocks: BTreeMap<String, BTreeSet<IpNet>>,
}

/// A change of an object.
pub enum ObjectChange<'a, K> {
    /// The object was created or updated.
    Applied(&'a K),
    /// The object was deleted.
    Deleted(&'a K),
}

/// An observed NodeNetwork.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedNetwork {
    /// Its UID.
    pub uid: Option<String>,
    /// Resource version of the object.
    pub version: Option<String>,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// UID of its Node.
    pub owner: Option<String>,
    /// Whether the condition Assigned is True.
    pub assigned: bool,
    /// The node's blocks.
    pub subnets: Vec<IpNet>,
}

impl ObservedNetwork {
    /// The observed fields of a NodeNetwork.
    pub fn of(network: &NodeNetwork) -> Self {
        let conditions = network.status.as_ref().map(|status| &status.conditions);
        Self {
            uid: network.uid(),
            version: network.resource_version(),
            generation: network.metadata.generation,
            owner: network
                .owner_references()
                .first()
                .map(|owner| owner.uid.clone()),
            assigned: is_true(conditions.map_or(&[], Vec::as_slice), ASSIGNED),
            subnets: network.spec.subnets.clone(),
        }
    }
}
