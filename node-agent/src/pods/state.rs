//! What the node's pods have, and hold the node to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;
use netweft_netstate::model::{LinkName, Mac};

use crate::pods::{Hold, Records};

/// What the node's pods have, and what they have been told and cannot be told anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    /// The addresses that pods have. None of them is put on an interface of the node.
    pub addresses: BTreeSet<IpAddr>,
    /// The node's own addresses that an ADD may give to a pod. None of them is left on an interface.
    pub contested: BTreeSet<IpAddr>,
    /// The node's own addresses that only an ADD under way may give to a pod. None of them is put on an interface that does not
    /// have it already.
    pub unsettled: BTreeSet<IpAddr>,
    /// The gateways of bridged pods by block.
    pub gateways: BTreeMap<IpNet, IpAddr>,
    /// The gateways that `node.json` gives to new bridged pods, by block: an ADD under way may be using them.
    pub offered_gateways: BTreeMap<IpNet, IpAddr>,
    /// Addresses of pods by the link of the pod on the node.
    pub links: BTreeMap<LinkName, PodLink>,
    /// The least MTU of bridged pods in bytes.
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
    /// Whether no pod has the address or may be getting it.
    #[must_use]
    pub fn leave(&self, address: &IpAddr) -> bool {
        let taken = [&self.addresses, &self.contested, &self.unsettled];
        taken.iter().all(|taken| !taken.contains(address))
    }

    /// Gathers it from the records of all pods, those that cannot be read included, and from what the plugin reads. `hold` says
    /// of the node's own addresses whether they can become a pod's.
    #[must_use]
    pub fn of(
        records: &Records,
        config: Option<&NodeConfig>,
        hold: impl Fn(IpAddr) -> Hold,
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
            match hold(address) {
                Hold::Open => state.contested.insert(address),
                Hold::Reserved => state.unsettled.insert(address),
                Hold::Settled => false,
            };
        }
        state
    }
}
