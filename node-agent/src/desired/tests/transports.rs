//! The transports to other nodes, and which one is used.

use kube::core::Selector;
use netweft_crds::{EncapsulateWhen, UdpParameters};
use netweft_netstate::model::LinkName;
use netweft_udp_relay::config::PeerConfig;

use crate::desired::tests::*;

/// The cluster of [`inputs`] with another transport; worker-3 is in another subnet.
fn by(transport: Transport, when: EncapsulateWhen) -> (Inputs, HostFacts) {
    let (mut inputs, facts) = (inputs(), facts());
    inputs.modes[0].transport = transport.into();
    inputs.modes[0].encapsulate_when = when;
    for block in inputs
        .remote
        .iter_mut()
        .filter(|block| block.node == "worker-3")
    {
        block.addresses = addresses("198.51.100.3");
    }
    (inputs, facts)
}

/// The routes to blocks of other nodes in the format of `ip route`.
fn routes(desired: &Desired) -> Vec<String> {
    let unicast = |(_, route): &(&RouteKey, &Route)| route.kind == RouteKind::Unicast;
    let routes = desired.kernel.routes.iter().filter(unicast);
    routes.map(|(key, route)| format!("{key}{route}")).collect()
}

fn udp() -> Transport {
    Transport::Udp(UdpParameters::default())
}

fn with_relay(mut facts: HostFacts, open: bool) -> HostFacts {
    facts.tun_links.insert("nw-udp8285".parse().unwrap(), open);
    facts
}

#[test]
fn ipip_routes_have_node_as_next_hop() {
    let (inputs, facts) = by(Transport::Ipip, EncapsulateWhen::Always);
    let desired = desired(&inputs, &facts);
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.64/26 via 192.0.2.2 dev nw-ipip onlink src 10.244.0.1",
            "10.244.0.128/26 via 192.0.2.2 dev nw-ipip onlink src 10.244.0.1",
            "10.244.1.0/26 via 198.51.100.3 dev nw-ipip onlink src 10.244.0.1",
        ]
    );
    let links: Vec<_> = desired
        .kernel
        .links
        .iter()
        .map(|(name, link)| format!("{name} {link}"))
        .collect();
    assert_eq!(links, ["nw-ipip ipip local 192.0.2.1 mtu 1380 up"]);
    assert_eq!(desired.plugin.pools[0].mtu, 1380);
    assert!(desired.kernel.neighbours.is_empty() && desired.kernel.fdb.is_empty());
    assert_eq!(desired.sysctls["ipv4/conf/nw-ipip/rp_filter"], "2");
}

#[test]
fn ipip_omits_and_reports_ipv6_blocks() {
    let (mut inputs, facts) = both_families(IpFamily::Ipv4);
    inputs.modes[0].transport = Transport::Ipip.into();
    let desired = desired(&inputs, &facts);
    assert!(
        routes(&desired)
            .iter()
            .all(|route| route.starts_with("10."))
    );
    assert_eq!(
        invalid(&desired),
        [
            "block fd00:10::40/122 of node worker-2 is not programmed: NetworkMode default has encapsulation ipip, which carries IPv4 in IPv4 only"
        ]
    );
}

#[test]
fn udp_routes_use_relay_link_and_relay_has_peers() {
    let (inputs, facts) = by(udp(), EncapsulateWhen::Always);
    let desired = desired(&inputs, &with_relay(facts, true));
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.64/26 dev nw-udp8285 src 10.244.0.1",
            "10.244.0.128/26 dev nw-udp8285 src 10.244.0.1",
            "10.244.1.0/26 dev nw-udp8285 src 10.244.0.1",
        ]
    );
    assert_eq!(desired.plugin.pools[0].mtu, 1372);
    assert_eq!(not_programmed(&desired), [""; 0]);
    let [tunnel] = desired.relay.tunnels.as_slice() else {
        panic!("{:?}", desired.relay)
    };
    let peer = |address: &str, blocks: &[&str]| PeerConfig {
        address: address.parse().unwrap(),
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
    };
    assert_eq!(
        (tunnel.port, tunnel.local),
        (8285, "192.0.2.1".parse().unwrap())
    );
    assert_eq!(
        tunnel.peers,
        [
            peer("192.0.2.2", &["10.244.0.64/26", "10.244.0.128/26"]),
            peer("198.51.100.3", &["10.244.1.0/26"]),
        ]
    );
    desired.relay.check().unwrap();
}

#[test]
fn missing_relay_is_awaited_and_its_config_still_written() {
    let (inputs, facts) = by(udp(), EncapsulateWhen::Always);
    let absent = desired(&inputs, &facts);
    assert_eq!(routes(&absent), Vec::<String>::new());
    assert!(absent.kernel.links.is_empty());
    assert!(
        not_programmed(&absent)[0].contains("does not exist")
            && not_programmed(&absent)[0].contains("netweft-udp-relay")
    );
    assert_eq!(absent.relay.tunnels[0].peers.len(), 2);
    // The routes stay while the relay restarts.
    let stopped = desired(&inputs, &with_relay(facts, false));
    assert_eq!(routes(&stopped).len(), 3);
    assert!(not_programmed(&stopped)[0].contains("no process reads"));
}

