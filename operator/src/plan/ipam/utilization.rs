//! Nodes with few free addresses of a pool, and surplus blocks.
//!
//! ```text
//!   free addresses of a node in a pool, in blocks:   0 ───── ¼ ───── ½ ─────▶
//!                         low: another block is      │       │ high: an empty block is surplus
//!                         assigned               ◀───┘       └───▶ if so much is free without it
//! ```
//!
//! The gap between the watermarks avoids that a node gets and releases the same block with every pod. A node's first
//! block of a pool is never surplus, because it provides the tunnel address. Only reports about the current generation
//! of the NodeNetwork count. Without such a report a node neither gets nor releases blocks.

use ipnet::IpNet;
use netweft_crds::BlockUsage;
use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use netweft_crds::{NodeNetwork, NodeSubnet, SubnetState};

use crate::plan::validate::oldest_first;

/// Divisor of the low watermark: a node with less than a quarter of a block free gets another block.
const LOW_WATERMARK: i64 = 4;
/// Divisor of the high watermark: a block is surplus if half a block is free without it.
const HIGH_WATERMARK: i64 = 2;

/// Utilization of the blocks of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utilization {
    /// Nodes below the low watermark, by pool.
    pub short: BTreeMap<String, BTreeSet<String>>,
    /// Names of surplus NodeSubnets: they are empty, and their node is above the high watermark without them.
    pub surplus: BTreeSet<String>,
    /// Names of NodeSubnets whose utilization is unknown.
    undecided: BTreeSet<String>,
}

impl Utilization {
    /// Observes all blocks.
    #[must_use]
    pub fn observe(subnets: &[&NodeSubnet], networks: &[&NodeNetwork]) -> Self {
        let networks: BTreeMap<String, &NodeNetwork> = networks
            .iter()
            .map(|network| (network.name_any(), *network))
            .collect();
        let mut shares: BTreeMap<(&str, &str), Vec<&NodeSubnet>> = BTreeMap::new();
        for subnet in oldest_first(subnets) {
            if subnet.spec.state == SubnetState::Active {
                let share = (subnet.spec.node.as_str(), subnet.spec.pool.as_str());
                shares.entry(share).or_default().push(subnet);
            }
        }
        let mut utilization = Self::default();
        for ((node, pool), blocks) in shares {
            let network = networks.get(node).copied();
            match network.and_then(|network| NodeUsage::of(&blocks, network)) {
                None => utilization
                    .undecided
                    .extend(blocks.iter().map(|b| b.name_any())),
                Some(share) => {
                    if share.is_short() {
                        let nodes = utilization.short.entry(pool.to_owned()).or_default();
                        nodes.insert(node.to_owned());
                    }
                    utilization.surplus.extend(share.surplus());
                }
            }
        }
        utilization
    }

    /// Whether the block is surplus; `None`: unknown.
    #[must_use]
    pub fn is_surplus(&self, subnet: &NodeSubnet) -> Option<bool> {
        let name = subnet.name_any();
        (!self.undecided.contains(&name)).then(|| self.surplus.contains(&name))
    }
}

/// A node's blocks of one pool, oldest first.
struct NodeUsage<'a> {
    blocks: Vec<UsedBlock<'a>>,
}

struct UsedBlock<'a> {
    subnet: &'a NodeSubnet,
    used: i64,
    free: i64,
}

impl<'a> NodeUsage<'a> {
    /// `None`: the usage of at least one block is unknown.
    fn of(blocks: &[&'a NodeSubnet], network: &NodeNetwork) -> Option<Self> {
        let used = |subnet: &&'a NodeSubnet| {
            let usage = usage_of(subnet, network)?;
            Some(UsedBlock {
                subnet,
                used: usage.used,
                free: usage.free,
            })
        };
        let mut blocks = blocks.iter().map(used).collect::<Option<Vec<_>>>()?;
        // The node is about to get or to release an empty block that the NodeNetwork does not list. It counts as free,
        // so that the node does not get one more block.
        let block_size = largest_block(&blocks);
        let listed = |block: &UsedBlock<'_>| network.spec.subnets.contains(&block.subnet.spec.cidr);
        for block in &mut blocks {
            if block.used == 0 && !listed(block) {
                block.free = block_size;
            }
        }
        Some(Self { blocks })
    }

