//! Statuses of IPPools: conditions, utilization, and remaining pods.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{IPPool, IPPoolStatus, SubnetState, Usage, UsageCount};

use crate::plan::conditions::{MAX_LISTED, remaining_pods, status_change, unreadable_statuses};
use crate::plan::ipam::assign::Assignment;
use crate::plan::ipam::blocks::{Blocks, address_count};
use crate::plan::ipam::utilization::is_possible;
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{StatusChange, UserKind};
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::cluster_ranges;
use crate::plan::validate::ip_pool::lenient_reserved;

/// Statuses of IPPools that differ from the current ones.
#[must_use]
pub fn plan_pools(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
) -> Vec<StatusChange<IPPoolStatus>> {
    let blocks = blocks_by_pool(index);
    let changes = index.pool_objects.iter().filter_map(|(name, pool)| {
        let blocks = blocks.get(name).map_or(&[][..], Vec::as_slice);
        let verdict = pool_verdict(index, assignment, pool, blocks);
        let status = IPPoolStatus {
            usage: Some(usage(pool, blocks)),
            remaining_pods: remaining_pods::remaining(
                pool,
                index.networks.values().copied(),
                &index.cluster_state.pod_owners,
            ),
            ..IPPoolStatus::default()
        };
        let change = status_change(*pool, &verdict, status, index.cluster_state.now);
        let recent = index.cluster_state.recent_usage_writes.contains(*name);
        change.filter(|change| !recent || !only_usage_differs(pool, &change.status))
    });
    changes
        .chain(unreadable_statuses(index, UserKind::Pool))
        .collect()
}

/// Whether the new status differs from the old one only in its utilization.
fn only_usage_differs(pool: &IPPool, new: &IPPoolStatus) -> bool {
    pool.status.as_ref().is_some_and(|old| {
        let mut conditions = new.conditions.iter();
        old.observed_generation == new.observed_generation
            && old.remaining_pods == new.remaining_pods
            && conditions.all(|condition| old.conditions.contains(condition))
    })
}

/// A block of a pool.
struct AssignedBlock<'a> {
    node: &'a str,
    /// Number of addresses in use.
    used: i64,
    /// Whether the Node is deleted.
    orphaned: bool,
}

fn blocks_by_pool<'a>(index: &ClusterIndex<'a>) -> BTreeMap<&'a str, Vec<AssignedBlock<'a>>> {
    // Reports of a node about blocks of other nodes do not count.
    let usage = index.networks.iter().flat_map(|(node, network)| {
        let status = network.status.iter();
        let usage = status.flat_map(|status| &status.subnets);
        usage
            .filter(|usage| is_possible(usage))
            .map(move |usage| ((*node, usage.cidr), usage.used))
    });
    let used: BTreeMap<(&str, IpNet), i64> = usage.collect();
    let mut pools: BTreeMap<&str, Vec<AssignedBlock<'_>>> = BTreeMap::new();
    for subnet in index.cluster_state.subnets.iter().copied() {
        let used = used
            .get(&(subnet.spec.node.as_str(), subnet.spec.cidr))
            .copied()
            .unwrap_or_default();
        let block = AssignedBlock {
            node: &subnet.spec.node,
            used,
            orphaned: subnet.spec.state == SubnetState::Orphaned,
        };
        pools.entry(&subnet.spec.pool).or_default().push(block);
    }
    pools
}

