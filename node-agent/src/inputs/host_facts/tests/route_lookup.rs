use crate::inputs::host_facts::route_lookup::MAX_LOOKUPS;
use crate::inputs::host_facts::tests::*;

/// `ip rule add to 198.51.100.0/24 lookup 100`: table `main` has no route for it.
#[test]
fn policy_routing_determines_egress_link() {
    let mut state = state();
    let other = Link {
        mtu: 1300,
        ..link(LinkKind::Veth)
    };
    state.links.insert("uplink8".parse().unwrap(), other);
    let (key, route) = default_route("uplink7", 4);
    state.routes.insert(key, route);
    let mut inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    inputs.remote.push(remote("a", "198.51.100.2"));
    assert!(
        lookup_targets(&state, &inputs).is_empty(),
        "no policy routing"
    );
    state.policy_routing = true;
    let targets = lookup_targets(&state, &inputs);
    assert_eq!(targets.len(), 1);
    let by = |link: &str| {
        targets
            .iter()
            .map(|to| (*to, link.parse().unwrap()))
            .collect()
    };
    let egress = |looked_up: &LookedUp| {
        let facts = HostFacts::derive(&state, &inputs, looked_up).unwrap();
        let egress = facts.egress.into_values().next().unwrap();
        (egress.link.to_string(), egress.mtu)
    };
    assert_eq!(egress(&by("uplink8")), ("uplink8".into(), 1300));
    assert_eq!(egress(&by("uplink7")), ("uplink7".into(), 1400));
}

#[test]
fn route_lookups_for_many_nodes_are_bounded() {
    let mut state = state();
    state.policy_routing = true;
    let mut inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    for last in 0..=255 {
        for third in 0..4 {
            let address = format!("198.51.{third}.{last}");
            inputs.remote.push(remote("x", &address));
        }
    }
    let targets = lookup_targets(&state, &inputs);
    assert_eq!(targets.len(), MAX_LOOKUPS);
    assert!(targets.last().unwrap().to_string().starts_with("198.51.3."));
}
