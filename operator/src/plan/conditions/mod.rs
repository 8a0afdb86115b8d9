//! Statuses and conditions of IPPools, NetworkModes, BGPPeers and Nodes.

pub mod bgp_peer;
pub mod ip_pool;
pub mod network_mode;
pub mod network_unavailable;
pub mod remaining_pods;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::core::object::HasStatus;
use netweft_crds::condition::{READY, Reason, State, Verdict};
use netweft_crds::{BGPPeerStatus, IPPoolStatus, NetworkModeStatus};

use crate::plan::model::cluster_state::{ConditionEvent, StatusChange, UserKind};
use crate::plan::model::index::ClusterIndex;

/// Maximum number of names in a message.
pub const MAX_LISTED: usize = 5;

/// The fields that the statuses of all [`UserKind`]s have.
pub trait UserObjectStatus: Clone + Default + PartialEq {
    /// Generation of the spec that the status describes.
    fn observed_generation(&mut self) -> &mut Option<i64>;
    /// The conditions.
    fn conditions(&mut self) -> &mut Vec<Condition>;
}

macro_rules! user_object_status {
    ($($status:ty),*) => {
        $(impl UserObjectStatus for $status {
            fn observed_generation(&mut self) -> &mut Option<i64> {
                &mut self.observed_generation
            }

            fn conditions(&mut self) -> &mut Vec<Condition> {
                &mut self.conditions
            }
        })*
    };
}

user_object_status!(IPPoolStatus, NetworkModeStatus, BGPPeerStatus);

/// Completes `status` with the generation of `object` and the conditions of `verdict`. Returns the status if it differs
/// from the current one.
fn status_change<K>(
    object: &K,
    verdict: &Verdict,
    mut status: K::Status,
    now: Timestamp,
) -> Option<StatusChange<K::Status>>
where
    K: Resource + HasStatus,
    K::Status: UserObjectStatus,
{
    let meta = object.meta();
    let mut current = object.status().cloned().unwrap_or_default();
    let before = std::mem::take(current.conditions());
    let after = verdict.conditions(meta.generation, &before, now);
    // Conditions of other controllers are not compared. Server-side apply keeps them.
    let own = after
        .iter()
        .filter_map(|new| before.iter().find(|old| old.type_ == new.type_));
    *current.conditions() = own.cloned().collect();
    let warning = verdict.state == State::Stalled || verdict.reason == Reason::NearlyExhausted;
    let ready = after.iter().find(|condition| condition.type_ == READY);
    let event = ready.and_then(|ready| ConditionEvent::of(&before, ready, warning));
    *status.observed_generation() = meta.generation;
    *status.conditions() = after;
    (object.status().is_none() || current != status).then(|| StatusChange {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone(),
        status,
        event,
    })
}

/// Statuses of the objects of a kind that cannot be parsed. The current status cannot be parsed either, so these are
/// always written. The API server ignores an unchanged write: the transition time is the creation time of the object.
fn unreadable_statuses<'a, S: UserObjectStatus + 'a>(
    index: &'a ClusterIndex<'_>,
    kind: UserKind,
) -> impl Iterator<Item = StatusChange<S>> + 'a {
    let objects = index.cluster_state.unreadable.iter();
    let objects = objects.filter(move |object| object.kind == kind);
    objects.map(|object| {
        let meta = &object.metadata;
        let created = meta.creation_timestamp.as_ref();
        let time = created.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let mut status = S::default();
        *status.observed_generation() = meta.generation;
        *status.conditions() = object.verdict().conditions(meta.generation, &[], time);
        StatusChange {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone(),
            status,
            event: None,
        }
    })
}
