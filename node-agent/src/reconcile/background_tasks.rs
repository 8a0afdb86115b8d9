//! What BIRD, the relay and the prober are to do.

use std::collections::BTreeSet;
use std::io;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_udp_relay::config::RelayConfig;
use tracing::info;

use crate::apply::sysctl::Parameters;
use crate::desired::Desired;
use crate::inputs::Inputs;
use crate::inputs::bgp_routes::bgp_routes;
use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::problem::Problem;

impl<K: Kernel> Reconciler<K> {
    /// Says what BIRD is to do. While BGP is off and BIRD has let go of the kernel's routes, which it leaves there (`persist`), they
    /// are taken away; while it is on they are BIRD's alone.
    pub(super) async fn sync_bird(
        &self,
        inputs: &Inputs,
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        let observed = self.bird.observed();
        let remote = inputs.remote.iter();
        let nodes = remote.flat_map(|block| block.addresses.iter());
        let nodes = inputs.addresses.iter().chain(nodes);
        self.bird.set(
            desired.bird.clone(),
            nodes.collect::<BTreeSet<_>>().into_iter().collect(),
        );
        outcome.problems.extend(observed.problems);
        let left = || bgp_routes(inputs, actual);
        outcome.bgp_routes = left().count() as i64;
        if desired.bird.is_none() && observed.released {
            let gone = left().map(|(key, route)| Op::RouteDelete {
                key: key.clone(),
                route: route.clone(),
            });
            let gone: Vec<Op> = gone.collect();
            drop(
                self.apply(gone.iter().enumerate(), (actual, desired), outcome)
                    .await,
            );
        }
    }

    /// Sets the probes over standby datapaths.
    pub(super) fn update_probes(&self, desired: &Desired, outcome: &mut Outcome) {
        if desired.probes.iter().any(|it| it.probe.uses_icmp())
            && let Err(error) = Parameters::new(&self.paths).allow_echo()
        {
            let failure = Problem::failure(error.parameter(), &error);
            outcome.problems.push(failure);
        }
        self.probes.set_plans(&desired.probes);
    }

    /// The relay knows no more than what it is told here.
    pub(super) fn write_relay_config(&self, config: &RelayConfig) -> io::Result<()> {
        let told = if config.tunnels.is_empty() {
            RelayConfig::remove(&self.paths.run_dir)?
        } else {
            config.write(&self.paths.run_dir)?
        };
        if told {
            info!(tunnels = config.tunnels.len(), "wrote relay configuration");
        }
        Ok(())
    }
}
