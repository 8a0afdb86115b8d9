//! Block demands: which node needs a block, and of which pools.
//!
//! Each node has one block of each family before any pod starts: of the pools for all namespaces, or of any pool if
//! there is none. So the first pod starts at once, and the block provides the node's address in tunnels. Of any other
//! pool a node gets its first block when the plugin has refused a pod that needs it
//! (`NodeNetwork.status.blockRequests`), so a pool for a few pods does not use a block on every node. A node whose
//! agent has never reported gets no further block after the progress deadline of a rollout. Nodes with few free
//! addresses get more blocks (`utilization`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use netweft_crds::IpFamily;

use crate::plan::ipam::utilization::{Utilization, size};
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::ip_pool::Pool;

/// A block that a node needs, of one of several pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDemand {
    /// The node.
    pub node: String,
    /// The possible pools. All of them are open and select the node.
    pub pools: BTreeSet<String>,
    /// Why the node needs the block.
    pub purpose: Purpose,
}

/// Why a node needs a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The node has no block of these pools. One block of any of them is enough.
    Initial,
    /// Few addresses are free. Without a block pods will get none.
    LowCapacity,
    /// Few addresses of one pool are free, and another pool serves the same pods.
    Spillover,
}

/// The demands of all nodes, the most urgent first.
#[must_use]
pub fn demands(index: &ClusterIndex<'_>, utilization: &Utilization) -> Vec<BlockDemand> {
    let nodes = index.nodes.iter();
    let mut demands: Vec<BlockDemand> = nodes
        .flat_map(|(name, node)| NodeDemand::new(index, name, node, utilization).all())
        .collect();
    // The sort is stable: a node's default block comes before a requested one that it may satisfy.
    demands.sort_by_key(|demand| demand.purpose);
    demands
}

/// A node and the pools that can serve it.
struct NodeDemand<'a> {
    index: &'a ClusterIndex<'a>,
    node: &'a str,
    open: Vec<&'a Pool>,
    held: BTreeSet<&'a str>,
    short: BTreeSet<&'a str>,
}

impl<'a> NodeDemand<'a> {
    fn new(
        index: &'a ClusterIndex<'a>,
        name: &'a str,
        node: &'a Node,
        utilization: &'a Utilization,
    ) -> Self {
        let held = index.subnets.get(name).into_iter().flatten();
        let short = utilization.short.iter();
        Self {
            index,
            node: name,
            open: open_pools(index, node),
            held: held.map(|subnet| subnet.spec.pool.as_str()).collect(),
            short: short
                .filter(|(_, nodes)| nodes.contains(name))
                .map(|(pool, _)| pool.as_str())
                .collect(),
        }
    }

    fn all(&self) -> Vec<BlockDemand> {
        let demands = self.unlimited().into_iter();
        demands
            .filter(|demand| demand.purpose == Purpose::Initial || self.may_grow(demand))
            .collect()
    }

    /// Whether the node can use a further block. An agent that has been taken over always reports full blocks, and would get the whole
    /// pool.
    fn may_grow(&self, demand: &BlockDemand) -> bool {
        let family = |pool: &&&Pool| demand.pools.contains(&pool.name);
        let Some(pool) = self.open.iter().find(family) else {
            return true;
        };
        BlockLimit::of(self.index, self.node, pool.family()).allows_another()
    }

    fn unlimited(&self) -> Vec<BlockDemand> {
        let families = IpFamily::ALL.into_iter();
        let mut demands: Vec<BlockDemand> = families
            .flat_map(|family| self.default_pools(family))
            .collect();
        demands.extend(self.requested());
        let special = self.open.iter().filter(|pool| !pool.for_all_namespaces);
        let short = special.filter(|pool| self.runs_short(pool));
        demands.extend(short.map(|pool| self.demand(&[*pool], Purpose::LowCapacity)));
        demands
    }

    /// Demands for pools that serve all pods.
    fn default_pools(&self, family: IpFamily) -> Vec<BlockDemand> {
        let of_family = |pool: &&&Pool| pool.family() == family;
        let all: Vec<&Pool> = self.open.iter().filter(of_family).copied().collect();
        let general: Vec<&Pool> = all
            .iter()
            .filter(|pool| pool.for_all_namespaces)
            .copied()
            .collect();
        let held: Vec<&Pool> = general
            .iter()
            .filter(|pool| self.held.contains(pool.name.as_str()))
            .copied()
            .collect();
        if held.is_empty() {
            return self.first(family, if general.is_empty() { &all } else { &general });
        }
        if held.iter().all(|pool| self.runs_short(pool)) {
            return vec![self.demand(&general, Purpose::LowCapacity)];
        }
        let short = held.into_iter().filter(|pool| self.runs_short(pool));
        short
            .map(|pool| self.demand(&[pool], Purpose::Spillover))
            .collect()
    }

    fn first(&self, family: IpFamily, pools: &[&Pool]) -> Vec<BlockDemand> {
        let special = pools.iter().all(|pool| !pool.for_all_namespaces);
        if pools.is_empty() || special && self.holds_any(family) {
            return Vec::new();
        }
        vec![self.demand(pools, Purpose::Initial)]
    }

