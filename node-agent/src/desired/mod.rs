//! What the node should look like: a pure function of the inputs and the kernel's facts.
//!
//! ```text
//!   Inputs, Facts ──desired──▶ Desired { kernel, nft, sysctls, node configuration, problems }
//! ```
//!
//! One file for each way between nodes; they differ by pure functions only.

mod bridge;
mod masquerade;
mod tunnel_address;
mod vxlan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::node::{self, NodeConfig, PodInterface as PluginInterface, PoolConfig};
use netweft_crds::{IpFamily, NodeMode, PodInterface};
use netweft_netstate::model::{LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN};
use netweft_netstate::owner::{METRIC, PROTOCOL_AGENT};

use crate::facts::Facts;
use crate::inputs::{Inputs, OwnBlock};
use tunnel_address::tunnel_addresses;

/// The node as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Links, addresses, routes, neighbours and forwarding entries of ours.
    pub kernel: NetworkState,
    /// The whole nft table, as text for `nft -f`.
    pub nft: String,
    /// Values by path below `/proc/sys/net`, those of single links included.
    pub sysctls: BTreeMap<String, String>,
    /// Links that learn from routers, if they do, in spite of forwarding.
    pub keep_listening: BTreeSet<LinkName>,
    /// What the plugin reads.
    pub plugin: NodeConfig,
    /// Blocks from which no pod gets an address any more, but in which some may still have one.
    pub withdrawn: Vec<IpNet>,
    /// What is left out and why, in sentences.
    pub problems: Vec<String>,
}

/// The node as it should be.
#[must_use]
pub fn desired(inputs: &Inputs, facts: &Facts) -> Desired {
    let mut problems = inputs.problems.clone();
    let mut kernel = NetworkState::default();
    let mut sysctls = forwarding(inputs);
    let mtu = least_mtu(inputs, facts).or(inputs.bridged.mtu);
    if let Some(mtu) = mtu {
        bridge::add_to(inputs, mtu, &mut kernel, &mut sysctls);
    }
    for mode in &inputs.modes {
        match mode.send.vxlan {
            Some(parameters) => {
                let tunnel = vxlan::Tunnel { inputs, facts, mode, parameters };
                tunnel.add_to(&mut kernel, &mut sysctls, &mut problems);
            }
            None => problems.push(format!(
                "NetworkMode {} is left out: this agent sends by vxlan only; update the agents or use spec.mode overlay with encapsulation vxlan",
                mode.name
            )),
        }
    }
    let blocks = inputs.blocks.iter().map(|block| block.cidr);
    for block in blocks.chain(inputs.withdrawn.iter().copied()) {
        let (key, route) = blackhole(block, METRIC);
        // Not in the place of a bridged block's way to the bridge.
        kernel.routes.entry(key).or_insert(route);
    }
    let plugin = NodeConfig {
        version: node::VERSION,
        pools: plugin_pools(inputs, facts),
        withdrawn: inputs.withdrawn.clone(),
    };
    problems.extend(mixed(&plugin));
    Desired {
        kernel,
        nft: masquerade::render(&inputs.pools),
        sysctls,
        keep_listening: keep_listening(inputs, facts),
        plugin,
        withdrawn: inputs.withdrawn.clone(),
        problems,
    }
}

/// What lets the node forward at all, by family.
fn forwarding(inputs: &Inputs) -> BTreeMap<String, String> {
    let switches = [
        (IpFamily::Ipv4, "ipv4/ip_forward"),
        (IpFamily::Ipv6, "ipv6/conf/all/forwarding"),
    ];
    let used = switches
        .into_iter()
        .filter(|(family, _)| inputs.carries(*family));
    used.map(|(_, name)| (name.to_owned(), "1".to_owned()))
        .collect()
}

/// Links that would lose what routers have told them once IPv6 is forwarded, unless they are told to go on listening.
fn keep_listening(inputs: &Inputs, facts: &Facts) -> BTreeSet<LinkName> {
    if !inputs.carries(IpFamily::Ipv6) {
        return BTreeSet::new();
    }
    facts
        .egress
        .values()
        .map(|egress| egress.link.clone())
        .collect()
}

/// Bytes of the largest packet of a pod that travels by `mode`; `None` while its egress link is unknown.
#[must_use]
pub fn pod_mtu(inputs: &Inputs, facts: &Facts, mode: &NodeMode) -> Option<u32> {
    if mode.mtu != 0 {
        return Some(mode.mtu);
    }
    let egress = facts.egress.get(&inputs.local(mode)?)?;
    Some(egress.mtu.saturating_sub(overhead(mode)))
}

