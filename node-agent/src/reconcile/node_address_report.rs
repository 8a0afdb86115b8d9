//! Finds the candidates for the node's address, which the status reports to the operator.

use netweft_crds::NodeNetwork;
use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;

use crate::inputs::Objects;
use crate::inputs::node_address_candidates::{Criteria, Sources, candidates, destinations};
use crate::reconcile::Reconciler;

impl<K: Kernel> Reconciler<K> {
    /// Finds the candidates, even if nothing else can be programmed: a node without an address gets one by this report.
    ///
    /// # Errors
    /// The kernel does not answer. The previous candidates stay.
    pub(super) async fn find_address_candidates(
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
        let criteria = Criteria {
            selectors: &selectors,
            pools: objects.pools.iter().map(|pool| pool.spec.cidr).collect(),
            in_use: network.spec.addresses,
        };
        self.address_candidates = Some(candidates(&criteria, actual, &sources));
        Ok(())
    }
}
