//! The comparison of the node's state with its desired state.

use netweft_crds::NodeNetwork;
use netweft_netstate::diff::{Diff, diff};
use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::owner::Owner;

use crate::desired::bird::BackupRoutes;
use crate::desired::{Desired, bird, desired};
use crate::inputs::host_facts::{HostFacts, LookedUp, NodeAddressMissing, lookup_targets};
use crate::inputs::{Inputs, Objects};
use crate::pods::PodState;

/// The actual state, the desired state, and the difference.
pub struct Comparison {
    /// The inputs of the desired state.
    pub inputs: Inputs,
    /// The state of the kernel.
    pub actual: NetworkState,
    /// The desired state.
    pub desired: Desired,
    /// The operations that turn the state of the kernel into the desired state, and the conflicts.
    pub difference: Diff,
}

/// Why the node cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// A node address that the desired state requires is on no link.
    #[error(transparent)]
    Address(#[from] NodeAddressMissing),
}

impl Comparison {
    /// Compares `actual`, the state of the kernel that was read after `pods`.
    ///
    /// # Errors
    /// The kernel does not answer, or a required node address is on no link.
    pub async fn compute(
        node: &str,
        (objects, network): (&Objects, &NodeNetwork),
        pods: PodState,
        (kernel, actual): (&impl Kernel, NetworkState),
        backup_routes: BackupRoutes,
    ) -> Result<Self, ComparisonError> {
        let mut inputs = Inputs::new(node, objects, network, pods);
        let owner = Owner::agent();
        let on_links = actual.addresses.keys();
        for key in on_links.filter(|key| owner.owns_address(key)) {
            inputs.pods.pending.remove(&key.net.addr());
        }
        let looked_up = look_up(kernel, &actual, &inputs).await?;
        let facts = HostFacts::derive(&actual, &inputs, &looked_up)?;
        let mut desired = desired(&inputs, &facts);
        let backup_routes = bird::backup_routes(&inputs, &actual, backup_routes);
        desired.kernel.routes.extend(backup_routes);
        let difference = diff(&actual, &desired.kernel, &owner);
        Ok(Self {
            inputs,
            actual,
            desired,
            difference,
        })
    }
}

/// The egress links of peers where table `main` is not sufficient.
async fn look_up(
    kernel: &impl Kernel,
    actual: &NetworkState,
    inputs: &Inputs,
) -> Result<LookedUp, Error> {
    let mut looked_up = LookedUp::new();
    for to in lookup_targets(actual, inputs) {
        let route = kernel.select_route(to).await?;
        looked_up.extend(route.map(|route| (to, route.link)));
    }
    Ok(looked_up)
}
