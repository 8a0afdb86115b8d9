//! The bridge of pods whose pool has `podInterface: bridge`.
//!
//! ```text
//!   link       nw-br0, MAC address derived from the node's name
//!   address    10.244.3.65/26 dev nw-br0                         the gateway of the block's pods
//!   address    fe80::1/64 dev nw-br0                             with an IPv6 block: source of neighbour solicitations
//!   route      10.244.3.64/26 dev nw-br0 src 10.244.3.65         in place of the blackhole route of a routed block
//!   blackhole  10.244.3.64/26, with a higher metric              while the bridge is deleted or down
//! ```
//!
//! The gateway is also the source address of packets that the node sends into the tunnel. The gateway of a block persists while
//! pods have it, whatever happens to the pool, because the routes of pods cannot change. The bridge persists, too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::block;
use netweft_cni::node::BridgeConfig;
use netweft_cni::pod;
use netweft_common::link_names::BRIDGE;
use netweft_crds::{PodInterface, names};
use netweft_netstate::model::{Address, AddressKey, Link, LinkKind, LinkName, Mac, NetworkState};
use netweft_netstate::owner::METRIC;

use crate::apply::sysctl;
use crate::desired::{blackhole, unicast};
use crate::inputs::{Inputs, OwnBlock};
use crate::pods::PodState;

/// The metric of the blackhole route of a bridged block: higher than that of its route.
const METRIC_FALLBACK: u32 = METRIC + 10;

/// The address of the bridge in each bridged block.
pub fn gateways(inputs: &Inputs) -> BTreeMap<IpNet, IpAddr> {
    let own = inputs
        .blocks
        .iter()
        .filter_map(|block| Some((block.cidr, gateway(inputs, block)?)));
    let used = inputs.pods.gateways.iter();
    let used = used.filter(|(_, gateway)| inputs.pods.is_free(gateway));
    own.chain(used.map(|(block, gateway)| (*block, *gateway)))
        .collect()
}

/// The address of the bridge in a block of this node; `None` for a block of a routed pool, or without a free address for it.
///
/// It is the tunnel address. Where `spec.reserved` covers the tunnel address, an earlier version selected another one: the block
/// keeps it as long as the node has the block or a pod in it, because an ADD in progress may use it.
pub fn gateway(inputs: &Inputs, block: &OwnBlock) -> Option<IpAddr> {
    let pool = inputs.pools.get(&block.pool)?;
    match pool.pod_interface {
        PodInterface::Routed => None,
        PodInterface::Bridge => {
            let PodState {
                gateways,
                offered_gateways,
                ..
            } = &inputs.pods;
            let known = gateways
                .get(&block.cidr)
                .or(offered_gateways.get(&block.cidr));
            let gateway = known.copied().or_else(|| block::tunnel_address(block.cidr));
            gateway.filter(|gateway| inputs.pods.is_free(gateway))
        }
    }
}

/// Adds the bridge with its addresses, routes and sysctls, if any block is bridged.
pub fn add_to(
    inputs: &Inputs,
    mtu: u32,
    kernel: &mut NetworkState,
    sysctls: &mut BTreeMap<String, String>,
) {
    let gateways = gateways(inputs);
    let Some(name) = link_name().filter(|_| !gateways.is_empty()) else {
        return;
    };
    kernel.links.insert(name.clone(), link(inputs, mtu));
    for (block, gateway) in gateways {
        let net = IpNet::new(gateway, block.prefix_len()).unwrap_or(block);
        let key = AddressKey {
            link: name.clone(),
            net,
        };
        kernel.addresses.insert(key, Address::default());
        if block.addr().is_ipv6() {
            kernel.addresses.extend([pod::bridge_link_local(&name)]);
        }
        let (key, route) = unicast(block, None, name.clone(), Some(gateway));
        kernel.routes.insert(key, route);
        let (key, route) = blackhole(block, METRIC_FALLBACK);
        kernel.routes.insert(key, route);
    }
    sysctls.extend(bridge_sysctls(&name));
}

/// A bridge link of this node.
pub fn link(inputs: &Inputs, mtu: u32) -> Link {
    Link {
        kind: LinkKind::Bridge,
        mac: Some(Mac(names::bridge_mac(&inputs.node))),
        mtu,
        up: true,
    }
}

/// The configuration of the bridge for pods of these blocks.
pub fn config(inputs: &Inputs, blocks: &[&OwnBlock]) -> Option<BridgeConfig> {
    let with_gateway = |block: &&OwnBlock| Some((block.cidr, gateway(inputs, block)?));
    Some(BridgeConfig {
        link: link_name()?,
        mac: Mac(names::bridge_mac(&inputs.node)),
        gateways: blocks.iter().filter_map(with_gateway).collect(),
    })
}

fn link_name() -> Option<LinkName> {
    BRIDGE.parse().ok()
}

/// A loose reverse path filter and no router advertisements, as on all links of the agent. Packets between two ports pass
/// conntrack, too: otherwise a pod that reaches another port by a Service would receive the reply from an address to which it has
/// sent nothing (`br_nf_pre_routing`).
fn bridge_sysctls(name: &LinkName) -> [(String, String); 3] {
    [
        (sysctl::rp_filter(name.as_str()), "2".to_owned()),
        ("bridge/bridge-nf-call-iptables".to_owned(), "1".to_owned()),
        ("bridge/bridge-nf-call-ip6tables".to_owned(), "1".to_owned()),
    ]
}
