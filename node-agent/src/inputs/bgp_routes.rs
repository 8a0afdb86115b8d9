//! Routes that BIRD has learned by BGP and added to the kernel.

use netweft_netstate::model::{NetworkState, Route, RouteKey, TABLE_MAIN};

use crate::inputs::Inputs;

/// Route protocol of BIRD (`RTPROT_BIRD`).
pub const PROTOCOL_BIRD: u8 = 12;

/// Metric of BIRD's routes. Another BIRD on the host uses 32 by default.
pub const METRIC_BIRD: u32 = 78;

/// BIRD's routes inside the pools.
pub fn bgp_routes<'a>(
    inputs: &'a Inputs,
    actual: &'a NetworkState,
) -> impl Iterator<Item = (&'a RouteKey, &'a Route)> {
    let routes = actual.routes.iter();
    routes.filter(move |(key, route)| is_of_bird(key, route) && is_in_pools(inputs, key))
}

/// Whether a route is inside the range of a pool.
#[must_use]
pub fn is_in_pools(inputs: &Inputs, key: &RouteKey) -> bool {
    let mut pools = inputs.pools.values();
    pools.any(|pool| pool.cidr.contains(&key.dst))
}

/// Whether netweft's BIRD has added a route.
#[must_use]
pub fn is_of_bird(key: &RouteKey, route: &Route) -> bool {
    route.protocol == PROTOCOL_BIRD && key.table == TABLE_MAIN && key.metric == METRIC_BIRD
}
