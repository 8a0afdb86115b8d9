//! The pools that a pod gets its addresses from: by namespace, and by annotation.

use crate::node::{NodeConfig, PoolConfig};

use super::AllocationError;

/// The annotation by which a pod requests pools: names separated by commas, the preferred first.
pub const POOLS_ANNOTATION: &str = "netweft.io/pools";

/// What selects the pools of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodRequest<'a> {
    /// The pod's namespace, if the runtime passes it.
    pub namespace: Option<&'a str>,
    /// The value of the pod's annotation [`POOLS_ANNOTATION`].
    pub pools: Option<&'a str>,
}

impl<'a> PodRequest<'a> {
    /// The pools that the annotation names, the preferred first.
    fn requested_pools(&self) -> Vec<&'a str> {
        let names = self.pools.unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// The pools for a pod, for each family (IPv4: true) that has any. The requested pools replace the other pools of their
/// family. A pod can request only pools for its namespace.
pub(super) fn by_family<'a>(
    node: &'a NodeConfig,
    pod_request: PodRequest<'_>,
) -> Result<Vec<(bool, Vec<&'a PoolConfig>)>, AllocationError> {
    let of_family = |ipv4| (ipv4, pools_for(node, pod_request.namespace, ipv4));
    let mut families = vec![of_family(true), of_family(false)];
    let requested = pod_request.requested_pools();
    for name in &requested {
        let mut all = families.iter().flat_map(|(_, pools)| pools);
        if !all.any(|pool| pool.name == *name) {
            return Err(AllocationError::NotForThisPod {
                requested: (*name).to_owned(),
                allowed: families
                    .iter()
                    .flat_map(|(_, pools)| pools)
                    .map(|pool| pool.name.clone())
                    .collect(),
            });
        }
    }
    for (_, pools) in &mut families {
        let preferred: Vec<_> = requested
            .iter()
            .filter_map(|name| pools.iter().find(|pool| pool.name == *name))
            .copied()
            .collect();
        if !preferred.is_empty() {
            *pools = preferred;
        }
    }
    families.retain(|(_, pools)| !pools.is_empty());
    Ok(families)
}

/// The pools of a family for pods of `namespace`. If a pool selects this namespace, only such pools count, also while they
/// are full or disabled: a pod that belongs on one network must not get an address of another.
#[must_use]
pub fn pools_for<'a>(
    node: &'a NodeConfig,
    namespace: Option<&str>,
    ipv4: bool,
) -> Vec<&'a PoolConfig> {
    let of_family = || {
        let pools = node.pools.iter();
        pools.filter(move |pool| pool.is_of(ipv4))
    };
    let selects_namespace = |pool: &&PoolConfig| {
        let names = pool.namespaces.as_ref();
        names.is_some_and(|names| namespace.is_some_and(|name| names.contains(name)))
    };
    let for_namespace: Vec<_> = of_family().filter(selects_namespace).collect();
    if !for_namespace.is_empty() {
        return for_namespace;
    }
    let for_all = of_family().filter(|pool| pool.namespaces.is_none());
    for_all.filter(|pool| !pool.disabled).collect()
}
