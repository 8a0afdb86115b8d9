//! Candidates for the node's address: the addresses that match the selectors of the operator. Kubelet may not report them.
//!
//! ```text
//!   NodeNetwork.spec.addressSelectors, kernel ─▶ candidates() ─▶ NodeNetwork.status.addresses ─▶ operator selects
//! ```
//!
//! The agent only reports. The operator selects, so that two nodes do not use the same address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{
    AddressSelectors, FoundAddress, IpFamily, MAX_FOUND, NodeAddresses, is_routable,
};
use netweft_netstate::model::{AddressKey, NetworkState, SpecialAddress};
use netweft_netstate::owner::is_netweft_link;

/// The source addresses of packets to the destinations of `reaches` selectors.
pub type Sources = BTreeMap<IpAddr, IpAddr>;

/// The criteria for candidates.
pub struct Criteria<'a> {
    /// The selectors of the operator.
    pub selectors: &'a AddressSelectors,
    /// Ranges of all IPPools. An address inside belongs to a pod, or to the bridge of another network.
    pub pools: Vec<IpNet>,
    /// The addresses that the other nodes use now. They stay candidates if a new pool covers them, because the pool is wrong then.
    pub in_use: NodeAddresses,
}

/// The destinations of `reaches` selectors. The kernel has to look up their source addresses.
pub fn destinations(selectors: &AddressSelectors) -> BTreeSet<IpAddr> {
    let both = [&selectors.ipv4, &selectors.ipv6].into_iter().flatten();
    both.filter_map(|selector| selector.reaches).collect()
}

/// The candidates, of each family: addresses in use first, then addresses with a subnet before host addresses (a floating address
/// usually has /32), then primary before secondary addresses, then in numerical order.
#[must_use]
pub fn candidates(
    criteria: &Criteria<'_>,
    actual: &NetworkState,
    sources: &Sources,
) -> Vec<FoundAddress> {
    let mut candidates = Vec::new();
    for family in IpFamily::ALL {
        let Some(selector) = criteria.selectors.of(family) else {
            continue;
        };
        let usable = actual.addresses.keys().filter(|key| {
            IpFamily::of(key.net.addr()) == family && criteria.is_usable(actual, key)
        });
        let usable = usable.map(|key| {
            let address = key.net.addr();
            let is_source = |to: &IpAddr| sources.get(to) == Some(&address);
            FoundAddress {
                address,
                interface: key.link.to_string(),
                reaches: selector.reaches.filter(is_source),
            }
        });
        let mut matching: Vec<_> = usable.filter(|found| selector.matches(found)).collect();
        matching.sort_by_cached_key(|found| (criteria.rank(actual, found), found.clone()));
        matching.dedup_by_key(|found| found.address);
        candidates.extend(matching.into_iter().take(MAX_FOUND / 2));
    }
    candidates
}

