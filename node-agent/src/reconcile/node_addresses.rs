//! Reports of the node's addresses that the operator asks for.

use netweft_crds::NodeNetwork;
use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;

use crate::inputs::Objects;
use crate::inputs::node_addresses::{Probe, Sources, destinations, find};
use crate::reconcile::Reconciler;

impl<K: Kernel> Reconciler<K> {
    /// Looks for addresses, also where nothing else can be done: a node that has no address yet gets one by this report.
    ///
    /// # Errors
    /// The kernel does not answer; then what was found before stands.
    pub(super) async fn find_addresses(
        &mut self,
        objects: &Objects,
        network: &NodeNetwork,
        actual: &NetworkState,
    ) -> Result<(), Error> {
        let selectors = network.spec.address_selectors.clone().unwrap_or_default();
        let mut sources = Sources::new();
        for to in destinations(&selectors) {
            let route = self.kernel.select_route(to).await?;
            let source = route.and_then(|route| route.source);
            sources.extend(source.map(|source| (to, source)));
        }
        let probe = Probe {
            selectors: &selectors,
            pools: objects.pools.iter().map(|pool| pool.spec.cidr).collect(),
            in_use: network.spec.addresses,
        };
        self.found = Some(find(&probe, actual, &sources));
        Ok(())
    }
}
