//! Builds the status and passes it to the publisher.

use k8s_openapi::jiff::Timestamp;
use netweft_crds::condition::Verdict;
use netweft_crds::{NodeNetwork, NodeNetworkStatus, RepairCounts, RouteCounts};
use netweft_netstate::kernel::Kernel;

use crate::desired::Desired;
use crate::pods::Counts;
use crate::probes::sender::ProbeResults;
use crate::reconcile::Reconciler;
use crate::status::problem::Problem;
use crate::status::{Outcome, status};

impl<K: Kernel> Reconciler<K> {
    pub(super) fn publish_outcome(
        &self,
        network: &NodeNetwork,
        desired: &Desired,
        verdict: &Verdict,
        outcome: Outcome,
    ) {
        let before = self.last_status(network).unwrap_or_default();
        let generation = network.metadata.generation;
        let addresses = outcome.pod_addresses.as_ref();
        let mut status = status(desired, verdict, generation, before, addresses);
        status.routes = status.routes.map(|routes| RouteCounts {
            bgp: outcome.bgp_routes,
            ..routes
        });
        status.sessions = self.tasks.bird.observation().sessions;
        status.addresses = self.address_candidates.clone().unwrap_or_default();
        let prober = &self.tasks.probes;
        let ProbeResults { answered, problem } = prober.results();
        let plans = desired.probes.iter();
        status.probes = plans
            .map(|plan| plan.status(&answered, problem.as_deref(), prober.port()))
            .collect();
        status.pods = Some(outcome.pods);
        status.draining_pods = outcome.draining_pods;
        status.block_requests = outcome.block_requests;
        status.drift = self.drift.status();
        let Counts {
            restored,
            reclaimed,
        } = self.pods.counts();
        status.repairs = Some(RepairCounts {
            restored: i64::try_from(restored).unwrap_or(i64::MAX),
            reclaimed: i64::try_from(reclaimed).unwrap_or(i64::MAX),
        });
        self.publish(network, status);
    }

    /// Publishes a problem that prevented the sync. The rest of the status stays.
    pub(super) fn publish_problem(&self, network: &NodeNetwork, problem: &Problem) {
        let before = self.last_status(network).unwrap_or_default();
        let verdict = problem.verdict();
        let now = Timestamp::now();
        let conditions = verdict.conditions(before.observed_generation, &before.conditions, now);
        let candidates = self.address_candidates.clone();
        let addresses = candidates.unwrap_or(before.addresses);
        let status = NodeNetworkStatus {
            conditions,
            addresses,
            ..before
        };
        self.publish(network, status);
    }

    pub(super) fn publish(&self, network: &NodeNetwork, status: NodeNetworkStatus) {
        let uid = network.metadata.uid.as_deref();
        self.status
            .set(uid, network.status.as_ref(), status.bounded());
    }

    /// The last status that was passed to the publisher, otherwise the status of the object.
    pub(super) fn last_status(&self, network: &NodeNetwork) -> Option<NodeNetworkStatus> {
        let uid = network.metadata.uid.as_deref();
        self.status.last(uid, network.status.as_ref())
    }
}
