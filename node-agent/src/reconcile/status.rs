//! What the publisher is to tell.

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
        let (generation, taken) = (network.metadata.generation, outcome.taken.as_ref());
        let mut status = status(desired, verdict, generation, before, taken);
        status.routes = status.routes.map(|routes| RouteCounts {
            bgp: outcome.bgp_routes,
            ..routes
        });
        status.sessions = self.bird.observed().sessions;
        status.addresses = self.found.clone().unwrap_or_default();
        let ProbeResults { answered, problem } = self.probes.answers();
        let probes = desired.probes.iter();
        status.probes = probes
            .map(|probe_plan| probe_plan.status(&answered, problem.as_deref(), self.probes.port()))
            .collect();
        status.pods = Some(outcome.pods);
        status.draining_pods = outcome.draining;
        status.block_requests = outcome.requests;
        status.drift = self.drifts.status();
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

    /// Nothing could be looked at or changed: keep what was said of links and pods' addresses, and say why.
    pub(super) fn publish_problem(&self, network: &NodeNetwork, problem: &Problem) {
        let before = self.last_status(network).unwrap_or_default();
        let verdict = problem.verdict();
        let now = Timestamp::now();
        let conditions = verdict.conditions(before.observed_generation, &before.conditions, now);
        let addresses = self.found.clone().unwrap_or(before.addresses);
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

    /// The status as it stands, or soon will.
    pub(super) fn last_status(&self, network: &NodeNetwork) -> Option<NodeNetworkStatus> {
        let uid = network.metadata.uid.as_deref();
        self.status.last(uid, network.status.as_ref())
    }
}
