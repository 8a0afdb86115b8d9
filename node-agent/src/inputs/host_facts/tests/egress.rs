use crate::inputs::host_facts::tests::*;

#[test]
fn mtu_is_read_from_link_with_node_address() {
    let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    let facts = derive(&state(), &inputs).unwrap();
    let egress = &facts.egress[&"192.0.2.1".parse::<IpAddr>().unwrap()];
    assert_eq!((egress.link.as_str(), egress.mtu), ("uplink7", 1400));
}

#[test]
fn mtu_of_loopback_node_address_follows_route_to_peers() {
    let mut state = state();
    let loopback: LinkName = "lo".parse().unwrap();
    let large = Link {
        mtu: 65536,
        ..link(LinkKind::Other(String::new()))
    };
    state.links.insert(loopback.clone(), large);
    let key = AddressKey {
        link: loopback,
        net: "198.51.100.1/32".parse().unwrap(),
    };
    state.addresses.insert(key, Address::default());
    let mtus = |state: &NetworkState, inputs: &Inputs| -> Vec<u32> {
        let facts = derive(state, inputs).unwrap();
        facts.egress.values().map(|egress| egress.mtu).collect()
    };
    let mut inputs = inputs(addresses("198.51.100.1", ""), IpFamily::Ipv4);
    inputs.remote.push(RemoteBlock {
        cidr: "10.244.0.64/26".parse().unwrap(),
        pool: "p".into(),
        node: "other".into(),
        addresses: addresses("198.51.100.2", ""),
        link_mtu: None,
    });
    // Without a route, any link with an address may be in use.
    assert_eq!(mtus(&state, &inputs), [1400]);
    let jumbo = Link {
        mtu: 9000,
        ..link(LinkKind::Veth)
    };
    state.links.insert("uplink8".parse().unwrap(), jumbo);
    let (key, route) = default_route("uplink8", 4);
    state.routes.insert(key, route);
    assert_eq!(mtus(&state, &inputs), [9000]);
}

/// Routing on the host: the node address is on a dummy link, and packets leave by other links.
#[test]
fn node_address_on_dummy_link_uses_links_of_peer_routes() {
    let mut state = state();
    for (name, mtu) in [("dummy0", 1500), ("uplink8", 9000)] {
        let link = Link {
            mtu,
            ..link(LinkKind::Other("dummy".into()))
        };
        state.links.insert(name.parse().unwrap(), link);
    }
    let key = AddressKey {
        link: "dummy0".parse().unwrap(),
        net: "198.51.100.1/32".parse().unwrap(),
    };
    state.addresses.insert(key, Address::default());
    let mut inputs = inputs(addresses("198.51.100.1", ""), IpFamily::Ipv4);
    let egress = |state: &NetworkState, inputs: &Inputs| {
        let facts = derive(state, inputs).unwrap();
        let egress = facts.egress.into_values().next().unwrap();
        (egress.link.to_string(), egress.mtu)
    };
    assert_eq!(
        egress(&state, &inputs),
        ("dummy0".into(), 1500),
        "without other nodes"
    );
    inputs.remote.push(remote("a", "198.51.100.2"));
    inputs.remote.push(remote("b", "198.51.100.3"));
    let (key, route) = default_route("uplink8", 4);
    state.routes.insert(key.clone(), route.clone());
    assert_eq!(egress(&state, &inputs), ("uplink8".into(), 9000));
    let (longer, by_other_link) = (
        RouteKey {
            dst: "198.51.100.3/32".parse().unwrap(),
            ..key.clone()
        },
        Route {
            dev: "uplink7".parse().ok(),
            ..route.clone()
        },
    );
    state.routes.insert(longer.clone(), by_other_link);
    assert_eq!(
        egress(&state, &inputs),
        ("dummy0".into(), 1400),
        "two links"
    );
    state.routes.remove(&longer);
    let several = Route { dev: None, ..route };
    state.routes.insert(key, several);
    assert_eq!(
        egress(&state, &inputs),
        ("dummy0".into(), 1400),
        "one route"
    );
}

fn egress_with(routes: &[(&str, Option<&str>, &str)]) -> Egress {
    let mut state = state();
    for (dst, via, dev) in routes {
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: dst.parse().unwrap(),
            metric: 0,
        };
        let route = Route {
            kind: RouteKind::Unicast,
            protocol: 2,
            via: via.map(|via| via.parse().unwrap()),
            dev: Some(dev.parse().unwrap()),
            onlink: false,
            source: None,
            mtu: None,
        };
        state.routes.insert(key, route);
    }
    let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    let mut facts = derive(&state, &inputs).unwrap();
    facts.egress.pop_first().unwrap().1
}

#[test]
fn on_link_check_follows_longest_prefix_route() {
    let on_link = |egress: &Egress, peer: &str| egress.is_on_link(peer.parse().unwrap());
    let egress = egress_with(&[
        ("0.0.0.0/0", Some("192.0.2.254"), "uplink7"),
        ("192.0.2.0/24", None, "uplink7"),
        ("192.0.2.64/26", Some("192.0.2.254"), "uplink7"),
        ("198.51.100.0/24", None, "uplink8"),
    ]);
    assert!(on_link(&egress, "192.0.2.2"));
    assert!(!on_link(&egress, "192.0.2.65"), "behind a router");
    assert!(!on_link(&egress, "198.51.100.2"), "on another link");
    assert!(!on_link(&egress, "203.0.113.1"), "by the default route");
    // A host address without a network, as clouds give them.
    let host_address = egress_with(&[("192.0.2.254/32", None, "uplink7")]);
    assert!(!on_link(&host_address, "192.0.2.2"));
}
