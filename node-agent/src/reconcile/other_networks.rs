//! A node that another pod network serves.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use netweft_crds::{NodeNetwork, NodeNetworkStatus};
use netweft_netstate::kernel::Kernel;

use crate::inputs::Objects;
use crate::inputs::other_networks;
use crate::inputs::other_networks::OtherNetworks;
use crate::reconcile::Reconciler;
use crate::status::problem::Problem;

/// Pause between two checks. A change of the kernel or of the runtime's configurations brings the next one at once.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

impl<K: Kernel> Reconciler<K> {
    /// Reports another pod network that serves this node, if there is one. Returns when to check again.
    pub(super) async fn leave_to_other_network(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
    ) -> Option<Duration> {
        if self.ignore_other_networks || other_networks::has_served(&self.paths) {
            return None;
        }
        // What prevents a reading is reported by the sync.
        let actual = self.kernel.read().await.ok()?;
        let found = other_networks::find(&actual, &objects.pools, &self.paths.cni_conf_dir);
        let problem = Problem::from(found.cause()?);
        self.failure_log.is(&problem.message);
        self.report_other_network(network, found, &problem);
        self.health.worked_well();
        Some(RECHECK_INTERVAL)
    }

    /// The generation is not acknowledged: nothing of it is carried out.
    fn report_other_network(&self, network: &NodeNetwork, found: OtherNetworks, problem: &Problem) {
        let verdict = problem.verdict();
        let before = self.last_status(network).unwrap_or_default();
        let now = Timestamp::now();
        let conditions = verdict.conditions(before.observed_generation, &before.conditions, now);
        let status = NodeNetworkStatus {
            conditions,
            other_networks: found.ranges,
            ..before
        };
        self.publish(network, status);
    }
}
