//! Routes that BIRD has learnt by BGP and put into the kernel.

use netweft_netstate::model::{NetworkState, Route, RouteKey, TABLE_MAIN};

use crate::inputs::Inputs;

/// Route protocol (`rtm_protocol`) of BIRD, as the kernel numbers it.
pub const PROTOCOL_BIRD: u8 = 12;

/// Metric of the routes of BIRD; a BIRD of the host uses 32 by default.
pub const METRIC_BIRD: u32 = 78;

/// BIRD's routes into our pools. Those of a BIRD of the host's own have another metric.
pub fn bgp_routes<'a>(
    inputs: &'a Inputs,
    actual: &'a NetworkState,
) -> impl Iterator<Item = (&'a RouteKey, &'a Route)> {
    let routes = actual.routes.iter();
    routes.filter(move |(key, route)| is_birds(key, route) && is_in_pools(inputs, key))
}

/// Whether a route is inside the range of a pool.
#[must_use]
pub fn is_in_pools(inputs: &Inputs, key: &RouteKey) -> bool {
    let mut pools = inputs.pools.values();
    pools.any(|pool| pool.cidr.contains(&key.dst))
}

/// Whether it is one of our BIRD's.
#[must_use]
pub fn is_birds(key: &RouteKey, route: &Route) -> bool {
    route.protocol == PROTOCOL_BIRD && key.table == TABLE_MAIN && key.metric == METRIC_BIRD
}
