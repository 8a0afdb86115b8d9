//! What only the kernel knows: which link carries the node's address, and how large its packets may be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_crds::NodeAddresses;
use netweft_netstate::model::{LinkName, NetworkState};

/// The egress link of each of the node's addresses.
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
    /// Find the links that hold `addresses`.
    ///
    /// # Errors
    /// An address is on no link. Nothing should be changed then: an address can vanish for a moment.
    pub fn measure(actual: &NetworkState, addresses: NodeAddresses) -> Result<Self, NoSuchAddress> {
        let egress = addresses.iter().map(|address| {
            let found = actual
                .addresses
                .keys()
                .find(|key| key.net.addr() == address);
            let link =
                found.and_then(|key| Some((key.link.clone(), actual.links.get(&key.link)?.mtu)));
            link.map(|(link, mtu)| (address, Egress { link, mtu }))
                .ok_or(NoSuchAddress(address))
        });
        Ok(Self {
            egress: egress.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use netweft_netstate::model::{Address, AddressKey, Link, LinkKind};

    use super::*;

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

    #[test]
    fn the_mtu_is_that_of_the_link_with_the_node_address() {
        let addresses = NodeAddresses {
            ipv4: Some("192.0.2.1".parse().unwrap()),
            ipv6: None,
        };
        let facts = Facts::measure(&state(), addresses).unwrap();
        let egress = &facts.egress[&"192.0.2.1".parse::<IpAddr>().unwrap()];
        assert_eq!((egress.link.as_str(), egress.mtu), ("uplink7", 1400));
    }

    #[test]
    fn an_address_on_no_link_is_an_error_that_names_it() {
        let addresses = NodeAddresses {
            ipv4: Some("192.0.2.9".parse().unwrap()),
            ipv6: None,
        };
        let error = Facts::measure(&state(), addresses).unwrap_err();
        assert!(error.to_string().contains("192.0.2.9"));
    }
}
