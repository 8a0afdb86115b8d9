//! [`InvariantChecker`]: the invariants of block ownership, without a clock and a client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::{NodeAddresses, NodeNetwork, NodeSubnet, SubnetState};

use super::assignment_order::AssignmentOrder;
use super::input::{InvariantConfig, ObjectChange, ObservedNetwork};

/// The observed state, and the violations.
pub struct InvariantChecker {
    pub(super) config: InvariantConfig,
    /// NodeSubnets by name.
    pub(super) subnets: BTreeMap<String, ObservedSubnet>,
    /// Names of NodeSubnets by block, to find overlaps.
    pub(super) blocks: BTreeMap<IpNet, String>,
    pub(super) networks: BTreeMap<String, ObservedNetwork>,
    pub(super) nodes: BTreeMap<String, ExistingNode>,
    pub(super) deleted_nodes: BTreeMap<String, DeletedNode>,
    pub(super) assignment_order: AssignmentOrder,
    pub(super) assignment_count: usize,
    pub(super) max_blocks: usize,
    pub(super) violations: Vec<String>,
}

/// An observed NodeSubnet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ObservedSubnet {
    pub(super) uid: Option<String>,
    pub(super) cidr: IpNet,
    pub(super) pool: String,
    pub(super) node: String,
    /// Node addresses that peers send to.
    pub(super) addresses: NodeAddresses,
    pub(super) orphaned: Option<Instant>,
}

/// An existing Node.
pub(super) struct ExistingNode {
    pub(super) address: IpAddr,
    pub(super) uid: Option<String>,
    /// Number of pods by block.
    pub(super) pods: BTreeMap<IpNet, i64>,
    /// Blocks of a Node that was deleted and has returned in time. It must get them again.
    pub(super) expected_blocks: BTreeSet<IpNet>,
}

/// A deleted Node.
pub(super) struct DeletedNode {
    at: Instant,
    blocks: BTreeSet<IpNet>,
}

impl InvariantChecker {
    /// Nothing is observed yet.
    pub fn new(config: InvariantConfig) -> Self {
        Self {
            assignment_order: AssignmentOrder::new(&config),
            config,
            subnets: BTreeMap::new(),
            blocks: BTreeMap::new(),
            networks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            deleted_nodes: BTreeMap::new(),
            assignment_count: 0,
            max_blocks: 0,
            violations: Vec::new(),
        }
    }

    /// All violations so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Number of assignments so far.
    pub fn assignment_count(&self) -> usize {
        self.assignment_count
    }

    /// NodeNetworks by name.
    pub fn networks(&self) -> &BTreeMap<String, ObservedNetwork> {
        &self.networks
    }

    /// A Node is about to be created.
    pub fn add_node(&mut self, name: &str, address: IpAddr, at: Instant) {
        let in_time = |deleted_node: &DeletedNode| {
            let grace = self.config.grace.unwrap_or(Duration::MAX);
            at.saturating_duration_since(deleted_node.at) < grace
        };
        let deleted_node = self.deleted_nodes.remove(name).filter(in_time);
        let node = ExistingNode {
            address,
            uid: None,
            pods: BTreeMap::new(),
            expected_blocks: deleted_node.map(|node| node.blocks).unwrap_or_default(),
        };
        self.nodes.insert(name.to_owned(), node);
    }

