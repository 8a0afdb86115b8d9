//! [`Changes`]: wakes the loop, and reports what has changed.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::Notify;

/// What has changed since the loop asked last. Many report, one waits.
#[derive(Debug, Default)]
pub struct Changes {
    wake: Notify,
    sources: Mutex<BTreeSet<String>>,
}

impl Changes {
    /// Something of `source`, for example a kind, has changed. Call it when the copy has the change.
    pub fn report(&self, source: &str) {
        let mut sources = self.sources();
        if !sources.contains(source) {
            sources.insert(source.to_owned());
        }
        self.wake.notify_one();
    }

    /// Waits until something has been reported that was not taken.
    pub async fn reported(&self) {
        self.wake.notified().await;
    }

    /// Takes the sources of all reports so far, with commas between. A plan that is made next contains their changes.
    pub fn take(&self) -> String {
        // With the lock, so that a report is either in the answer or wakes the loop.
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
    fn taken_changes_name_sources_and_wake_once() {
        let changes = Changes::default();
        assert_eq!(changes.reported().now_or_never(), None);
        for source in ["Node", "IPPool", "Node"] {
            changes.report(source);
        }
        assert_eq!(changes.reported().now_or_never(), Some(()));
        changes.report("NodeSubnet");
        assert_eq!(changes.take(), "IPPool,Node,NodeSubnet");
        assert_eq!(changes.reported().now_or_never(), None, "all is taken");
        changes.report("Node");
        assert_eq!(changes.reported().now_or_never(), Some(()));
        assert_eq!(changes.take(), "Node");
    }
}
