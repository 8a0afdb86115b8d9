//! Where the node's address in its blocks is while no tunnel holds it: on a bridge without ports.
//!
//! What the node itself has sent into a tunnel has this address for its source. When the mode changes to one without tunnels and the
//! tunnel goes, its connections go on; and others ask for it to see whether they reach this node. (A dummy link would do as
//! well; kernels that have bridges are more.)

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::Transport;
use netweft_netstate::model::{Address, AddressKey, LinkName, NetworkState};

use crate::desired::bridge;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::inputs::Inputs;

/// Add the link, if there is an address to hold that is not on the pods' bridge.
pub fn add_to(inputs: &Inputs, mtu: u32, kernel: &mut NetworkState) {
    let Ok(name) = link_names::OWN_ADDRESSES.parse::<LinkName>() else {
        return;
    };
    let plain = |pool: &str| {
        let mut modes = inputs.modes_to(pool);
        modes.any(|mode| {
            matches!(
                mode.transport.get(),
                Some(Transport::Direct | Transport::Bgp)
            )
        })
    };
    let on_bridge: BTreeSet<IpAddr> = bridge::gateways(inputs).into_values().collect();
    for (pool, address) in tunnel_addresses(inputs) {
        if plain(pool) && !on_bridge.contains(&address) {
            kernel.links.insert(name.clone(), bridge::link(inputs, mtu));
            let key = AddressKey {
                link: name.clone(),
                net: IpNet::from(address),
            };
            kernel.addresses.insert(key, Address::default());
        }
    }
}
