//! Reports another pod network that serves the node. The agent then programs nothing.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use netweft_crds::{NodeNetwork, NodeNetworkStatus};
use netweft_netstate::kernel::Kernel;

use crate::inputs::Objects;
use crate::inputs::other_network_detection;
use crate::inputs::other_network_detection::OtherNetworks;
use crate::reconcile::Reconciler;
use crate::status::problem::{Problem, Problems};

/// Interval of the checks. A change of the kernel or of a CNI configuration triggers a check at once.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

impl<K: Kernel> Reconciler<K> {
    /// Reports another pod network that serves this node, if there is one. Returns the delay of the next check.
    pub(super) async fn check_other_networks(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
    ) -> Option<Duration> {
        if self.ignore_other_networks || other_network_detection::has_served(&self.paths) {
            return None;
        }
        // The sync reports a failure to read the kernel.
        let actual = self.kernel.read().await.ok()?;
        let conf_dir = &self.paths.cni_conf_dir;
        let found = other_network_detection::detect(&actual, &objects.pools, conf_dir);
        let problem = Problem::from(found.cause()?);
        self.failure_log.add(&problem.message);
        self.report_other_network(network, found, &problem);
        let problems = Problems::from(problem);
        self.metrics.set_problems(problems.counts());
        self.health.succeeded();
        Some(RECHECK_INTERVAL)
    }

    /// Publishes the problem. The generation is not acknowledged, because nothing of it is programmed.
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
