//! The link with the node's own addresses in its blocks, while no tunnel has them: a bridge without ports.
//!
//! Connections of the node into a tunnel have this address as their source. They continue when the mode changes to one without
//! tunnels and the tunnel is deleted. Other nodes send probes to the address. (A dummy link would serve as well, but more
//! kernels have bridges.)

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::Transport;
use netweft_netstate::model::{Address, AddressKey, LinkName, NetworkState};

use crate::desired::bridge;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::inputs::Inputs;

/// Adds the link, if there is an address that is not on the bridge of pods.
pub fn add_to(inputs: &Inputs, mtu: u32, kernel: &mut NetworkState) {
    let Ok(name) = link_names::OWN_ADDRESSES.parse::<LinkName>() else {
        return;
    };
    let has_unencapsulated_mode = |pool: &str| {
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
        if has_unencapsulated_mode(pool) && !on_bridge.contains(&address) {
            kernel.links.insert(name.clone(), bridge::link(inputs, mtu));
            let key = AddressKey {
                link: name.clone(),
                net: IpNet::from(address),
            };
            kernel.addresses.insert(key, Address::default());
        }
    }
}
