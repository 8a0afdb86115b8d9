//! The bridge for pods whose pool has `podInterface: bridge`.
//!
//! ```text
//!   link       nw-br0, Ethernet address from the node's name
//!   address    10.244.3.65/26 dev nw-br0                         the gateway of the block's pods
//!   address    fe80::1/64 dev nw-br0                             with a block of IPv6: to ask for neighbours from
//!   route      10.244.3.64/26 dev nw-br0 src 10.244.3.65         in the place of a routed block's blackhole
//!   blackhole  10.244.3.64/26, behind the route                  while the bridge is gone or down
//! ```
//!
//! The gateway is also what the node sends from into the tunnel. A block whose pods name a gateway keeps it, whatever has
//! become of the pool: their routes cannot follow. So the bridge stays while anybody is on it.

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

/// The metric of the blackhole behind a bridged block's route.
const METRIC_BEHIND: u32 = METRIC + 10;

/// The bridge's address in each block that is on it.
pub fn gateways(inputs: &Inputs) -> BTreeMap<IpNet, IpAddr> {
    let own = inputs
        .blocks
        .iter()
        .filter_map(|block| Some((block.cidr, gateway(inputs, block)?)));
    let used = inputs.pods.gateways.iter();
    let used = used.filter(|(_, gateway)| inputs.pods.leave(gateway));
    own.chain(used.map(|(block, gateway)| (*block, *gateway)))
        .collect()
}

/// The bridge's address in an own block; `None` for a routed pool's, or one without room for it.
///
/// It is the tunnel address. An earlier version chose another where `spec.reserved` covered that one: the block keeps it as long
/// as the node has the block or a pod in it, since an ADD under way may be about to name it.
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
            gateway.filter(|gateway| inputs.pods.leave(gateway))
        }
    }
}

/// Add the bridge and what is on it. Without a block there is none.
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
        let (key, route) = blackhole(block, METRIC_BEHIND);
        kernel.routes.insert(key, route);
    }
    sysctls.extend(parameters(&name));
}

/// A bridge of this node.
pub fn link(inputs: &Inputs, mtu: u32) -> Link {
    Link {
        kind: LinkKind::Bridge,
        mac: Some(Mac(names::bridge_mac(&inputs.node))),
        mtu,
        up: true,
    }
}

/// What pods of this pool have to know of the bridge.
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

/// Loose reverse path filtering and no belief in router advertisements, as on all links of ours. And what passes between two
/// ports has to pass conntrack as well: a pod that is sent to its neighbour by a Service would else get an answer from
/// somebody it never asked (`br_nf_pre_routing`).
fn parameters(name: &LinkName) -> [(String, String); 3] {
    [
        (sysctl::rp_filter(name.as_str()), "2".to_owned()),
        ("bridge/bridge-nf-call-iptables".to_owned(), "1".to_owned()),
        ("bridge/bridge-nf-call-ip6tables".to_owned(), "1".to_owned()),
    ]
}
