//! Nodes whose kernel has no IPv6. They serve IPv4 pools, and report the IPv6 pools that are left out.

use std::collections::BTreeSet;

use crate::inputs::Objects;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The objects without IPv6, and a problem for each pool that is left out; `None` if the objects have no IPv6.
#[must_use]
pub fn without_ipv6(objects: &Objects) -> Option<Objects> {
    let mut without = objects.clone();
    let pools = objects.pools.iter();
    let pools = pools.filter(|pool| pool.spec.cidr.addr().is_ipv6());
    let names: BTreeSet<String> = pools
        .filter_map(|pool| pool.metadata.name.clone())
        .collect();
    without.pools.retain(|pool| pool.spec.cidr.addr().is_ipv4());
    without
        .subnets
        .retain(|subnet| subnet.spec.cidr.addr().is_ipv4());
    if let Some(network) = &mut without.network {
        let spec = &mut network.spec;
        spec.subnets.retain(|cidr| cidr.addr().is_ipv4());
        spec.pools.retain(|pool| !names.contains(pool));
        for mode in &mut spec.modes {
            mode.pools.retain(|pool| !names.contains(pool));
            mode.standby_pools.retain(|pool| !names.contains(pool));
        }
    }
    if without == *objects {
        return None;
    }
    let causes = names
        .into_iter()
        .map(|pool| Cause::KernelWithoutIpv6 { pool });
    without.unreadable.extend(causes.map(Problem::from));
    Some(without)
}