    /// Whether the node has a block of the family, and so an address for tunnels.
    fn holds_any(&self, family: IpFamily) -> bool {
        let held = self.index.subnets.get(self.node).into_iter().flatten();
        let mut families = held.map(|subnet| IpFamily::of(subnet.spec.cidr.addr()));
        families.any(|held| held == family)
    }

    /// Demands for pods that were refused for lack of a block.
    fn requested(&self) -> Vec<BlockDemand> {
        let status = self.index.networks.get(self.node);
        let status = status.and_then(|network| network.status.as_ref());
        let requests = status.into_iter().flat_map(|status| &status.block_requests);
        let demands = requests.filter_map(|request| {
            let is_requested = |pool: &&&Pool| request.pools.contains(&pool.name);
            let pools: Vec<&Pool> = self.open.iter().filter(is_requested).copied().collect();
            let served = pools
                .iter()
                .any(|pool| self.held.contains(pool.name.as_str()));
            (!served && !pools.is_empty()).then(|| self.demand(&pools, Purpose::Initial))
        });
        demands.collect()
    }

    fn runs_short(&self, pool: &Pool) -> bool {
        self.short.contains(pool.name.as_str())
    }

    fn demand(&self, pools: &[&Pool], purpose: Purpose) -> BlockDemand {
        BlockDemand {
            node: self.node.to_owned(),
            pools: pools.iter().map(|pool| pool.name.clone()).collect(),
            purpose,
        }
    }
}

/// Maximum number of blocks of one family on a node.
const MAX_BLOCKS: usize = 128;
/// Addresses for each pod that the node can have: some are reserved, gateways, or kept free.
const ADDRESSES_PER_POD: i64 = 2;
/// Pods of a Node that does not state how many it can have: the default of kubelet.
const DEFAULT_PODS: i64 = 110;

/// How many addresses of a family a node can have.
pub struct BlockLimit {
    blocks: usize,
    addresses: i64,
    /// The largest number of pods of the node, by its kubelet.
    pub pods: i64,
    largest_block: i64,
    pools: i64,
}

impl BlockLimit {
    /// The limit of a node, and its present blocks. Blocks of disabled and deleted pools do not count, because the pods of these pools
    /// need addresses of another pool.
    #[must_use]
    pub fn of(index: &ClusterIndex<'_>, node: &str, family: IpFamily) -> Self {
        let is_open = |pool: &str| index.pools.usable(pool).is_some_and(|pool| pool.open);
        let held = index.subnets.get(node).into_iter().flatten();
        let held = held.map(|subnet| &subnet.spec);
        let held = held.filter(|block| is_open(&block.pool));
        let held: Vec<_> = held
            .filter(|block| IpFamily::of(block.cidr.addr()) == family)
            .collect();
        let sizes = held.iter().map(|subnet| size(&subnet.cidr));
        let pools: BTreeSet<&str> = held.iter().map(|subnet| subnet.pool.as_str()).collect();
        Self {
            blocks: held.len(),
            addresses: sizes.clone().fold(0, i64::saturating_add),
            pods: index
                .nodes
                .get(node)
                .map_or(DEFAULT_PODS, |node| pods_of(node)),
            largest_block: sizes.max().unwrap_or_default(),
            pools: i64::try_from(pools.len()).unwrap_or(i64::MAX),
        }
    }

    /// Whether the node can use another block. Each pool has a last block that is not full.
    #[must_use]
    pub fn allows_another(&self) -> bool {
        let spare = self.largest_block.saturating_mul(self.pools);
        let needed = self.pods.saturating_mul(ADDRESSES_PER_POD);
        self.blocks < MAX_BLOCKS && self.addresses < needed.saturating_add(spare)
    }
}

/// How many pods kubelet accepts (`status.allocatable`).
fn pods_of(node: &Node) -> i64 {
    let status = node.status.as_ref();
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let pods = allocatable.and_then(|resources| resources.get("pods"));
    let pods = pods.and_then(|quantity| count(&quantity.0));
    pods.filter(|pods| *pods > 0).unwrap_or(DEFAULT_PODS)
}

/// A whole number as Kubernetes writes it: 1000 is "1k" (the canonical form of a resource quantity).
fn count(quantity: &str) -> Option<i64> {
    let (number, factor) = match quantity.strip_suffix('k') {
        Some(thousands) => (thousands, 1000),
        None => (quantity, 1),
    };
    number.parse::<i64>().ok()?.checked_mul(factor)
}

/// The pools that can serve the node now.
fn open_pools<'a>(index: &'a ClusterIndex<'a>, node: &'a Node) -> Vec<&'a Pool> {
    let pools = index.pools_of(node).filter(|pool| pool.open);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let reachable = pools.filter(|pool| {
        index.mode_of(&pool.name).is_some_and(|mode| {
            !index.lacks_agent(name, mode) && index.addresses(node, mode, pool.family()).is_some()
        })
    });
    reachable.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_node_are_read_in_canonical_form() {
        for (text, expected) in [
            ("110", 110),
            ("1k", 1000),
            ("2500", 2500),
            ("0", DEFAULT_PODS),
            ("-3", DEFAULT_PODS),
            ("many", DEFAULT_PODS),
        ] {
            let status = serde_json::json!({ "status": { "allocatable": { "pods": text } } });
            let node = serde_json::from_value(status).unwrap();
            assert_eq!(pods_of(&node), expected, "{text}");
        }
    }
}
