//! The configuration of BIRD, the relay, the prober and the firewall probe.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netweft_cni::block;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use netweft_udp_relay::config::RelayConfig;
use tracing::info;

use crate::apply::sysctl::Parameters;
use crate::desired::Desired;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::firewall::Targets;
use crate::firewall::probe::MAX_TARGETS;
use crate::inputs::Inputs;
use crate::inputs::bgp_routes::bgp_routes;
use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::problem::Problem;

impl<K: Kernel> Reconciler<K> {
    /// Sets the configuration of BIRD. BIRD leaves its routes in the kernel (`persist`): they are deleted while BGP is off and BIRD
    /// does not manage them any more.
    pub(super) async fn sync_bird(
        &self,
        inputs: &Inputs,
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        let observation = self.tasks.bird.observation();
        let remote = inputs.remote.iter();
        let nodes = remote.flat_map(|block| block.addresses.iter());
        let nodes = inputs.addresses.iter().chain(nodes);
        self.tasks.bird.set(
            desired.bird.clone(),
            nodes.collect::<BTreeSet<_>>().into_iter().collect(),
        );
        outcome.problems.extend(observation.problems);
        let routes = || bgp_routes(inputs, actual);
        outcome.bgp_routes = routes().count() as i64;
        if desired.bird.is_none() && observation.released {
            let deletions = routes().map(|(key, route)| Op::RouteDelete {
                key: key.clone(),
                route: route.clone(),
            });
            let deletions: Vec<Op> = deletions.collect();
            drop(
                self.apply(deletions.iter().enumerate(), (actual, desired), outcome)
                    .await,
            );
        }
    }

    /// Sets the probes over standby datapaths.
    pub(super) fn update_probes(&self, desired: &Desired, outcome: &mut Outcome) {
        if desired.probes.iter().any(|it| it.protocol.uses_icmp())
            && let Err(error) = Parameters::new(&self.paths).allow_ping_sockets()
        {
            let failure = Problem::failure(error.parameter(), &error);
            outcome.problems.push(failure);
        }
        self.tasks.probes.set_plans(&desired.probes);
    }

    /// Writes the configuration of the relay, or removes it if there is no tunnel.
    pub(super) fn write_relay_config(&self, config: &RelayConfig) -> io::Result<()> {
        let changed = if config.tunnels.is_empty() {
            RelayConfig::remove(&self.paths.run_dir)?
        } else {
            config.write(&self.paths.run_dir)?
        };
        if changed {
            info!(tunnels = config.tunnels.len(), "wrote relay configuration");
        }
        Ok(())
    }
}

/// The targets of the firewall probe: the IPv4 address of each node in its first block.
pub(super) fn firewall_targets(inputs: &Inputs) -> Targets {
    let mut own = tunnel_addresses(inputs).into_values();
    let mut others: BTreeMap<&str, IpAddr> = BTreeMap::new();
    for block in &inputs.remote {
        let address = block::tunnel_address(block.cidr);
        if let Some(address) = address.filter(IpAddr::is_ipv4) {
            others.entry(&block.node).or_insert(address);
        }
    }
    Targets {
        from: own.find(IpAddr::is_ipv4),
        to: others.into_values().take(MAX_TARGETS).collect(),
    }
}
