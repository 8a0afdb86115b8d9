//! What the book is told, and by which rules it judges.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::NodeNetwork;
use netweft_crds::condition::{ASSIGNED, is_true};

/// What holds in a cluster.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// How long blocks outlive their Node; `None`: nothing is ever taken from anybody.
    pub grace: Option<Duration>,
    /// By how much one event may reach this process later than another.
    pub lag: Duration,
    /// How long may pass from one look of the leader at its cluster to the next.
    pub look: Duration,
    /// Ranges of the pools.
    pub pools: BTreeMap<String, IpNet>,
    /// All blocks of a pool, where the order in which they are given away is to be looked at.
    pub blocks: BTreeMap<String, BTreeSet<IpNet>>,
}

/// What happened to an object.
pub enum Change<'a, K> {
    /// It is there, as it is now.
    Is(&'a K),
    /// It was deleted.
    Gone(&'a K),
}

/// What was seen of a NodeNetwork.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// Its UID.
    pub uid: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// UID of its Node.
    pub owner: Option<String>,
    /// Whether the operator says that it has all it needs.
    pub assigned: bool,
    /// The node's blocks.
    pub subnets: Vec<IpNet>,
}

impl Network {
    /// What the ledger keeps of it.
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
