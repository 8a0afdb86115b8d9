//! Conditions and counts of IPPools, NetworkModes and Nodes: the statuses that the operator writes.

pub mod bgp_peer;
mod ip_pool;
mod network_mode;
pub mod network_unavailable;
pub mod remaining_pods;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use netweft_crds::condition::{READY, Reason, State, Verdict};
use netweft_crds::{NetworkMode, NetworkModeStatus, Phase};

use crate::plan::bgp::BgpTopology;
pub use crate::plan::conditions::ip_pool::plan_pools;
use crate::plan::message_lists::list;
use crate::plan::model::cluster_state::{ConditionEvent, StatusChange, Unreadable, UserKind};
use crate::plan::model::index::ClusterIndex;
use crate::plan::rollout::Rollouts;

/// Most nodes that a status names.
pub const MAX_LISTED: usize = 5;

/// Statuses of NetworkModes that differ from what stands there.
#[must_use]
pub fn plan_modes(
    index: &ClusterIndex<'_>,
    rollouts: &Rollouts<'_>,
    topology: Option<&BgpTopology>,
) -> Vec<StatusChange<NetworkModeStatus>> {
    let used = index.used_modes();
    let changes = index.cluster_state.modes.iter().filter_map(|object| {
        let (verdict, status) = match index.modes.get(&object.name_any())? {
            Err(why) => (why.clone(), NetworkModeStatus::default()),
            Ok(mode) if used.contains_key(mode.name.as_str()) => {
                let (mut verdict, status) = network_mode::progress(index, rollouts, object, mode);
                let of_mode = topology.filter(|topology| topology.mode == mode.name);
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
        let change = StatusUpdate {
            meta: &object.metadata,
            verdict,
            now: index.cluster_state.now,
        };
        change.of(object.status.as_ref(), status, |status| {
            &mut status.conditions
        })
    });
    changes
        .chain(unreadable(index, UserKind::Mode, |meta, conditions| {
            NetworkModeStatus {
                observed_generation: meta.generation,
                conditions,
                ..NetworkModeStatus::default()
            }
        }))
        .collect()
}

/// One object's new status in the making.
pub struct StatusUpdate<'a> {
    /// The object.
    pub meta: &'a ObjectMeta,
    /// The message of the condition.
    pub verdict: Verdict,
    /// The time of conditions that change.
    pub now: Timestamp,
}

impl StatusUpdate<'_> {
    /// `new` with the conditions of the verdict, unless `old` has the same conditions.
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
        // Conditions that other controllers keep on the object are left alone.
        let kept = after
            .iter()
            .filter_map(|new| before.iter().find(|old| old.type_ == new.type_));
        *conditions(&mut own) = kept.cloned().collect();
        let warning =
            self.verdict.state == State::Stalled || self.verdict.reason == Reason::NearlyExhausted;
        let ready = after.iter().find(|condition| condition.type_ == READY);
        let event = ready.and_then(|ready| ConditionEvent::of(&before, ready, warning));
        *conditions(&mut new) = after;
        (old.is_none() || own != new).then(|| StatusChange {
            name: self.meta.name.clone().unwrap_or_default(),
            uid: self.meta.uid.clone(),
            status: new,
            event,
        })
    }
}

/// Statuses of objects that cannot be read. What stands there now cannot be read either, so they are written always;
/// that changes nothing in the API server, because the time is the object's own.
pub fn unreadable<'a, S>(
    index: &'a ClusterIndex<'_>,
    kind: UserKind,
    status: fn(&ObjectMeta, Vec<Condition>) -> S,
) -> impl Iterator<Item = StatusChange<S>> + 'a
where
    S: 'a,
{
    let objects = index
        .cluster_state
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
                event: None,
            }
        },
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
fn too_many(topology: &BgpTopology) -> String {
    if topology.left_out.is_empty() {
        return String::new();
    }
    format!(
        "; too many nodes for a session between any two: {} lack some; set \
         spec.underlay.nodeToNodeMesh to false and use routeReflectors or BGPPeers",
        list(&topology.left_out, MAX_LISTED)
    )
}
