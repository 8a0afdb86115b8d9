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
    /// Pods that run keep their network, and blocks that are no longer this node's are not handed out. Without this a node that comes
    /// back, Ready at once by its old files, would give new pods other nodes' addresses. Returns when to try again.
    pub(super) fn drop_lost_blocks(&mut self, objects: &Objects) -> Option<Duration> {
        // From what cannot be read the plugin hands out nothing.
        let offered = NodeConfig::read(&self.paths.run_dir).ok()?;
        let left = without_lost_blocks(&self.node, objects, &offered);
        if left == offered {
            return None;
        }
        if let Err(error) = left.write(&self.paths.run_dir) {
            let file = self.paths.run_dir.join(FILE);
            let file = file.display();
            let why = error_chain(&error);
            self.failure_log
                .is(&format!("take blocks that are lost out of {file}: {why}"));
            return self.retry.next();
        }
        self.failure_log.are([]);
        warn!("withdrew blocks that this node no longer owns");
        // Whatever comes with a new NodeNetwork, nobody else has changed this file.
        self.drifts.end(None);
        self.retry.reset();
        None
    }
}
