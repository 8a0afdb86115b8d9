//! The state of the node's pods, as far as the desired state of the node depends on it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;
use netweft_netstate::model::{LinkName, Mac};

use crate::pods::{Records, Reservation};

/// Addresses and gateways of the node's pods. They cannot change while a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    /// The addresses of pods. None of them is added to an interface of the node.
    pub addresses: BTreeSet<IpAddr>,
    /// The node's own addresses that an ADD may assign to a pod. They are removed from the interfaces of the node.
    pub unreserved: BTreeSet<IpAddr>,
    /// The node's own addresses that only an ADD in progress may assign to a pod. They are added to no interface, but stay on one.
    pub pending: BTreeSet<IpAddr>,
    /// The gateways of bridged pods by block.
    pub gateways: BTreeMap<IpNet, IpAddr>,
    /// The gateways of new bridged pods in `node.json`, by block. An ADD in progress may use them.
    pub offered_gateways: BTreeMap<IpNet, IpAddr>,
    /// What pods send from, by the link of the pod on the node.
    pub links: BTreeMap<LinkName, PodLink>,
    /// The smallest MTU of bridged pods in bytes.
    pub bridge_mtu: Option<u32>,
}

/// What packets of a pod's link have as their sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Whether the link is a port of the bridge.
    pub bridged: bool,
    /// The Ethernet address of the pod.
    pub mac: Mac,
    /// The IP addresses of the pod.
    pub addresses: BTreeSet<IpAddr>,
}

impl PodState {
    /// Whether the node can use the address: no pod has it, and no ADD may assign it.
    #[must_use]
    pub fn is_free(&self, address: &IpAddr) -> bool {
        let used = [&self.addresses, &self.unreserved, &self.pending];
        used.iter().all(|used| !used.contains(address))
    }

    /// The state that follows from the records of all pods, unreadable ones included, and from the configuration of the plugin.
    /// `reservation` returns the reservation of one of the node's own addresses.
    #[must_use]
    pub fn of(
        records: &Records,
        config: Option<&NodeConfig>,
        reservation: impl Fn(IpAddr) -> Reservation,
    ) -> Self {
        let mut state = Self {
            addresses: records.keys().copied().collect(),
            offered_gateways: config.into_iter().flat_map(NodeConfig::gateways).collect(),
            ..Self::default()
        };
        for attachment in records.values().filter_map(|record| record.as_ref().ok()) {
            let link = PodLink {
                bridged: attachment.bridge.is_some(),
                mac: attachment.pod_mac,
                addresses: attachment.addresses.iter().map(|it| it.ip).collect(),
            };
            state.links.insert(attachment.host_link.clone(), link);
            let addresses = attachment.addresses.iter();
            for gateway in addresses.filter_map(|address| address.gateway) {
                state.gateways.insert(gateway.trunc(), gateway.addr());
                let mtu = state.bridge_mtu.unwrap_or(attachment.mtu);
                state.bridge_mtu = Some(mtu.min(attachment.mtu));
            }
        }
        let tunnels = config.into_iter().flat_map(NodeConfig::tunnel_addresses);
        let gateways = [&state.gateways, &state.offered_gateways];
        let gateways = gateways.into_iter().flat_map(BTreeMap::values).copied();
        for address in tunnels.chain(gateways).collect::<BTreeSet<_>>() {
            match reservation(address) {
                Reservation::Missing => state.unreserved.insert(address),
                Reservation::Pending => state.pending.insert(address),
                Reservation::Effective => false,
            };
        }
        state
    }
}