#[test]
fn udp_over_ipv6_carries_both_families() {
    let (mut inputs, facts) = both_families(IpFamily::Ipv6);
    inputs.modes[0].transport = udp().into();
    let desired = desired(&inputs, &with_relay(facts, true));
    assert_eq!(invalid(&desired), [""; 0]);
    assert_eq!(routes(&desired).len(), 4);
    assert_eq!(desired.plugin.pools[0].mtu, 1400 - 48);
    let blocks = desired.relay.tunnels[0]
        .peers
        .iter()
        .map(|peer| peer.blocks.len());
    assert_eq!(blocks.collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn host_gw_routes_use_next_hop_on_uplink() {
    let (inputs, facts) = by(Transport::Direct, EncapsulateWhen::Always);
    let desired = desired(&inputs, &facts);
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.64/26 via 192.0.2.2 dev uplink1",
            "10.244.0.128/26 via 192.0.2.2 dev uplink1",
        ]
    );
    assert_eq!(desired.plugin.pools[0].mtu, 1400);
    assert!(desired.loose_rp_filter.is_empty());
}

#[test]
fn host_gw_peer_off_link_is_reported_and_gets_no_route() {
    let (inputs, facts) = by(Transport::Direct, EncapsulateWhen::Always);
    assert_eq!(
        invalid(&desired(&inputs, &facts)),
        [
            "no route to pods of node worker-3: its address 198.51.100.3 is not on the link of this node's 192.0.2.1 (uplink1), and NetworkMode default uses node addresses as next hops; connect both nodes to one link, or set spec.mode overlay with spec.overlay.encapsulateWhen cross-subnet"
        ]
    );
}

#[test]
fn host_gw_next_hop_needs_node_address_of_pod_family() {
    let (mut inputs, facts) = both_families(IpFamily::Ipv4);
    inputs.modes[0].transport = Transport::Direct.into();
    let without_addresses = desired(&inputs, &facts);
    let problems = invalid(&without_addresses);
    assert!(
        problems[0].contains("node worker-1 has no IPv6 address"),
        "{problems:?}"
    );
    inputs.addresses.ipv6 = "2001:db8::1".parse().ok();
    let with_own_address = desired(&inputs, &facts);
    let problems = invalid(&with_own_address);
    assert!(
        problems[0].contains("node worker-2 has no IPv6 address"),
        "{problems:?}"
    );
    for block in &mut inputs.remote {
        block.addresses.ipv6 = "2001:db8::2".parse().ok();
    }
    let mut facts = facts;
    let uplink = Egress {
        on_link: ["2001:db8::/64".parse().unwrap()].into(),
        ..facts.egress.values().next().unwrap().clone()
    };
    facts.egress.insert("2001:db8::1".parse().unwrap(), uplink);
    let both = desired(&inputs, &facts);
    assert_eq!(invalid(&both), [""; 0]);
    assert_eq!(
        routes(&both)[3],
        "fd00:10::40/122 via 2001:db8::2 dev uplink1"
    );
}

#[test]
fn cross_subnet_encapsulates_only_off_link_nodes() {
    for (transport, tunnel_route) in [
        (
            Transport::Ipip,
            "via 198.51.100.3 dev nw-ipip onlink src 10.244.0.1",
        ),
        (
            Transport::Vxlan(VxlanParameters::default()),
            "via 10.244.1.0 dev nw-vx4096 onlink src 10.244.0.1",
        ),
        (udp(), "dev nw-udp8285 src 10.244.0.1"),
    ] {
        let (inputs, facts) = by(transport, EncapsulateWhen::CrossSubnet);
        let desired = desired(&inputs, &with_relay(facts, true));
        assert_eq!(
            routes(&desired),
            [
                "10.244.0.64/26 via 192.0.2.2 dev uplink1".to_owned(),
                "10.244.0.128/26 via 192.0.2.2 dev uplink1".to_owned(),
                format!("10.244.1.0/26 {tunnel_route}"),
            ]
        );
        assert_eq!(invalid(&desired), [""; 0]);
        // The MTU leaves room for the encapsulation, whether a packet is encapsulated or not.
        assert!(desired.plugin.pools[0].mtu < 1400);
        let uplink: LinkName = "uplink1".parse().unwrap();
        assert_eq!(desired.loose_rp_filter, [uplink].into());
    }
}

/// The cluster of [`inputs`] with a second pool, in mode host-gw, of which worker-2 has a block.
fn with_host_gw_pool() -> (Inputs, HostFacts) {
    let (mut inputs, facts) = (inputs(), facts());
    inputs.pools.insert("plain".into(), pool("10.99.0.0/16"));
    inputs.modes.push(NodeMode {
        name: "plain".into(),
        pools: vec!["plain".into()],
        transport: Transport::Direct.into(),
        ..inputs.modes[0].clone()
    });
    inputs.remote.push(RemoteBlock {
        cidr: "10.99.0.64/26".parse().unwrap(),
        pool: "plain".into(),
        ..inputs.remote[0].clone()
    });
    (inputs, facts)
}

