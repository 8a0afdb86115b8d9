//! The node as it is beside the node as it should be.

use netweft_crds::NodeNetwork;
use netweft_netstate::diff::{Diff, diff};
use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::owner::Owner;

use crate::desired::bird::BackupRoutes;
use crate::desired::{Desired, bird, desired};
use crate::inputs::host_facts;
use crate::inputs::host_facts::{Facts, NoSuchAddress, Selected};
use crate::inputs::{Inputs, Objects};
use crate::pods::PodState;

/// What is, what should be, and what lies between.
pub struct Comparison {
    /// What concerns this node.
    pub inputs: Inputs,
    /// The kernel.
    pub actual: NetworkState,
    /// The node as it should be.
    pub desired: Desired,
    /// What turns the first into the second.
    pub difference: Diff,
}

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The kernel lacks what everything else rests on.
    #[error(transparent)]
    Address(#[from] NoSuchAddress),
}

impl Comparison {
    /// Compares what was read of the kernel after `pods`.
    ///
    /// # Errors
    /// The kernel does not answer, or lacks what everything else rests on.
    pub async fn make(
        node: &str,
        (objects, network): (&Objects, &NodeNetwork),
        pods: PodState,
        (kernel, actual): (&impl Kernel, NetworkState),
        backup_routes: BackupRoutes,
    ) -> Result<Self, ComparisonError> {
        let mut inputs = Inputs::new(node, objects, network, pods);
        let owner = Owner::agent();
        let ours = actual.addresses.keys();
        for key in ours.filter(|key| owner.owns_address(key)) {
            inputs.pods.unsettled.remove(&key.net.addr());
        }
        let selected = selected(kernel, &actual, &inputs).await?;
        let facts = Facts::measure(&actual, &inputs, &selected)?;
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

/// By which links the kernel sends to others, where table `main` does not say.
async fn selected(
    kernel: &impl Kernel,
    actual: &NetworkState,
    inputs: &Inputs,
) -> Result<Selected, Error> {
    let mut selected = Selected::new();
    for to in host_facts::peers(actual, inputs) {
        let route = kernel.select_route(to).await?;
        selected.extend(route.map(|route| (to, route.link)));
    }
    Ok(selected)
}
