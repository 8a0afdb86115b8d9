//! Conditions of IPPools, and their utilization.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{IPPool, IPPoolStatus, SubnetState, Usage, UsageCount};

use crate::plan::conditions::remaining_pods;
use crate::plan::conditions::{MAX_LISTED, StatusUpdate, unreadable};
use crate::plan::ipam::assign::Assignment;
use crate::plan::ipam::blocks::{Blocks, address_count};
use crate::plan::message_lists::{counted, list};
use crate::plan::model::cluster_state::{StatusChange, UserKind};
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::cluster_ranges;
use crate::plan::validate::ip_pool::lenient_reserved;

/// Statuses of IPPools that differ from what stands there.
#[must_use]
pub fn plan_pools(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
) -> Vec<StatusChange<IPPoolStatus>> {
    let held = blocks_by_pool(index);
    let changes = index.pool_objects.iter().filter_map(|(name, pool)| {
        let held = held.get(name).map_or(&[][..], Vec::as_slice);
        let verdict = judge_pool(index, assignment, pool, held);
        let status = IPPoolStatus {
            observed_generation: pool.metadata.generation,
            usage: Some(usage(pool, held)),
            remaining_pods: remaining_pods::remaining(
                pool,
                index.networks.values().copied(),
                &index.cluster_state.owners,
            ),
            conditions: Vec::new(),
        };
        let change = StatusUpdate {
            meta: &pool.metadata,
            verdict,
            now: index.cluster_state.now,
        };
        let old = pool.status.as_ref();
        let change = change.of(old, status, |status| &mut status.conditions);
        let lately = index.cluster_state.counted_lately.contains(*name);
        change.filter(|change| !lately || !only_counts_differ(old, &change.status))
    });
    changes
        .chain(unreadable(index, UserKind::Pool, |meta, conditions| {
            IPPoolStatus {
                observed_generation: meta.generation,
                conditions,
                ..IPPoolStatus::default()
            }
        }))
        .collect()
}

/// Whether the new status differs from the old one only in its utilization.
fn only_counts_differ(old: Option<&IPPoolStatus>, new: &IPPoolStatus) -> bool {
    old.is_some_and(|old| {
        let mut conditions = new.conditions.iter();
        old.observed_generation == new.observed_generation
            && old.remaining_pods == new.remaining_pods
            && conditions.all(|condition| old.conditions.contains(condition))
    })
}

/// A block and its node, and how many of its addresses are in use.
struct Held<'a> {
    node: &'a str,
    used: i64,
    /// Whether the Node is gone.
    orphaned: bool,
}

fn blocks_by_pool<'a>(index: &ClusterIndex<'a>) -> BTreeMap<&'a str, Vec<Held<'a>>> {
    let statuses = index
        .networks
        .values()
        .filter_map(|network| network.status.as_ref());
    let usage = statuses.flat_map(|status| &status.subnets);
    let used: BTreeMap<IpNet, i64> = usage.map(|usage| (usage.cidr, usage.used)).collect();
    let mut pools: BTreeMap<&str, Vec<Held<'_>>> = BTreeMap::new();
    for subnet in index.cluster_state.subnets.iter().copied() {
        let used = used.get(&subnet.spec.cidr).copied().unwrap_or_default();
        let held = Held {
            node: &subnet.spec.node,
            used,
            orphaned: subnet.spec.state == SubnetState::Orphaned,
        };
        pools.entry(&subnet.spec.pool).or_default().push(held);
    }
    pools
}

