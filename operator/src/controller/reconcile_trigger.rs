//! [`ReconcileTrigger`]: starts a reconcile, and collects the names of the changes that the reconcile handles.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::Notify;

/// The sources of the changes since the last reconcile. Many tasks trigger, and the reconcile loop waits.
#[derive(Debug, Default)]
pub struct ReconcileTrigger {
    wake: Notify,
    sources: Mutex<BTreeSet<String>>,
}

impl ReconcileTrigger {
    /// Triggers a reconcile because of a change in `source`, for example a kind. The local copy must already contain
    /// the change.
    pub fn trigger(&self, source: &str) {
        let mut sources = self.sources();
        if !sources.contains(source) {
            sources.insert(source.to_owned());
        }
        self.wake.notify_one();
    }

    /// Waits for a trigger that has not been taken.
    pub async fn triggered(&self) {
        self.wake.notified().await;
    }

    /// Takes the sources of all triggers so far, separated by commas. The next plan contains their changes.
    pub fn take(&self) -> String {
        // Under the lock, so that each trigger is either in the result or wakes the loop.
        let mut sources = self.sources();
        self.wake.notified().now_or_never();
        let taken: Vec<String> = std::mem::take(&mut *sources).into_iter().collect();
        taken.join(",")
    }

    fn sources(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_triggers_name_sources_and_wake_once() {
        let trigger = ReconcileTrigger::default();
        assert_eq!(trigger.triggered().now_or_never(), None);
        for source in ["Node", "IPPool", "Node"] {
            trigger.trigger(source);
        }
        assert_eq!(trigger.triggered().now_or_never(), Some(()));
        trigger.trigger("NodeSubnet");
        assert_eq!(trigger.take(), "IPPool,Node,NodeSubnet");
        assert_eq!(
            trigger.triggered().now_or_never(),
            None,
            "all triggers are taken"
        );
        trigger.trigger("Node");
        assert_eq!(trigger.triggered().now_or_never(), Some(()));
        assert_eq!(trigger.take(), "Node");
    }
}
