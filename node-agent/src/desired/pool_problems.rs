//! Problems of the pools that serve this node: pools that are not received yet, and pools that exclude each other.

use std::collections::BTreeSet;

use netweft_cni::ipam;
use netweft_cni::node::NodeConfig;

use crate::inputs::Inputs;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// Pools that serve this node and that the watch has not delivered yet.
pub fn not_received(inputs: &Inputs) -> impl Iterator<Item = Problem> {
    let names = inputs.serving_pools.iter();
    let unknown = names.filter(|name| !inputs.pools.contains_key(*name));
    unknown.map(|name| {
        let pool = name.clone();
        Problem::from(Cause::PoolNotReceived { pool })
    })
}

/// Two pools with different pod interfaces for the same pods. The plugin refuses such pods.
pub fn mixed_interfaces(plugin: &NodeConfig) -> Option<Problem> {
    // It represents all namespaces that no pool names.
    let other_namespace = String::new();
    let named = plugin
        .pools
        .iter()
        .filter_map(|pool| pool.namespaces.as_ref());
    let namespaces: BTreeSet<&String> = named.flatten().chain([&other_namespace]).collect();
    let pools = |namespace: &str| {
        let of_family = |ipv4| ipam::pools_for(plugin, Some(namespace), ipv4);
        (of_family(true), of_family(false))
    };
    let mixed_pair = |namespace: &&String| {
        let (v4, v6) = pools(namespace);
        let mut pairs = v4
            .into_iter()
            .flat_map(|one| v6.iter().map(move |other| (one, *other)));
        pairs.find(|(one, other)| one.pod_interface != other.pod_interface)
    };
    let (one, other) = namespaces.iter().find_map(mixed_pair)?;
    Some(Problem::from(Cause::PodInterfacesMixed {
        one: one.name.clone(),
        other: other.name.clone(),
    }))
}