fn usage(pool: &IPPool, held: &[Held<'_>]) -> Usage {
    let reserved = lenient_reserved(&pool.spec.reserved);
    let blocks = Blocks::new(pool.spec.cidr, pool.spec.block_prefix(), &reserved, []);
    Usage {
        blocks: UsageCount {
            total: saturated(blocks.total()),
            used: i64::try_from(held.len()).unwrap_or(i64::MAX),
        },
        addresses: UsageCount {
            total: saturated(address_count(&pool.spec.cidr, &reserved)),
            used: held
                .iter()
                .map(|held| held.used)
                .fold(0, i64::saturating_add),
        },
    }
}

fn saturated(count: u128) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn judge_pool(
    index: &ClusterIndex<'_>,
    assignment: &Assignment,
    pool: &IPPool,
    held: &[Held<'_>],
) -> Verdict {
    let name = pool.name_any();
    if pool.metadata.deletion_timestamp.is_some() {
        return in_use(held);
    }
    if let Some(Err(why)) = index.pools.by_name.get(&name) {
        return why.clone();
    }
    if let Some(why) = spent(assignment, &name, held) {
        return why;
    }
    if let Some(why) = without_family(index, &name) {
        return Verdict::stalled(Reason::NoNodeAddress, why);
    }
    // Blocks are still assigned: a cluster has to start before a user can repair it.
    if let Some(why) = index.kube_proxy.mismatch(&pool.spec) {
        return Verdict::stalled(Reason::KubeProxyMismatch, why);
    }
    let left = assignment.free.get(&name).copied().unwrap_or_default();
    let free = counted(left, "block");
    let remark = index.kube_proxy.remark(&pool.spec);
    let remark = remark.map_or_else(String::new, |it| format!("; {it}"));
    let besides = format!(
        "{}{}{remark}",
        orphans(held, "kept for operator.orphanGrace"),
        strangers(index, pool)
    );
    if pool.spec.disabled {
        let kept = counted(held.len(), "block");
        let remaining = match held.iter().map(|held| held.used).sum::<i64>() {
            0 => "no pod has an address of this pool, so the pool can be deleted".to_owned(),
            1 => "1 address is in use, see status.remainingPods".to_owned(),
            used => format!("{used} addresses are in use, see status.remainingPods"),
        };
        return Verdict::ready(
            Reason::Disabled,
            format!(
                "spec.disabled: no new blocks and addresses; {kept} assigned, {free} free; {remaining}{besides}"
            ),
        );
    }
    // Less than a fifth: so that there is time to do something before the pool is spent.
    let all = usage(pool, held).blocks.total;
    if saturated(left).saturating_mul(5) < all {
        return Verdict::ready(
            Reason::NearlyExhausted,
            format!(
                "only {free} free: create another IPPool before the pool is exhausted{besides}"
            ),
        );
    }
    Verdict::ready(Reason::Allocatable, format!("{free} free{besides}"))
}

/// Whom no block is left for.
fn spent(assignment: &Assignment, pool: &str, held: &[Held<'_>]) -> Option<Verdict> {
    let named = |nodes: &BTreeSet<String>| {
        let nodes: Vec<_> = nodes.iter().collect();
        list(&nodes, MAX_LISTED)
    };
    let first = assignment.exhausted.get(pool);
    let first = first.map(|nodes| format!("no block is left for {}", named(nodes)));
    let more = || {
        let nodes = named(assignment.scarce.get(pool)?);
        Some(format!(
            "no block is left, and few addresses are free on {nodes}"
        ))
    };
    let why = first.or_else(more)?;
    let besides = orphans(held, "about to be reclaimed");
    Some(Verdict::stalled(
        Reason::Exhausted,
        format!("{why}{besides}; create another IPPool"),
    ))
}

/// How many blocks are those of Nodes that are gone, and what becomes of them.
fn orphans(held: &[Held<'_>], what: &str) -> String {
    match held.iter().filter(|held| held.orphaned).count() {
        0 => String::new(),
        count => format!("; {} of deleted Nodes {what}", counted(count, "block")),
    }
}

/// Nodes that state an address of the pool: the blocks with these addresses are not assigned.
fn strangers(index: &ClusterIndex<'_>, pool: &IPPool) -> String {
    let stated = cluster_ranges::addresses_of_nodes(index.cluster_state);
    let inside = stated.filter(|(_, address)| pool.spec.cidr.contains(address));
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

/// Why no Node that the pool serves can have a block of it though they have addresses: all of the other family.
fn without_family(index: &ClusterIndex<'_>, name: &str) -> Option<String> {
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

fn in_use(held: &[Held<'_>]) -> Verdict {
    if held.is_empty() {
        return Verdict::reconciling(Reason::InUse, "being deleted; no block is left");
    }
    let mut nodes: Vec<_> = held.iter().map(|held| held.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    Verdict::reconciling(
        Reason::InUse,
        format!(
            "being deleted; waiting until {} without pods (see status.remainingPods) on {}",
            if held.len() == 1 {
                "1 block is".to_owned()
            } else {
                format!("{} blocks are", held.len())
            },
            list(&nodes, MAX_LISTED)
        ),
    )
}