    fn block_size(&self) -> i64 {
        largest_block(&self.blocks)
    }

    fn free(&self) -> i64 {
        let free = self.blocks.iter().map(|block| block.free);
        free.fold(0, i64::saturating_add)
    }

    /// If all addresses of a pool's blocks are reserved, more blocks do not help.
    fn is_short(&self) -> bool {
        self.block_size() > 0 && self.free().saturating_mul(LOW_WATERMARK) < self.block_size()
    }

    /// The youngest blocks are released first.
    fn surplus(&self) -> Vec<String> {
        let (block_size, mut left) = (self.block_size(), self.free());
        let mut surplus = Vec::new();
        for UsedBlock { subnet, used, free } in self.blocks.iter().skip(1).rev() {
            if *used == 0 && (left - free).saturating_mul(HIGH_WATERMARK) >= block_size {
                left -= free;
                surplus.push(subnet.name_any());
            }
        }
        surplus
    }
}

/// Number of addresses of a block without reserved addresses.
fn largest_block(blocks: &[UsedBlock<'_>]) -> i64 {
    let sizes = blocks
        .iter()
        .map(|block| block.used.saturating_add(block.free));
    sizes.max().unwrap_or_default()
}

/// Usage of the block of `subnet`, as the agent reports it for the current generation; `None`: unknown.
#[must_use]
pub fn usage_of(subnet: &NodeSubnet, network: &NodeNetwork) -> Option<BlockUsage> {
    let status = network.status.as_ref()?;
    if status.observed_generation != network.metadata.generation {
        return None;
    }
    let cidr = subnet.spec.cidr;
    match status.subnets.iter().find(|usage| usage.cidr == cidr) {
        Some(usage) => Some(usage.clone()).filter(is_possible),
        // The agent reports every block of the spec, and every other block with pods.
        None if network.spec.subnets.contains(&cidr) => None,
        None => Some(BlockUsage {
            cidr,
            used: 0,
            free: 0,
        }),
    }
}

/// Whether a block can have these counts. An agent that has been taken over reports any counts.
#[must_use]
pub fn is_possible(usage: &BlockUsage) -> bool {
    let sum = usage.used.checked_add(usage.free);
    usage.used >= 0 && usage.free >= 0 && sum.is_some_and(|sum| sum <= size(&usage.cidr))
}

/// Number of addresses of a block.
#[must_use]
pub fn size(block: &IpNet) -> i64 {
    let bits = block.max_prefix_len() - block.prefix_len();
    1_i64
        .checked_shl(bits.into())
        .filter(|size| *size > 0)
        .unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, cluster};

    /// A node whose agent reports these counts of its blocks: used and free.
    fn node(counts: &[(i64, i64)]) -> Cluster {
        let mut cluster = cluster(1);
        cluster.reconcile();
        let first = cluster.subnets[0].clone();
        for n in 1..counts.len() {
            let mut more = first.spec.clone();
            more.cidr = format!("10.244.{n}.0/26").parse().unwrap();
            let mut more = more.into_object();
            more.metadata.uid = Some(format!("more-{n}"));
            more.metadata.creation_timestamp = first.metadata.creation_timestamp.clone();
            cluster.subnets.push(more);
        }
        cluster.reconcile();
        cluster.agents_report(0);
        let status = cluster.networks[0].status.as_mut().unwrap();
        for (usage, (used, free)) in status.subnets.iter_mut().zip(counts) {
            (usage.used, usage.free) = (*used, *free);
        }
        cluster
    }

    fn observe(cluster: &Cluster) -> Utilization {
        let cluster_state = cluster.cluster_state();
        Utilization::observe(&cluster_state.subnets, &cluster_state.networks)
    }

    fn is_short(usage: &[(i64, i64)]) -> bool {
        observe(&node(usage)).short == [("default-v4".into(), ["worker-1".into()].into())].into()
    }

    fn surplus(usage: &[(i64, i64)]) -> Vec<String> {
        observe(&node(usage)).surplus.into_iter().collect()
    }

    #[test]
    fn node_is_short_below_quarter_of_block_free() {
        assert!(!is_short(&[(0, 60)]));
        assert!(!is_short(&[(45, 15)]));
        assert!(is_short(&[(46, 14)]));
        assert!(is_short(&[(60, 0)]));
        assert!(!is_short(&[(60, 0), (0, 60)]));
        assert!(is_short(&[(60, 0), (58, 2)]));
        // Most addresses of the first block are reserved.
        assert!(is_short(&[(1, 1), (58, 2)]));
    }

    #[test]
    fn pool_with_addressless_blocks_gets_no_demand() {
        assert_eq!(observe(&node(&[(0, 0)])), Utilization::default());
    }

    #[test]
    fn empty_block_is_surplus_if_others_have_half_block_free() {
        let second = ["10-244-1-0-26"];
        assert_eq!(surplus(&[(0, 60)]), Vec::<String>::new());
        assert_eq!(surplus(&[(30, 30), (0, 60)]), second);
        assert_eq!(surplus(&[(31, 29), (0, 60)]), Vec::<String>::new());
        assert_eq!(surplus(&[(30, 30), (1, 59)]), Vec::<String>::new());
        assert_eq!(surplus(&[(0, 60), (60, 0)]), Vec::<String>::new());
        // The first block is never surplus.
        assert_eq!(surplus(&[(0, 60), (30, 30)]), Vec::<String>::new());
        // Without one of the two, enough addresses are free.
        assert_eq!(surplus(&[(60, 0), (0, 60), (0, 60)]), ["10-244-2-0-26"]);
        assert_eq!(
            surplus(&[(10, 50), (0, 60), (0, 60)]),
            ["10-244-1-0-26", "10-244-2-0-26"]
        );
    }

    #[test]
    fn withdrawn_block_is_surplus_until_used_or_others_fill() {
        let withdrawn = |usage: &[(i64, i64)]| {
            let mut cluster = node(usage);
            let network = &mut cluster.networks[0];
            network.spec.subnets.pop();
            let status = network.status.as_mut().unwrap();
            // The agent reports other blocks only while they have pods.
            status.subnets.retain(|usage: &BlockUsage| {
                network.spec.subnets.contains(&usage.cidr) || usage.used > 0
            });
            observe(&cluster).surplus.len()
        };
        assert_eq!(withdrawn(&[(30, 30), (0, 60)]), 1);
        assert_eq!(withdrawn(&[(30, 30), (1, 0)]), 0);
        assert_eq!(withdrawn(&[(40, 20), (0, 60)]), 0);
    }

    #[test]
    fn impossible_usage_is_undecided() {
        for counts in [
            (60, 5),
            (-1, 60),
            (60, -1),
            (i64::MAX, 0),
            (i64::MAX, i64::MAX),
        ] {
            let utilization = observe(&node(&[counts]));
            assert_eq!(utilization.short, BTreeMap::new(), "{counts:?}");
            assert_eq!(utilization.surplus, BTreeSet::new(), "{counts:?}");
            assert_eq!(utilization.undecided.len(), 1, "{counts:?}");
        }
        assert!(observe(&node(&[(0, 64)])).undecided.is_empty());
    }

    #[test]
    fn usage_of_old_generation_is_undecided() {
        let mut cluster = node(&[(60, 0)]);
        cluster.networks[0].metadata.generation = Some(70);
        let utilization = observe(&cluster);
        assert!(utilization.short.is_empty());
        assert_eq!(utilization.undecided, ["10-244-0-0-26".to_owned()].into());
        cluster.networks.clear();
        assert_eq!(observe(&cluster).undecided.len(), 1);
    }
}
