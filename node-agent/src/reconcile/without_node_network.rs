//! A node without a NodeNetwork.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use netweft_cni::node::{FILE, NodeConfig};
use netweft_netstate::kernel::Kernel;
use tracing::warn;

use crate::inputs::Objects;
use crate::inputs::lost_blocks::without_lost_blocks;
use crate::reconcile::Reconciler;
use netweft_common::error_chain;

impl<K: Kernel> Reconciler<K> {
    /// Removes the blocks that this node no longer owns from the configuration of the plugin. Running pods keep their network.
    /// Otherwise a node that registers again, and is Ready at once because its files exist, would give addresses of other nodes to
    /// new pods. Returns the delay of the next attempt.
    pub(super) fn drop_lost_blocks(&mut self, objects: &Objects) -> Option<Duration> {
        // The plugin allocates nothing from an unreadable file.
        let current = NodeConfig::read(&self.paths.run_dir).ok()?;
        let kept = without_lost_blocks(&self.node, objects, &current);
        if kept == current {
            return None;
        }
        if let Err(error) = kept.write(&self.paths.run_dir) {
            let file = self.paths.run_dir.join(FILE);
            let file = file.display();
            let cause = error_chain(&error);
            self.failure_log
                .add(&format!("remove lost blocks from {file}: {cause}"));
            return self.retry.next();
        }
        self.failure_log.set([]);
        warn!("withdrew blocks that this node no longer owns");
        // The next change of this file, by a new NodeNetwork, is not drift.
        self.drift.end_sync(None);
        self.retry.reset();
        None
    }
}
