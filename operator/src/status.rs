//! What users' objects are told about themselves: counts and verdicts as statuses.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use netweft_crds::condition::{READY, Reason, State, Verdict, is_true};
use netweft_crds::{
    IPPool, IPPoolStatus, NetworkMode, NetworkModeStatus, NodeNetwork, Phase, Usage, UsageCount,
};

use crate::assign::Assignment;
use crate::bgp::Fabric;
use crate::blocks::{Blocks, address_count};
use crate::change::Ways;
use crate::drain;
use crate::pool::lenient_reserved;
use crate::view::View;
use crate::words::{counted, list};
use crate::world::{News, StatusChange, Unreadable, UserKind};

mod progress;

/// Most nodes that a status names.
pub const NAMED: usize = 5;

/// Statuses of IPPools that differ from what stands there.
#[must_use]
pub fn plan_pools(view: &View<'_>, assignment: &Assignment) -> Vec<StatusChange<IPPoolStatus>> {
    let held = blocks_by_pool(view);
    let changes = view.pool_objects.iter().filter_map(|(name, pool)| {
        let held = held.get(name).map_or(&[][..], Vec::as_slice);
        let verdict = judge_pool(view, assignment, pool, held);
        let status = IPPoolStatus {
            observed_generation: pool.metadata.generation,
            usage: Some(usage(pool, held)),
            remaining: drain::remaining(pool, view.networks.values().copied(), &view.world.owners),
            conditions: Vec::new(),
        };
        let change = Change {
            meta: &pool.metadata,
            verdict,
            now: view.world.now,
        };
        change.of(pool.status.as_ref(), status, |status| {
            &mut status.conditions
        })
    });
    changes
        .chain(unreadable(view, UserKind::Pool, |meta, conditions| {
            IPPoolStatus {
                observed_generation: meta.generation,
                conditions,
                ..IPPoolStatus::default()
            }
        }))
        .collect()
}

/// Statuses of NetworkModes that differ from what stands there.
#[must_use]
pub fn plan_modes(
    view: &View<'_>,
    ways: &Ways<'_>,
    fabric: Option<&Fabric>,
) -> Vec<StatusChange<NetworkModeStatus>> {
    let used = view.used_modes();
    let changes = view.world.modes.iter().filter_map(|object| {
        let (verdict, status) = match view.modes.get(&object.name_any())? {
            Err(why) => (why.clone(), NetworkModeStatus::default()),
            Ok(mode) if used.contains_key(mode.name.as_str()) => {
                let (mut verdict, status) = progress::progress(view, ways, object, mode);
                let of_mode = fabric.filter(|fabric| fabric.mode == mode.name);
                verdict.message += &of_mode.map(too_many).unwrap_or_default();
                (verdict, status)
            }
            Ok(_) => {
                let status = NetworkModeStatus {
                    phase: Some(Phase::Stable),
                    ..NetworkModeStatus::default()
                };
                (unused(object), status)
            }
        };
        let status = NetworkModeStatus {
            observed_generation: object.metadata.generation,
            ..status
        };
        let change = Change {
            meta: &object.metadata,
            verdict,
            now: view.world.now,
        };
        change.of(object.status.as_ref(), status, |status| {
            &mut status.conditions
        })
    });
    changes
        .chain(unreadable(view, UserKind::Mode, |meta, conditions| {
            NetworkModeStatus {
                observed_generation: meta.generation,
                conditions,
                ..NetworkModeStatus::default()
            }
        }))
        .collect()
}

/// One object's new status in the making.
pub struct Change<'a> {
    /// The object.
    pub meta: &'a ObjectMeta,
    /// What there is to say about it.
    pub verdict: Verdict,
    /// The time of conditions that change.
    pub now: Timestamp,
}

impl Change<'_> {
    /// `new` with the conditions of the verdict, unless `old` says the same.
    pub fn of<S: Clone + Default + PartialEq>(
        self,
        old: Option<&S>,
        mut new: S,
        conditions: fn(&mut S) -> &mut Vec<Condition>,
    ) -> Option<StatusChange<S>> {
        let mut own = old.cloned().unwrap_or_default();
        let before = std::mem::take(conditions(&mut own));
        let after = self
            .verdict
            .conditions(self.meta.generation, &before, self.now);
        // Conditions that somebody else keeps on the object are none of our business.
        let kept = after
            .iter()
            .filter_map(|new| before.iter().find(|old| old.type_ == new.type_));
        *conditions(&mut own) = kept.cloned().collect();
        let warning =
            self.verdict.state == State::Stalled || self.verdict.reason == Reason::NearlyExhausted;
        let ready = after.iter().find(|condition| condition.type_ == READY);
        let news = ready.and_then(|ready| News::of(&before, ready, warning));
        *conditions(&mut new) = after;
        (old.is_none() || own != new).then(|| StatusChange {
            name: self.meta.name.clone().unwrap_or_default(),
            uid: self.meta.uid.clone(),
            status: new,
            news,
        })
    }
}