#[test]
fn block_is_routed_by_mode_of_its_pool() {
    let (inputs, facts) = with_host_gw_pool();
    let desired = desired(&inputs, &facts);
    let routes = routes(&desired);
    assert!(routes.contains(&"10.99.0.64/26 via 192.0.2.2 dev uplink1".to_owned()));
    assert_eq!(
        routes
            .iter()
            .filter(|route| route.contains("nw-vx4096"))
            .count(),
        3
    );
    assert_eq!(
        desired.loose_rp_filter.len(),
        1,
        "requests and replies between the pools have different transports"
    );
    // A packet must fit both transports.
    assert_eq!(desired.plugin.pools[0].mtu, 1350);
}

#[test]
fn traffic_to_nodes_is_masqueraded_for_overlay_pools_only() {
    let (inputs, facts) = with_host_gw_pool();
    let nft = desired(&inputs, &facts).nft;
    assert!(nft.contains("elements = { 192.0.2.2, 192.0.2.3 }"));
    assert!(nft.contains("ip saddr 10.99.0.0/16 ip daddr != @pools_v4 ip daddr != { 192.168.0.0/16 } ip daddr != @nodes_v4 masquerade"));
    assert!(nft.contains(
        "ip saddr 10.244.0.0/16 ip daddr != @pools_v4 ip daddr != { 192.168.0.0/16 } masquerade"
    ));
}

#[test]
fn node_without_overlay_block_uses_other_tunnel_address() {
    let (mut inputs, facts) = with_host_gw_pool();
    inputs.blocks[0] = OwnBlock {
        cidr: "10.99.0.0/26".parse().unwrap(),
        pool: "plain".into(),
    };
    let desired = desired(&inputs, &facts);
    let borrowed = AddressKey {
        link: "nw-vx4096".parse().unwrap(),
        net: "10.99.0.1/32".parse().unwrap(),
    };
    assert!(desired.kernel.addresses.contains_key(&borrowed));
    let tunnelled: Vec<_> = routes(&desired)
        .into_iter()
        .filter(|route| route.contains("nw-vx"))
        .collect();
    assert!(
        tunnelled
            .iter()
            .all(|route| route.ends_with("src 10.99.0.1")),
        "{tunnelled:?}"
    );
}

fn by_label(key: &str, value: &str) -> Selector {
    [(key.to_owned(), value.to_owned())].into_iter().collect()
}

#[test]
fn node_config_lists_namespaces_of_each_pool() {
    let (mut inputs, facts) = with_host_gw_pool();
    let labels = |team: &str| [("team".to_owned(), team.to_owned())].into();
    inputs.namespaces = [
        ("shop".to_owned(), labels("a")),
        ("bank".to_owned(), labels("b")),
    ]
    .into();
    assert_eq!(
        desired(&inputs, &facts).plugin.namespaces,
        None,
        "no pool has a selector"
    );
    inputs.pools.get_mut("plain").unwrap().namespace_selector = Some(by_label("team", "a"));
    inputs.serving_pools = vec!["plain".into(), "default-v4".into()];
    let plugin = desired(&inputs, &facts).plugin;
    assert_eq!(
        plugin.namespaces,
        Some(["bank".to_owned(), "shop".to_owned()].into())
    );
    let plain = &plugin.pools[1];
    assert_eq!(
        (plain.name.as_str(), plain.blocks.len()),
        ("plain", 0),
        "listed although it has no block here"
    );
    assert_eq!(plain.namespaces, Some(["shop".to_owned()].into()));
}

#[test]
fn serving_pool_not_yet_seen_is_awaited() {
    let (mut inputs, facts) = with_host_gw_pool();
    inputs.serving_pools = vec!["default-v4".into(), "new".into()];
    assert_eq!(
        not_programmed(&desired(&inputs, &facts)),
        ["IPPool new serves this node, and the agent has not received it yet"]
    );
}

#[test]
fn pools_with_node_selector_precede_others() {
    let (mut inputs, facts) = with_host_gw_pool();
    inputs.serving_pools = vec!["plain".into()];
    inputs.pools.get_mut("plain").unwrap().has_node_selector = true;
    let names = |inputs: &Inputs| -> Vec<String> {
        let pools = desired(inputs, &facts).plugin.pools;
        pools.into_iter().map(|pool| pool.name).collect()
    };
    assert_eq!(names(&inputs), ["plain", "default-v4"]);
    inputs.pools.get_mut("plain").unwrap().has_node_selector = false;
    assert_eq!(names(&inputs), ["default-v4", "plain"]);
}

#[test]
fn block_around_default_gateway_is_reported_and_not_routed() {
    let (inputs, mut facts) = (inputs(), facts());
    facts.default_gateways = ["10.244.1.1".parse().unwrap()].into();
    let desired = desired(&inputs, &facts);
    let block: IpNet = "10.244.1.0/26".parse().unwrap();
    assert!(desired.kernel.routes.keys().all(|key| key.dst != block));
    let problems = invalid(&desired);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("it contains 10.244.1.1, the default gateway of this node"));
}