impl Criteria<'_> {
    fn is_usable(&self, actual: &NetworkState, key: &AddressKey) -> bool {
        let address = key.net.addr();
        let is_up = actual.links.get(&key.link).is_some_and(|link| link.up);
        let special = actual.special_addresses.get(key);
        let is_stable = special != Some(&SpecialAddress::Unstable);
        let in_pool = self.pools.iter().any(|pool| pool.contains(&address));
        // kube-proxy in mode ipvs has the addresses of all Services on a link that is down.
        is_up
            && is_stable
            && !is_netweft_link(&key.link)
            && is_routable(address)
            && (!in_pool || self.is_in_use(address))
    }

    fn is_in_use(&self, address: IpAddr) -> bool {
        self.in_use.of(IpFamily::of(address)) == Some(address)
    }

    fn rank(&self, actual: &NetworkState, found: &FoundAddress) -> (bool, bool, bool) {
        let mut keys = actual.addresses.keys();
        let key = keys
            .find(|key| key.net.addr() == found.address && key.link.as_str() == found.interface);
        let is_host = key.is_some_and(|key| key.net.prefix_len() == key.net.max_prefix_len());
        let special = key.and_then(|key| actual.special_addresses.get(key));
        (
            !self.is_in_use(found.address),
            is_host,
            special == Some(&SpecialAddress::Secondary),
        )
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::AddressSelector;
    use netweft_netstate::model::{Address, Link, LinkKind, LinkName};

    use super::*;

    fn state(addresses: &[(&str, &str)]) -> NetworkState {
        let mut state = NetworkState::default();
        for (link, net) in addresses {
            let name: LinkName = link.parse().unwrap();
            let ordinary = Link {
                kind: LinkKind::Other(String::new()),
                mac: None,
                mtu: 1500,
                up: true,
            };
            state.links.insert(name, ordinary);
            state.addresses.insert(key(link, net), Address::default());
        }
        state
    }

    fn key(link: &str, net: &str) -> AddressKey {
        AddressKey {
            link: link.parse().unwrap(),
            net: net.parse().unwrap(),
        }
    }

    fn by(cidr: &str, interface: &str, reaches: &str) -> AddressSelectors {
        let selector = AddressSelector {
            cidr: cidr.parse().ok(),
            interface: Some(interface.to_owned()).filter(|it| !it.is_empty()),
            reaches: reaches.parse().ok(),
        };
        let both = selector.cidr.is_none() && selector.reaches.is_none();
        let is_ipv6 = format!("{cidr}{reaches}").contains(':');
        AddressSelectors {
            ipv4: Some(selector.clone()).filter(|_| both || !is_ipv6),
            ipv6: Some(selector).filter(|_| both || is_ipv6),
        }
    }

    fn criteria(selectors: &AddressSelectors) -> Criteria<'_> {
        Criteria {
            selectors,
            pools: vec!["10.244.0.0/16".parse().unwrap()],
            in_use: NodeAddresses::default(),
        }
    }

    fn found(selectors: &AddressSelectors, state: &NetworkState) -> Vec<String> {
        describe(&criteria(selectors), state)
    }

    fn describe(criteria: &Criteria<'_>, state: &NetworkState) -> Vec<String> {
        let found = candidates(criteria, state, &Sources::new()).into_iter();
        found
            .map(|found| format!("{} {}", found.interface, found.address))
            .collect()
    }

    #[test]
    fn selectors_match_by_interface_pattern_and_by_cidr() {
        let state = state(&[
            ("eth0", "10.1.0.1/24"),
            ("eth1", "192.168.0.1/24"),
            ("eth1", "2001:db8::1/64"),
            ("ens7", "192.168.1.1/24"),
        ]);
        assert_eq!(
            found(&by("", "eth1", ""), &state),
            ["eth1 192.168.0.1", "eth1 2001:db8::1"]
        );
        assert_eq!(found(&by("", "ens*", ""), &state), ["ens7 192.168.1.1"]);
        assert_eq!(
            found(&by("192.168.0.0/16", "", ""), &state),
            ["eth1 192.168.0.1", "ens7 192.168.1.1"]
        );
        assert_eq!(
            found(&by("2001:db8::/32", "", ""), &state),
            ["eth1 2001:db8::1"]
        );
        assert!(found(&AddressSelectors::default(), &state).is_empty());
    }

    #[test]
    fn reaches_selector_finds_source_address_of_route() {
        let state = state(&[("eth0", "10.1.0.1/24"), ("eth1", "192.168.0.1/24")]);
        let selectors = by("", "", "203.0.113.9");
        let to = |source: &str| {
            let (to, source) = ("203.0.113.9".parse().unwrap(), source.parse().unwrap());
            let sources = Sources::from([(to, source)]);
            candidates(&criteria(&selectors), &state, &sources)
        };
        let expected = FoundAddress {
            address: "192.168.0.1".parse().unwrap(),
            interface: "eth1".into(),
            reaches: "203.0.113.9".parse().ok(),
        };
        assert_eq!(to("192.168.0.1"), [expected]);
        assert!(to("192.168.0.99").is_empty(), "on no link");
        assert!(found(&selectors, &state).is_empty(), "no route");
        assert_eq!(
            destinations(&selectors),
            BTreeSet::from(["203.0.113.9".parse().unwrap()])
        );
    }

    #[test]
    fn unusable_addresses_are_not_reported() {
        let all = [
            ("eth1", "169.254.3.3/16"),
            ("eth1", "fe80::1/64"),
            ("lo", "127.0.0.1/8"),
            ("lo", "::1/128"),
            ("nw-br0", "192.168.7.1/24"),
            ("cni0", "10.244.3.1/24"),
            ("kube-ipvs0", "10.96.0.1/32"),
            ("eth1", "2001:db8::7/64"),
        ];
        let mut state = state(&all);
        let down = state.links.get_mut(&"kube-ipvs0".parse().unwrap()).unwrap();
        down.up = false;
        let temporary = key("eth1", "2001:db8::7/64");
        state
            .special_addresses
            .insert(temporary.clone(), SpecialAddress::Unstable);
        let any = by("", "*", "");
        assert_eq!(found(&any, &state), [""; 0]);
        // Each of the last three is left out for one reason.
        state.special_addresses.remove(&temporary);
        assert_eq!(found(&any, &state), ["eth1 2001:db8::7"]);
        state.links.values_mut().for_each(|link| link.up = true);
        assert_eq!(
            found(&any, &state),
            ["kube-ipvs0 10.96.0.1", "eth1 2001:db8::7"]
        );
        let no_pools = Criteria {
            pools: vec![],
            ..criteria(&any)
        };
        assert_eq!(
            describe(&no_pools, &state),
            [
                "cni0 10.244.3.1",
                "kube-ipvs0 10.96.0.1",
                "eth1 2001:db8::7"
            ]
        );
        let in_use = NodeAddresses {
            ipv4: "10.244.3.1".parse().ok(),
            ipv6: None,
        };
        let used = Criteria {
            in_use,
            ..criteria(&any)
        };
        assert_eq!(
            describe(&used, &state)[0],
            "cni0 10.244.3.1",
            "although a pool covers it"
        );
    }

    #[test]
    fn primary_address_precedes_secondary_and_host_address() {
        let mut state = state(&[
            ("eth1", "192.168.0.1/32"),
            ("eth1", "192.168.0.2/24"),
            ("eth1", "192.168.0.3/24"),
        ]);
        state
            .special_addresses
            .insert(key("eth1", "192.168.0.2/24"), SpecialAddress::Secondary);
        assert_eq!(
            found(&by("", "eth1", ""), &state),
            ["eth1 192.168.0.3", "eth1 192.168.0.2", "eth1 192.168.0.1"]
        );
    }

    #[test]
    fn found_addresses_are_bounded_and_include_address_in_use() {
        let nets: Vec<String> = (1..100)
            .flat_map(|n| [format!("192.168.0.{n}/24"), format!("2001:db8::{n:x}/64")])
            .collect();
        let addresses: Vec<(&str, &str)> = nets.iter().map(|net| ("eth1", net.as_str())).collect();
        let selectors = by("", "eth1", "");
        let used = Criteria {
            in_use: NodeAddresses {
                ipv4: "192.168.0.90".parse().ok(),
                ipv6: None,
            },
            ..criteria(&selectors)
        };
        let found = candidates(&used, &state(&addresses), &Sources::new());
        assert_eq!(found.len(), MAX_FOUND);
        assert_eq!(found.iter().filter(|it| it.address.is_ipv4()).count(), 8);
        assert_eq!(found[0].address.to_string(), "192.168.0.90");
        assert_eq!(found[8].address.to_string(), "2001:db8::1");
    }

    #[test]
    fn address_on_two_links_is_reported_once() {
        let state = state(&[("eth1", "192.168.0.1/24"), ("eth2", "192.168.0.1/24")]);
        assert_eq!(found(&by("", "eth*", ""), &state), ["eth1 192.168.0.1"]);
    }
}
