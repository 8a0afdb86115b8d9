//! Whether the pools that serve this node are known and fit together.

use std::collections::BTreeSet;

use netweft_cni::ipam;
use netweft_cni::node::NodeConfig;

use crate::inputs::Inputs;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// Pools that serve this node and have not been heard of. They are on their way.
pub fn not_received(inputs: &Inputs) -> impl Iterator<Item = Problem> {
    let names = inputs.serving.iter();
    let unknown = names.filter(|name| !inputs.pools.contains_key(*name));
    unknown.map(|name| {
        let pool = name.clone();
        Problem::from(Cause::PoolNotReceived { pool })
    })
}

/// Pods that would get an address of a bridge and one of a routed pool are refused by the plugin: better said before.
pub fn mixed(plugin: &NodeConfig) -> Option<Problem> {
    // One for all the namespaces that no pool names.
    let others = String::new();
    let named = plugin
        .pools
        .iter()
        .filter_map(|pool| pool.namespaces.as_ref());
    let namespaces: BTreeSet<&String> = named.flatten().chain([&others]).collect();
    let pools = |namespace: &str| {
        let of_family = |ipv4| ipam::pools_for(plugin, Some(namespace), ipv4);
        (of_family(true), of_family(false))
    };
    let clash = |namespace: &&String| {
        let (v4, v6) = pools(namespace);
        let mut pairs = v4
            .into_iter()
            .flat_map(|one| v6.iter().map(move |other| (one, *other)));
        pairs.find(|(one, other)| one.pod_interface != other.pod_interface)
    };
    let (one, other) = namespaces.iter().find_map(clash)?;
    Some(Problem::from(Cause::PodInterfacesMixed {
        one: one.name.clone(),
        other: other.name.clone(),
    }))
}