fn usage(pool: &IPPool, blocks: &[AssignedBlock<'_>]) -> Usage {
    let reserved = lenient_reserved(&pool.spec.reserved);
    let capacity = Blocks::new(pool.spec.cidr, pool.spec.block_prefix(), &reserved, []);
    Usage {
        blocks: UsageCount {
            total: saturating_i64(capacity.total()),
            used: i64::try_from(blocks.len()).unwrap_or(i64::MAX),
        },
        addresses: UsageCount {
            total: saturating_i64(address_count(&pool.spec.cidr, &reserved)),
            used: blocks
                .iter()
                .map(|block| block.used)
                .fold(0, i64::saturating_add),
        },
    }
}

fn saturating_i64(count: u128) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn pool_verdict(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    pool: &IPPool,
    blocks: &[AssignedBlock<'_>],
) -> Verdict {
    let name = pool.name_any();
    if pool.metadata.deletion_timestamp.is_some() {
        return deleting(blocks);
    }
    if let Some(Err(why)) = index.pools.by_name.get(&name) {
        return why.clone();
    }
    if let Some(why) = exhausted(assignment, &name, blocks) {
        return why;
    }
    if let Some(why) = missing_family(index, &name) {
        return Verdict::stalled(Reason::NoNodeAddress, why);
    }
    // Blocks are assigned nevertheless: the cluster must start before a user can correct kube-proxy.
    if let Some(why) = index.kube_proxy.mismatch(&pool.spec) {
        return Verdict::stalled(Reason::KubeProxyMismatch, why);
    }
    let left = assignment.free.get(&name).copied().unwrap_or_default();
    let free = counted(left, "block");
    let remark = index.kube_proxy.remark(&pool.spec);
    let remark = remark.map_or_else(String::new, |it| format!("; {it}"));
    let remarks = format!(
        "{}{}{remark}",
        orphans_remark(blocks, "kept for operator.orphanGrace"),
        node_addresses_remark(index, pool)
    );
    if pool.spec.disabled {
        let kept = counted(blocks.len(), "block");
        let remaining = match blocks
            .iter()
            .map(|block| block.used)
            .fold(0, i64::saturating_add)
        {
            0 => "no pod has an address of this pool, so the pool can be deleted".to_owned(),
            1 => "1 address is in use, see status.remainingPods".to_owned(),
            used => format!("{used} addresses are in use, see status.remainingPods"),
        };
        return Verdict::ready(
            Reason::Disabled,
            format!(
                "spec.disabled: no new blocks and addresses; {kept} assigned, {free} free; {remaining}{remarks}"
            ),
        );
    }
    // Below a fifth, so that the user has time to act before the pool is exhausted.
    let all = usage(pool, blocks).blocks.total;
    if saturating_i64(left).saturating_mul(5) < all {
        return Verdict::ready(
            Reason::NearlyExhausted,
            format!(
                "only {free} free: create another IPPool before the pool is exhausted{remarks}"
            ),
        );
    }
    Verdict::ready(Reason::Allocatable, format!("{free} free{remarks}"))
}

/// The verdict about a pool without a free block for some nodes.
fn exhausted(assignment: &Assignment, pool: &str, blocks: &[AssignedBlock<'_>]) -> Option<Verdict> {
    let named = |nodes: &BTreeSet<String>| {
        let nodes: Vec<_> = nodes.iter().collect();
        list(&nodes, MAX_LISTED)
    };
    let first = assignment.exhausted.get(pool);
    let first = first.map(|nodes| format!("no block is left for {}", named(nodes)));
    let more = || {
        let nodes = named(assignment.low_capacity.get(pool)?);
        Some(format!(
            "no block is left, and few addresses are free on {nodes}"
        ))
    };
    let why = first.or_else(more)?;
    let remarks = orphans_remark(blocks, "about to be reclaimed");
    Some(Verdict::stalled(
        Reason::Exhausted,
        format!("{why}{remarks}; create another IPPool"),
    ))
}

/// The number of blocks of deleted Nodes, and their `fate`.
fn orphans_remark(blocks: &[AssignedBlock<'_>], fate: &str) -> String {
    match blocks.iter().filter(|block| block.orphaned).count() {
        0 => String::new(),
        count => format!("; {} of deleted Nodes {fate}", counted(count, "block")),
    }
}

/// Nodes with an address inside the pool. The blocks with these addresses are not assigned.
fn node_addresses_remark(index: &ClusterIndex<'_>, pool: &IPPool) -> String {
    let addresses = cluster_ranges::addresses_of_nodes(index.cluster_state);
    let inside = addresses.filter(|(_, address)| pool.spec.cidr.contains(address));
    let mut named: Vec<String> = inside
        .map(|(node, address)| format!("Node {} ({address})", node.name_any()))
        .collect();
    named.sort();
    named.dedup();
    if named.is_empty() {
        return String::new();
    }
    format!(
        "; node addresses inside spec.cidr, whose blocks are not assigned: {}; correct the node addresses",
        list(&named, MAX_LISTED)
    )
}

/// Why no Node of the pool can get a block: all have only addresses of the other family.
fn missing_family(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
    let (pool, mode) = (index.pools.usable(name)?, index.mode_of(name)?);
    if !pool.open {
        return None;
    }
    let family = pool.family();
    let served = |node: &&&Node| index.pools_of(node).any(|own| own.name == pool.name);
    let mut nodes = index.nodes.values().filter(served).peekable();
    nodes.peek()?;
    let mut of_other_family = false;
    for node in nodes {
        if index.addresses(node, mode, family).is_some() {
            return None;
        }
        of_other_family |= index.any_addresses(node, mode).is_some();
    }
    let needed = mode.node_family(family, index.outer_family(mode));
    of_other_family.then(|| {
        format!(
            "no block is assigned: NetworkMode {} needs an {needed} address of each node, and spec.nodeAddress of the NetworkMode selects none on any Node of this pool; {}",
            mode.name,
            match mode.address.of(needed) {
                None => "set --node-ip of kubelet, or correct spec.nodeAddress",
                Some(_) => "see the condition Assigned of the NodeNetworks",
            }
        )
    })
}

fn deleting(blocks: &[AssignedBlock<'_>]) -> Verdict {
    if blocks.is_empty() {
        return Verdict::reconciling(Reason::InUse, "being deleted; no block is left");
    }
    let mut nodes: Vec<_> = blocks.iter().map(|block| block.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    Verdict::reconciling(
        Reason::InUse,
        format!(
            "being deleted; waiting until {} without pods (see status.remainingPods) on {}",
            if blocks.len() == 1 {
                "1 block is".to_owned()
            } else {
                format!("{} blocks are", blocks.len())
            },
            list(&nodes, MAX_LISTED)
        ),
    )
}
