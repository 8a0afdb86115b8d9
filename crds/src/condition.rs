//! Conditions as kstatus reads them: `Ready`, `Reconciling`, `Stalled`, and `Assigned` on NodeNetworks.
//!
//! A component computes one [`Verdict`] for an object. The three conditions follow from it, so they never contradict each
//! other. All reasons are in [`Reason`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The object works as specified.
pub const READY: &str = "Ready";
/// Work is in progress that changes the state of the object without intervention.
pub const RECONCILING: &str = "Reconciling";
/// Nothing changes without intervention.
pub const STALLED: &str = "Stalled";
/// The operator has assigned the node's blocks and addresses (on NodeNetworks, written by the operator).
pub const ASSIGNED: &str = "Assigned";

/// Longest message of a condition in characters, as in Kubernetes (`metav1.Condition`). The API server refuses longer ones.
pub const MAX_MESSAGE: usize = 32_768;

/// The message, truncated to the [`MAX_MESSAGE`] bytes that the API server accepts.
#[must_use]
pub fn bounded(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

/// Declares the reasons. The reason of a condition is the name of the variant.
macro_rules! reasons {
    ($($(#[$documentation:meta])* $name:ident),* $(,)?) => {
        /// Every reason that appears in a condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$documentation])* $name,)*
        }

        impl Reason {
            /// All reasons, for tests.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The reason as text, for the condition.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// Pool: new blocks can be assigned from it.
    Allocatable,
    /// Pool: new blocks can be assigned from it, but few are left.
    NearlyExhausted,
    /// Pool: `disabled` is set; assigned blocks stay.
    Disabled,
    /// Pool: no block is free for some node.
    Exhausted,
    /// Pool: its range overlaps another pool, node addresses, a Service range or another pod network.
    Overlap,
    /// Pool: kube-proxy would masquerade traffic of its pods to Services, or detects no pods.
    KubeProxyMismatch,
    /// Pool: being deleted, kept until its last block is gone.
    InUse,
    /// IPPool, NetworkMode: too many objects of the kind are usable already.
    TooMany,
    /// The object refers to another one that does not exist.
    NotFound,
    /// The object's values cannot be used.
    Invalid,
    /// The values are legal, but this version does not implement them.
    NotYetSupported,
    /// Mode: another mode uses the same VNI, port or BGP speaker. Peer: another peer already has the session.
    Conflict,
    /// Mode: every node uses it. NodeNetwork: the kernel is in sync.
    Programmed,
    /// Mode: nodes have not programmed it yet.
    Programming,
    /// Mode: it changes, and nodes prepare the new datapath and probe it.
    Preparing,
    /// Mode: it changes, and nodes begin to use the new datapath.
    Switching,
    /// Mode: it has changed, and nodes remove the old datapath.
    Retiring,
    /// Nothing uses the object yet.
    Unused,
    /// NodeNetwork: the node has its blocks.
    SubnetsAssigned,
    /// NodeNetwork: no pool has a block for the node.
    NoSubnet,
    /// NodeNetwork: the node has no usable address. Pool, peer: none of its nodes has an address of the required family.
    NoNodeAddress,
    /// Peer: every selected node has the session.
    Established,
    /// Peer: a session is not established, and its node continues to connect.
    Establishing,
    /// Peer: a session has a fault that needs a change of configuration.
    SessionFailed,
    /// NodeNetwork: an object could not be programmed; the message names it, and the agent retries.
    ProgrammingFailed,
    /// NodeNetwork: an object of another program prevents an object of netweft.
    ForeignObject,
    /// NodeNetwork: another program changes an object of netweft repeatedly; the message names both.
    Contested,
    /// NodeNetwork: the node's kernel lacks a feature; the message has the feature, the consequence, and the remedy.
    KernelLacksFeature,
    /// NodeNetwork: the main loop of the agent has stalled, so the node follows no changes until the agent restarts.
    AgentStalled,
}

/// The state of an object, as one component reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// State of the object.
    pub state: State,
    /// Cause of the state, as one word.
    pub reason: Reason,
    /// Cause of the state, for people.
    pub message: String,
}

/// The three states of kstatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Ready, and no change in progress.
    Ready,
    /// Not ready, and a change in progress.
    Reconciling,
    /// Not ready, and needs intervention.
    Stalled,
}

impl Verdict {
    /// The object is ready.
    pub fn ready(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::Ready,
            reason,
            message: message.into(),
        }
    }

    /// A change of the object is in progress.
    pub fn reconciling(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::Reconciling,
            reason,
            message: message.into(),
        }
    }

    /// The object needs intervention.
    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::Stalled,
            reason,
            message: message.into(),
        }
    }

    /// The conditions `Ready`, `Reconciling` and `Stalled`. A condition whose status does not change keeps its time from
    /// `before`.
    #[must_use]
    pub fn conditions(
        &self,
        generation: Option<i64>,
        before: &[Condition],
        now: Timestamp,
    ) -> Vec<Condition> {
        [
            (READY, State::Ready),
            (RECONCILING, State::Reconciling),
            (STALLED, State::Stalled),
        ]
        .into_iter()
        .map(|(type_, state)| {
            let new = Status {
                type_,
                status: self.state == state,
                reason: self.reason,
                message: &self.message,
            };
            new.condition(generation, before, now)
        })
        .collect()
    }
}