/// Statuses of objects that cannot be read. What stands there now cannot be read either, so they are written always;
/// that changes nothing in the API server, because the time is the object's own.
pub fn unreadable<'a, S>(
    view: &'a View<'_>,
    kind: UserKind,
    status: fn(&ObjectMeta, Vec<Condition>) -> S,
) -> impl Iterator<Item = StatusChange<S>> + 'a
where
    S: 'a,
{
    let objects = view
        .world
        .unreadable
        .iter()
        .filter(move |object| object.kind == kind);
    objects.map(
        move |Unreadable {
                  metadata, error, ..
              }| {
            let verdict = Verdict::stalled(
                Reason::Invalid,
                format!("the object cannot be read: {error}"),
            );
            let time = metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            StatusChange {
                name: metadata.name.clone().unwrap_or_default(),
                uid: metadata.uid.clone(),
                status: status(metadata, verdict.conditions(metadata.generation, &[], time)),
                news: None,
            }
        },
    )
}

/// A block and its node, and how many of its addresses are in use.
struct Held<'a> {
    node: &'a str,
    used: i64,
}

fn blocks_by_pool<'a>(view: &View<'a>) -> BTreeMap<&'a str, Vec<Held<'a>>> {
    let statuses = view
        .networks
        .values()
        .filter_map(|network| network.status.as_ref());
    let usage = statuses.flat_map(|status| &status.subnets);
    let used: BTreeMap<IpNet, i64> = usage.map(|usage| (usage.cidr, usage.used)).collect();
    let mut pools: BTreeMap<&str, Vec<Held<'_>>> = BTreeMap::new();
    for subnet in view.world.subnets.iter().copied() {
        let used = used.get(&subnet.spec.cidr).copied().unwrap_or_default();
        let held = Held {
            node: &subnet.spec.node,
            used,
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
    view: &View<'_>,
    assignment: &Assignment,
    pool: &IPPool,
    held: &[Held<'_>],
) -> Verdict {
    let name = pool.name_any();
    if pool.metadata.deletion_timestamp.is_some() {
        return in_use(held);
    }
    if let Some(Err(why)) = view.pools.by_name.get(&name) {
        return why.clone();
    }
    if let Some(nodes) = assignment.exhausted.get(&name) {
        let nodes: Vec<_> = nodes.iter().collect();
        return Verdict::stalled(
            Reason::Exhausted,
            format!(
                "no block is left for {}; create another IPPool",
                list(&nodes, NAMED)
            ),
        );
    }
    if let Some(nodes) = assignment.scarce.get(&name) {
        let nodes: Vec<_> = nodes.iter().collect();
        return Verdict::stalled(
            Reason::Exhausted,
            format!(
                "no block is left, and addresses run short on {}; create another IPPool",
                list(&nodes, NAMED)
            ),
        );
    }
    // Blocks are assigned all the same: a cluster has to come up before somebody can repair it.
    if let Some(why) = view.kube_proxy.mismatch(&pool.spec) {
        return Verdict::stalled(Reason::KubeProxyMismatch, why);
    }
    let left = assignment.free.get(&name).copied().unwrap_or_default();
    let free = counted(left, "block");
    if pool.spec.disabled {
        let kept = counted(held.len(), "block");
        let remaining = match held.iter().map(|held| held.used).sum::<i64>() {
            0 => "no pod has an address of it, so it can be deleted".to_owned(),
            1 => "1 address is in use, see status.remaining".to_owned(),
            used => format!("{used} addresses are in use, see status.remaining"),
        };
        return Verdict::ready(
            Reason::Disabled,
            format!(
                "spec.disabled: no new blocks and addresses; {kept} assigned, {free} free; {remaining}"
            ),
        );
    }
    // Less than a fifth: so that there is time to do something before the pool is spent.
    let all = usage(pool, held).blocks.total;
    if saturated(left).saturating_mul(5) < all {
        return Verdict::ready(
            Reason::NearlyExhausted,
            format!("only {free} free: create another IPPool before they are spent"),
        );
    }
    Verdict::ready(Reason::Allocatable, format!("{free} free"))
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
            "being deleted; kept until {} without pods, which status.remaining names: waiting for {}",
            if held.len() == 1 {
                "1 block is".to_owned()
            } else {
                format!("{} blocks are", held.len())
            },
            list(&nodes, NAMED)
        ),
    )
}

fn unused(object: &NetworkMode) -> Verdict {
    let name = object.name_any();
    Verdict::ready(
        Reason::Unused,
        format!("no usable IPPool has spec.networkMode {name}"),
    )
}

/// Who has no session because there would be too many.
fn too_many(fabric: &Fabric) -> String {
    if fabric.left_out.is_empty() {
        return String::new();
    }
    format!(
        "; too many nodes for a session between any two: {} lack some; set \
         spec.underlay.nodeToNodeMesh to false and use routeReflectors or BGPPeers",
        list(&fabric.left_out, NAMED)
    )
}

/// Whether the node's agent says that its kernel agrees with the spec as it is now.
pub fn acknowledged(network: &NodeNetwork) -> bool {
    network.status.as_ref().is_some_and(|status| {
        status.observed_generation == network.metadata.generation
            && is_true(&status.conditions, READY)
    })
}
