//! What only the kernel knows: which link carries the node's address, and how large its packets may be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_netstate::model::{LinkName, NetworkState};

use crate::inputs::Inputs;

/// The egress link of each of the node's addresses that a link has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Egress links by node address.
    pub egress: BTreeMap<IpAddr, Egress>,
}

/// A link that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name.
    pub link: LinkName,
    /// Bytes of its largest packet.
    pub mtu: u32,
}

/// An address that the operator chose and that no link has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no link of this node has the node address {0}; compare `ip address` with the Node's status.addresses, or choose another address in the NetworkMode's spec.nodeAddress"
)]
pub struct NoSuchAddress(pub IpAddr);

impl Facts {
    /// Find the links that hold the node's addresses.
    ///
    /// # Errors
    /// An address that tunnels end at is on no link. Nothing should be changed then: an address can vanish for a moment.
    pub fn measure(actual: &NetworkState, inputs: &Inputs) -> Result<Self, NoSuchAddress> {
        let found = |address: IpAddr| {
            let key = actual
                .addresses
                .keys()
                .find(|key| key.net.addr() == address)?;
            let (link, mtu) = (key.link.clone(), actual.links.get(&key.link)?.mtu);
            Some((address, Egress { link, mtu }))
        };
        let facts = Self {
            egress: inputs.addresses.iter().filter_map(found).collect(),
        };
        let needed = inputs.modes.iter().filter_map(|mode| inputs.local(mode));
        match needed
            .into_iter()
            .find(|address| !facts.egress.contains_key(address))
        {
            Some(missing) => Err(NoSuchAddress(missing)),
            None => Ok(facts),
        }
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::{EncapsulateWhen, IpFamily, NodeAddresses, NodeMode, Transport};
    use netweft_netstate::model::{Address, AddressKey, Link, LinkKind};

    use super::*;
    use crate::inputs::Bridged;

    fn state() -> NetworkState {
        let mut state = NetworkState::default();
        let name: LinkName = "uplink7".parse().unwrap();
        state.links.insert(
            name.clone(),
            Link {
                kind: LinkKind::Veth,
                mac: None,
                mtu: 1400,
                up: true,
            },
        );
        let key = AddressKey {
            link: name,
            net: "192.0.2.1/24".parse().unwrap(),
        };
        state.addresses.insert(key, Address::default());
        state
    }

    fn inputs(addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
        let mode = NodeMode {
            name: "default".into(),
            pools: vec![],
            accept: vec![],
            send: Transport::default(),
            outer_family,
            encapsulate_when: EncapsulateWhen::default(),
            mtu: 0,
        };
        Inputs {
            node: "n".into(),
            addresses,
            modes: vec![mode],
            blocks: vec![],
            withdrawn: vec![],
            remote: vec![],
            pools: BTreeMap::new(),
            bridged: Bridged::default(),
            problems: vec![],
        }
    }

    fn addresses(ipv4: &str, ipv6: &str) -> NodeAddresses {
        NodeAddresses {
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
        }
    }

    #[test]
    fn the_mtu_is_that_of_the_link_with_the_node_address() {
        let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
        let facts = Facts::measure(&state(), &inputs).unwrap();
        let egress = &facts.egress[&"192.0.2.1".parse::<IpAddr>().unwrap()];
        assert_eq!((egress.link.as_str(), egress.mtu), ("uplink7", 1400));
    }

    #[test]
    fn an_address_of_a_tunnel_that_is_on_no_link_is_an_error_that_names_it() {
        let gone = inputs(addresses("192.0.2.9", ""), IpFamily::Ipv4);
        let error = Facts::measure(&state(), &gone).unwrap_err();
        assert!(error.to_string().contains("192.0.2.9"));
        // No tunnel ends at this one.
        let other = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv4);
        assert_eq!(Facts::measure(&state(), &other).unwrap().egress.len(), 1);
        let needed = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv6);
        assert!(Facts::measure(&state(), &needed).is_err());
    }
}