/// One condition without its time.
#[derive(Clone, Debug)]
pub struct Status<'a> {
    /// Type of the condition.
    pub type_: &'a str,
    /// Status of the condition: True or False.
    pub status: bool,
    /// Reason of the condition.
    pub reason: Reason,
    /// Message of the condition.
    pub message: &'a str,
}

impl Status<'_> {
    /// The condition. If its status has not changed, it keeps its time from `before`.
    #[must_use]
    pub fn condition(
        &self,
        generation: Option<i64>,
        before: &[Condition],
        now: Timestamp,
    ) -> Condition {
        let status = if self.status { "True" } else { "False" };
        let unchanged = before
            .iter()
            .find(|old| old.type_ == self.type_ && old.status == status);
        Condition {
            type_: self.type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.as_str().to_owned(),
            message: bounded(self.message.to_owned()),
            observed_generation: generation,
            last_transition_time: unchanged
                .map_or(Time(now), |old| old.last_transition_time.clone()),
        }
    }
}

/// Whether the condition `type_` is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn verdict_sets_exactly_one_condition_true() {
        let conditions = Verdict::stalled(Reason::Overlap, "m").conditions(Some(3), &[], at(1));
        let states: Vec<_> = conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str()))
            .collect();
        assert_eq!(
            states,
            [
                ("Ready", "False"),
                ("Reconciling", "False"),
                ("Stalled", "True")
            ]
        );
        assert!(
            conditions
                .iter()
                .all(|c| c.reason == "Overlap" && c.observed_generation == Some(3))
        );
    }

    #[test]
    fn overlong_message_is_truncated_between_characters() {
        let long = "ä".repeat(MAX_MESSAGE);
        let conditions = Verdict::ready(Reason::Programmed, long).conditions(None, &[], at(1));
        assert_eq!(conditions[0].message.len(), MAX_MESSAGE);
        assert!(conditions[0].message.chars().all(|c| c == 'ä'));
        assert_eq!(
            bounded(format!("x{}", "ä".repeat(MAX_MESSAGE))).len(),
            MAX_MESSAGE - 1
        );
    }

    #[test]
    fn transition_time_changes_only_with_status() {
        let first =
            Verdict::ready(Reason::Allocatable, "9 blocks free").conditions(Some(1), &[], at(1));
        let same =
            Verdict::ready(Reason::Allocatable, "8 blocks free").conditions(Some(1), &first, at(2));
        assert_eq!(same[0].last_transition_time, Time(at(1)));
        let other = Verdict::stalled(Reason::Invalid, "no").conditions(Some(2), &same, at(3));
        assert_eq!(other[0].last_transition_time, Time(at(3)));
        assert_eq!(other[1].last_transition_time, Time(at(1)));
    }
}
