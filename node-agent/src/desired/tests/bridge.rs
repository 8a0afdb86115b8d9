//! Pools with `podInterface: bridge`.

use crate::desired::tests::*;

fn bridge_inputs() -> Inputs {
    let mut inputs = inputs();
    for pool in inputs.pools.values_mut() {
        pool.pod_interface = PodInterface::Bridge;
    }
    inputs.blocks.push(OwnBlock {
        cidr: "10.244.7.0/26".parse().unwrap(),
        pool: "default-v4".into(),
    });
    inputs
}

fn on_bridge(desired: &Desired) -> Vec<String> {
    let keys = desired.kernel.addresses.keys();
    keys.filter(|key| key.link.as_str() == "nw-br0")
        .map(|key| key.net.to_string())
        .collect()
}

#[test]
fn desired_state_of_bridge_node_matches_snapshot() {
    insta::assert_debug_snapshot!(desired(&bridge_inputs(), &facts()));
}

#[test]
fn bridged_block_has_route_and_blackhole_fallback() {
    let desired = desired(&bridge_inputs(), &facts());
    for block in ["10.244.0.0/26", "10.244.7.0/26"] {
        let dst = block.parse().unwrap();
        let routes = desired.kernel.routes.iter();
        let kinds: Vec<_> = routes
            .filter(|(key, _)| key.dst == dst)
            .map(|(key, route)| (key.metric, route.kind))
            .collect();
        assert_eq!(
            kinds,
            [(20, RouteKind::Unicast), (30, RouteKind::Blackhole)]
        );
    }
}

#[test]
fn bridge_pool_tunnel_uses_gateway_as_source() {
    let desired = desired(&bridge_inputs(), &facts());
    assert_eq!(on_bridge(&desired), ["10.244.0.1/26", "10.244.7.1/26"]);
    // Packets that are masqueraded on their way into the tunnel get an address of the tunnel's link.
    let on_tunnel = AddressKey {
        link: "nw-vx4096".parse().unwrap(),
        net: "10.244.0.1/32".parse().unwrap(),
    };
    assert!(desired.kernel.addresses.contains_key(&on_tunnel));
    assert_eq!(desired.kernel.addresses.len(), 3);
    let gateway = Some("10.244.0.1".parse().unwrap());
    let through_tunnel = |route: &&Route| route.via.is_some();
    let mut routes = desired.kernel.routes.values().filter(through_tunnel);
    assert!(routes.all(|route| route.source == gateway));
}

#[test]
fn bridged_pods_keep_gateway_without_block_or_pool() {
    let mut inputs = bridge_inputs();
    let keep = |block: &str, gateway: &str| (block.parse().unwrap(), gateway.parse().unwrap());
    inputs.pods = PodState {
        gateways: [
            keep("10.244.0.0/26", "10.244.0.9"),
            keep("10.99.0.0/26", "10.99.0.1"),
        ]
        .into(),
        bridge_mtu: Some(1250),
        ..PodState::default()
    };
    let first = desired(&inputs, &facts());
    let kept = ["10.99.0.1/26", "10.244.0.9/26", "10.244.7.1/26"];
    assert_eq!(on_bridge(&first), kept);
    let gateways = &first.plugin.pools[0].bridge.as_ref().unwrap().gateways;
    assert_eq!(gateways.len(), 2, "the gateways of the pool only");
    assert!(
        first.plugin.pools[0]
            .reserved
            .contains(&"10.244.0.9/32".parse().unwrap())
    );
    let on_tunnel = AddressKey {
        link: "nw-vx4096".parse().unwrap(),
        net: "10.244.0.1/32".parse().unwrap(),
    };
    assert!(
        first.kernel.addresses.contains_key(&on_tunnel),
        "other nodes expect the tunnel address"
    );
    // The pods remain without blocks, modes and pools.
    inputs.blocks.clear();
    inputs.modes.clear();
    inputs.pools.clear();
    inputs.withdrawn = vec!["10.244.0.0/26".parse().unwrap()];
    let last = desired(&inputs, &facts());
    assert_eq!(on_bridge(&last), kept[..2]);
    let links: Vec<_> = last.kernel.links.values().map(|link| link.mtu).collect();
    assert_eq!(links, [1250]);
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: inputs.withdrawn[0],
        metric: METRIC,
    };
    assert_eq!(last.kernel.routes[&key].kind, RouteKind::Unicast);
}

#[test]
fn bridge_with_ipv6_block_has_link_local_address() {
    let mut inputs = bridge_inputs();
    let ipv6_pool = Pool {
        pod_interface: PodInterface::Bridge,
        ..pool("fd00:244::/112")
    };
    inputs.pools.insert("six".into(), ipv6_pool);
    inputs.modes[0].pools.push("six".into());
    assert_eq!(on_bridge(&desired(&inputs, &facts())).len(), 2);
    inputs.blocks.push(OwnBlock {
        cidr: "fd00:244::/122".parse().unwrap(),
        pool: "six".into(),
    });
    let on_bridge = on_bridge(&desired(&inputs, &facts()));
    assert_eq!(on_bridge[2..], ["fd00:244::1/122", "fe80::1/64"]);
}

#[test]
fn bridge_and_routed_pool_of_one_pod_are_reported() {
    let mut inputs = bridge_inputs();
    let six = pool("fd00:244::/112");
    inputs.pools.insert("six".into(), six);
    inputs.modes[0].pools.push("six".into());
    inputs.blocks.push(OwnBlock {
        cidr: "fd00:244::/122".parse().unwrap(),
        pool: "six".into(),
    });
    let mixed = |inputs: &Inputs| {
        let problems = desired(inputs, &facts()).problems;
        problems
            .iter()
            .any(|problem| problem.message.contains("IPPools default-v4 and six"))
    };
    assert!(mixed(&inputs));
    inputs.pools.get_mut("six").unwrap().pod_interface = PodInterface::Bridge;
    assert!(!mixed(&inputs));
}
