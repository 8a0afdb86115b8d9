//! The MTU of pods, links and routes.

use crate::desired::tests::*;

#[test]
fn ipv6_pool_is_omitted_when_mtu_is_below_1280() {
    let (mut inputs, facts) = both_families(IpFamily::Ipv4);
    inputs.modes[0].mtu = 1279;
    let desired = desired(&inputs, &facts);
    let pools: Vec<_> = desired.plugin.pools.iter().map(|pool| &pool.name).collect();
    assert_eq!(pools, ["default-v4"]);
    assert!(
        desired
            .kernel
            .addresses
            .keys()
            .all(|key| key.net.addr().is_ipv4())
    );
    assert_eq!(
        invalid(&desired),
        [
            "IPPool default-v6 is not programmed: IPv6 needs packets of 1280 bytes and NetworkMode default has room for 1279; raise the MTU of the node's link or spec.mtu"
        ]
    );
}

#[test]
fn configured_mtu_is_used_unchanged() {
    let mut inputs = inputs();
    inputs.modes[0].mtu = 1300;
    let desired = desired(&inputs, &facts());
    assert_eq!(desired.plugin.pools[0].mtu, 1300);
    assert!(desired.kernel.links.values().all(|link| link.mtu == 1300));
}

#[test]
fn measured_mtu_leaves_room_for_encapsulation() {
    assert_eq!(desired(&inputs(), &facts()).plugin.pools[0].mtu, 1350);
}

#[test]
fn route_mtu_is_lowered_for_node_with_smaller_link_mtu() {
    let mut inputs = inputs();
    assert_eq!(desired(&inputs, &facts()).link_mtu, Some(1400));
    let small = inputs.remote[0].cidr;
    inputs.remote[0].link_mtu = Some(1300);
    inputs.remote[1].link_mtu = Some(9000);
    let routes = desired(&inputs, &facts()).kernel.routes;
    let mtu_to = |net: IpNet| {
        let mut found = routes.iter().filter(|(key, _)| key.dst == net);
        found.next().unwrap().1.mtu
    };
    assert_eq!(mtu_to(small), Some(1250));
    assert_eq!(mtu_to(inputs.remote[1].cidr), None);
}
