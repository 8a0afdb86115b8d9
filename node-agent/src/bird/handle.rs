//! The channels between the reconciler and the task of BIRD.

use std::net::IpAddr;

use netweft_crds::SessionStatus;
use tokio::sync::watch;

use crate::desired::bird::Bird;
use crate::status::problem::Problems;

/// The desired state of BIRD.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    /// `None`: BGP is off.
    pub bird: Option<Bird>,
    /// Addresses of all nodes.
    pub node_addresses: Vec<IpAddr>,
}

/// An observation of BIRD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The desired sessions in the operator's order.
    pub sessions: Vec<SessionStatus>,
    /// Why BIRD does not run with the desired configuration.
    pub problems: Problems,
    /// BIRD does not manage routes in the kernel: it has the idle configuration, or it does not run.
    pub released: bool,
    /// BGP is on, and BIRD does not answer.
    pub unavailable: bool,
    /// Number of connections to BIRD so far. A new connection belongs to a new BIRD.
    pub connection: u64,
}

/// The reconciler's handle to the task.
pub struct BirdHandle {
    targets: watch::Sender<Option<Target>>,
    observations: watch::Receiver<Observation>,
}

/// The handle, and the task's ends of its channels.
pub(super) fn channels() -> (
    BirdHandle,
    watch::Receiver<Option<Target>>,
    watch::Sender<Observation>,
) {
    let (sender, targets) = watch::channel(None);
    let (observations, receiver) = watch::channel(Observation::default());
    let handle = BirdHandle {
        targets: sender,
        observations: receiver,
    };
    (handle, targets, observations)
}

impl BirdHandle {
    /// Sets the desired state.
    pub fn set(&self, bird: Option<Bird>, node_addresses: Vec<IpAddr>) {
        let target = Some(Target {
            bird,
            node_addresses,
        });
        self.targets.send_if_modified(|current| {
            let changed = *current != target;
            if changed {
                *current = target;
            }
            changed
        });
    }

    /// A handle without a task, and the sender of its observations.
    #[cfg(test)]
    pub fn detached() -> (Self, watch::Sender<Observation>) {
        let (handle, _, sender) = channels();
        (handle, sender)
    }

    /// The desired configuration.
    #[cfg(test)]
    pub fn desired(&self) -> Option<Bird> {
        self.targets.borrow().clone()?.bird
    }

    /// The last observation.
    #[must_use]
    pub fn observation(&self) -> Observation {
        self.observations.borrow().clone()
    }

    /// Reports each change of the observation.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Observation> {
        self.observations.clone()
    }
}
