//! The configuration of the plugin (`node.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::node::{self, NodeConfig, PoolConfig};
use netweft_crds::PodInterface;

use crate::desired::mtu::{is_sufficient, smallest_pod_mtu};
use crate::desired::{bridge, tunnel_address};
use crate::inputs::host_facts::HostFacts;
use crate::inputs::{Inputs, OwnBlock};

/// The configuration of the plugin.
pub fn plugin_config(inputs: &Inputs, facts: &HostFacts) -> NodeConfig {
    NodeConfig {
        version: node::VERSION,
        pools: pools(inputs, facts),
        withdrawn: inputs.withdrawn.clone(),
        namespaces: known_namespaces(inputs),
    }
}

/// The pools from which pods of this node can get addresses: those with a node selector first, then by name. A pool without a
/// block on this node is listed, too: its pods wait, and get no address of another pool.
fn pools(inputs: &Inputs, facts: &HostFacts) -> Vec<PoolConfig> {
    let mtu = smallest_pod_mtu(inputs, facts);
    let mut blocks_of: BTreeMap<&str, Vec<&OwnBlock>> = BTreeMap::new();
    let serving = inputs.serving_pools.iter();
    blocks_of.extend(serving.map(|name| (name.as_str(), Vec::new())));
    for block in &inputs.blocks {
        blocks_of.entry(&block.pool).or_default().push(block);
    }
    let mut pools: Vec<(bool, PoolConfig)> = blocks_of
        .into_iter()
        .filter_map(|(name, blocks)| {
            let pool = inputs.pools.get(name)?;
            inputs.mode_of(name)?;
            let mtu = mtu.filter(|mtu| is_sufficient(pool.cidr, *mtu))?;
            let mut reserved = pool.reserved.clone();
            let bridge = match pool.pod_interface {
                PodInterface::Routed => None,
                PodInterface::Bridge => bridge::config(inputs, &blocks),
            };
            let own: BTreeSet<IpAddr> = blocks
                .iter()
                .flat_map(|block| tunnel_address::own_addresses(inputs, block))
                .collect();
            reserved.extend(own.into_iter().map(IpNet::from));
            let config = PoolConfig {
                name: name.to_owned(),
                cidr: Some(pool.cidr),
                pod_interface: pool.pod_interface,
                bridge,
                mtu,
                blocks: blocks.into_iter().map(|block| block.cidr).collect(),
                reserved,
                namespaces: pool
                    .namespace_selector
                    .as_ref()
                    .map(|selector| inputs.namespaces_of(selector)),
                disabled: pool.disabled,
            };
            Some((!pool.has_node_selector, config))
        })
        .collect();
    pools.sort_by(|(is_general, one), (other_is_general, other)| {
        (is_general, &one.name).cmp(&(other_is_general, &other.name))
    });
    pools.into_iter().map(|(_, config)| config).collect()
}

/// All namespaces, if namespaces select pools: a pod of an unknown namespace must then wait.
fn known_namespaces(inputs: &Inputs) -> Option<BTreeSet<String>> {
    let mut pools = inputs.pools.values();
    let selected = pools.any(|pool| pool.namespace_selector.is_some());
    selected.then(|| inputs.namespaces.keys().cloned().collect())
}