    /// A Node was created with this UID.
    pub fn set_node_uid(&mut self, name: &str, uid: Option<String>) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.uid = uid;
        }
    }

    /// A Node is about to change its address.
    pub fn set_node_address(&mut self, name: &str, address: IpAddr) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.address = address;
        }
    }

    /// A Node is about to be deleted.
    pub fn remove_node(&mut self, name: &str, at: Instant) {
        self.nodes.remove(name);
        let own = self.subnets.values().filter(|subnet| subnet.node == name);
        let blocks = own.map(|subnet| subnet.cidr).collect();
        self.deleted_nodes
            .insert(name.to_owned(), DeletedNode { at, blocks });
    }

    /// UID of an existing Node; inner `None`: it is being created.
    pub fn node_uid(&self, node: &str) -> Option<Option<&str>> {
        self.nodes.get(node).map(|node| node.uid.as_deref())
    }

    /// An agent is about to report this number of pods in a block.
    pub fn set_pods(&mut self, node: &str, cidr: IpNet, pods: i64) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.pods.insert(cidr, pods);
        }
    }

    /// Another operator is the leader.
    pub fn reset_leader(&mut self) {
        self.assignment_order.reset();
    }

    /// The cluster has converged ([`Self::differences`]): returned Nodes have their blocks.
    pub fn check_converged(&mut self) {
        self.violations.extend(self.assignment_order.check());
        for node in self.nodes.values_mut() {
            node.expected_blocks.clear();
        }
    }

    /// Numbers of free blocks of a pool: never used, and released, from the view of the leader.
    pub fn free_blocks(&self, pool: &str) -> (usize, usize) {
        self.assignment_order.free_blocks(pool)
    }

    /// The watch of a kind may have missed events.
    pub fn record_missed_events(&mut self, kind: &str) {
        let violation = format!("the watch of {kind} listed again: events may be missed");
        self.violations.push(violation);
    }

    /// Observes a change of a NodeSubnet.
    pub fn observe_subnet(&mut self, change: &ObjectChange<'_, NodeSubnet>, at: Instant) {
        match change {
            ObjectChange::Applied(subnet) => self.subnet_applied(subnet, at),
            ObjectChange::Deleted(subnet) => self.subnet_deleted(subnet, at),
        }
    }

    fn subnet_applied(&mut self, subnet: &NodeSubnet, at: Instant) {
        let mut new = ObservedSubnet {
            uid: subnet.uid(),
            cidr: subnet.spec.cidr,
            pool: subnet.spec.pool.clone(),
            node: subnet.spec.node.clone(),
            addresses: subnet.spec.node_addresses,
            orphaned: (subnet.spec.state == SubnetState::Orphaned).then_some(at),
        };
        let name = subnet.name_any();
        match self.subnets.get(&name) {
            None => {
                self.check_location(&new);
                self.assignment_count += 1;
                self.assignment_order.assigned(&new.pool, new.cidr);
            }
            Some(old) => {
                new.orphaned = new.orphaned.and(old.orphaned.or(new.orphaned));
                let constant_fields = |subnet: &ObservedSubnet| ObservedSubnet {
                    addresses: NodeAddresses::default(),
                    orphaned: None,
                    ..subnet.clone()
                };
                if constant_fields(old) != constant_fields(&new) {
                    let violation = format!("{name} was {old:?} and is {new:?}");
                    self.violations.push(violation);
                }
            }
        }
        self.blocks.insert(new.cidr, name.clone());
        let own = self.subnets.values();
        let own = own.filter(|subnet| subnet.node == new.node && subnet.pool == new.pool);
        let others = own.filter(|subnet| subnet.cidr != new.cidr);
        self.max_blocks = self.max_blocks.max(others.count() + 1);
        self.subnets.insert(name, new);
    }

    /// Disjoint and ordered blocks can overlap only with their neighbours.
    fn check_location(&mut self, new: &ObservedSubnet) {
        let before = self.blocks.range(..=new.cidr).next_back();
        let after = self.blocks.range(new.cidr..).next();
        for (cidr, name) in before.into_iter().chain(after) {
            if cidr.contains(&new.cidr) || new.cidr.contains(cidr) {
                let owner = self
                    .subnets
                    .get(name)
                    .map_or("no node", |subnet| &subnet.node);
                let violation = format!(
                    "{} of {} shares addresses with {cidr} of {owner}",
                    new.cidr, new.node
                );
                self.violations.push(violation);
                break;
            }
        }
        let pool = self.config.pools.get(&new.pool);
        if !pool.is_some_and(|pool| pool.contains(&new.cidr)) {
            let violation = format!("{} is outside of its pool {}", new.cidr, new.pool);
            self.violations.push(violation);
        }
    }

    fn subnet_deleted(&mut self, subnet: &NodeSubnet, at: Instant) {
        let Some(subnet) = self.subnets.remove(&subnet.name_any()) else {
            return;
        };
        self.blocks.remove(&subnet.cidr);
        self.assignment_order
            .released(&subnet.pool, subnet.cidr, at);
        if let Some(why) = self.deletion_violation(&subnet, at) {
            let violation = format!("{} of {} was deleted{why}", subnet.cidr, subnet.node);
            self.violations.push(violation);
        }
    }

    /// Why a block must not be deleted; `None`: the deletion is correct.
    fn deletion_violation(&self, subnet: &ObservedSubnet, at: Instant) -> Option<String> {
        let Some(grace) = self.config.grace else {
            return Some(String::new());
        };
        let node = self.nodes.get(&subnet.node);
        if node.is_some_and(|node| node.expected_blocks.contains(&subnet.cidr)) {
            return Some(", although its Node has returned in time".to_owned());
        }
        if let Some(since) = subnet.orphaned {
            let kept = at.saturating_duration_since(since);
            return (kept + self.config.event_lag < grace)
                .then(|| format!(", {kept:?} after it was orphaned"));
        }
        match node {
            Some(node) if node.pods.get(&subnet.cidr).is_some_and(|pods| *pods > 0) => {
                Some(", although pods use it".to_owned())
            }
            Some(_) if self.lists(&subnet.node, &subnet.cidr) => {
                Some(", although the NodeNetwork lists it".to_owned())
            }
            Some(_) => None,
            // The block was already withdrawn when the Node was deleted.
            None => {
                let deleted_node = self.deleted_nodes.get(&subnet.node);
                let just_deleted = deleted_node.is_some_and(|deleted_node| {
                    at.saturating_duration_since(deleted_node.at) <= self.config.event_lag
                });
                (!just_deleted).then(|| " without a grace period, its Node is deleted".to_owned())
            }
        }
    }

    fn lists(&self, node: &str, cidr: &IpNet) -> bool {
        let network = self.networks.get(node);
        network.is_some_and(|network| network.subnets.contains(cidr))
    }

    /// Observes a change of a NodeNetwork.
    pub fn observe_network(&mut self, change: &ObjectChange<'_, NodeNetwork>, _at: Instant) {
        let (name, now) = match change {
            ObjectChange::Applied(network) => {
                (network.name_any(), Some(ObservedNetwork::of(network)))
            }
            ObjectChange::Deleted(network) => (network.name_any(), None),
        };
        let before = self.networks.remove(&name).unwrap_or_default();
        let lost = before.subnets.iter().filter(|cidr| {
            let kept = now.as_ref().is_some_and(|now| now.subnets.contains(cidr));
            !kept && self.must_keep(&name, cidr, now.is_some())
        });
        let lost = lost.map(|cidr| format!("{name} must not lose {cidr}"));
        self.violations.extend(lost.collect::<Vec<_>>());
        if let Some(now) = now {
            self.networks.insert(name, now);
        }
    }

    /// Whether a NodeNetwork must keep a block: always if no block is ever released, else while pods use the block.
    fn must_keep(&self, node: &str, cidr: &IpNet, stays: bool) -> bool {
        let node = self.nodes.get(node);
        let pods = node.and_then(|node| node.pods.get(cidr)).copied();
        self.config.grace.is_none() || (stays && pods.unwrap_or_default() > 0)
    }
}