/// Bytes that the transport adds: outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5).
fn overhead(mode: &NodeMode) -> u32 {
    let outer = match mode.outer_family {
        IpFamily::Ipv4 => 20,
        IpFamily::Ipv6 => 40,
    };
    if mode.send.vxlan.is_some() {
        outer + 8 + 8 + 14
    } else {
        0
    }
}

/// Whether packets of `mtu` bytes are enough for the family of `net`: IPv6 asks for 1280 (RFC 8200, section 5), and the
/// kernel takes it from a link that has fewer.
fn fits(net: IpNet, mtu: u32) -> bool {
    net.addr().is_ipv4() || mtu >= 1280
}

/// An address of one of our blocks that no pod has must not follow the default route.
fn blackhole(cidr: IpNet, metric: u32) -> (RouteKey, Route) {
    let route = Route {
        kind: RouteKind::Blackhole,
        protocol: PROTOCOL_AGENT,
        via: None,
        dev: None,
        onlink: false,
        source: None,
        mtu: None,
    };
    (
        RouteKey {
            table: TABLE_MAIN,
            dst: cidr,
            metric,
        },
        route,
    )
}

/// New pods get the least MTU of all modes in use, so that a packet which fits the pod's link fits every way it may take.
fn least_mtu(inputs: &Inputs, facts: &Facts) -> Option<u32> {
    let modes = inputs.modes.iter();
    modes.filter_map(|mode| pod_mtu(inputs, facts, mode)).min()
}

/// The pools a pod of this node can have an address of, by name.
fn plugin_pools(inputs: &Inputs, facts: &Facts) -> Vec<PoolConfig> {
    let mtu = least_mtu(inputs, facts);
    let tunnels = tunnel_addresses(inputs);
    let mut pools: BTreeMap<&str, Vec<&OwnBlock>> = BTreeMap::new();
    for block in &inputs.blocks {
        pools.entry(&block.pool).or_default().push(block);
    }
    let described = pools.into_iter().filter_map(|(name, blocks)| {
        let pool = inputs.pools.get(name)?;
        inputs.mode_of(name)?;
        let mtu = mtu.filter(|mtu| fits(pool.cidr, *mtu))?;
        let mut reserved = pool.reserved.clone();
        let (pod_interface, bridge) = match pool.pod_interface {
            PodInterface::Routed => (PluginInterface::Routed, None),
            PodInterface::Bridge => (PluginInterface::Bridge, bridge::config(inputs, &blocks)),
        };
        let gateways = bridge.iter().flat_map(|bridge| bridge.gateways.values());
        let own: BTreeSet<IpAddr> = gateways.chain(tunnels.get(name)).copied().collect();
        reserved.extend(own.into_iter().map(IpNet::from));
        Some(PoolConfig {
            name: name.to_owned(),
            pod_interface,
            bridge,
            mtu,
            blocks: blocks.into_iter().map(|block| block.cidr).collect(),
            reserved,
            namespaces: None,
            disabled: pool.disabled,
        })
    });
    described.collect()
}

/// Pods that would get an address of a bridge and one of a routed pool are refused by the plugin: better said before.
fn mixed(plugin: &NodeConfig) -> Option<String> {
    let pairs = plugin.pools.iter().flat_map(|one| {
        let after = plugin.pools.iter().filter(|other| other.name > one.name);
        after.map(move |other| (one, other))
    });
    let same_pods =
        |one: &PoolConfig, other: &PoolConfig| match (&one.namespaces, &other.namespaces) {
            (Some(one), Some(other)) => !one.is_disjoint(other),
            (Some(only), None) | (None, Some(only)) => !only.is_empty(),
            (None, None) => true,
        };
    let family = |pool: &PoolConfig| pool.blocks.first().map(|block| block.addr().is_ipv4());
    let (one, other) = pairs
        .filter(|(one, other)| !one.disabled && !other.disabled && same_pods(one, other))
        .filter(|(one, other)| family(one) != family(other))
        .find(|(one, other)| one.pod_interface != other.pod_interface)?;
    Some(format!(
        "IPPools {} and {} give addresses to the same pods, but one has podInterface bridge and one routed, so such pods are refused: give both the same",
        one.name, other.name
    ))
}

#[cfg(test)]
mod tests;
