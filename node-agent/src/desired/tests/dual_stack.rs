//! Pools of both families, over IPv4 and over IPv6.

use crate::desired::tests::*;

#[test]
fn vxlan_over_ipv4_carries_both_families() {
    let (inputs, facts) = both_families(IpFamily::Ipv4);
    let desired = desired(&inputs, &facts);
    assert_eq!(invalid(&desired), [""; 0]);
    let tunnel_addresses: Vec<String> = desired
        .kernel
        .addresses
        .keys()
        .map(|key| key.net.to_string())
        .collect();
    assert_eq!(tunnel_addresses, ["10.244.0.1/32", "fd00:10::1/128"]);
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: "fd00:10::40/122".parse().unwrap(),
        metric: METRIC,
    };
    let route = &desired.kernel.routes[&key];
    // No route of another link can match a link-local next hop.
    let via = route.via.unwrap().to_string();
    assert!(via.starts_with("fe80::"), "{via}");
    assert_eq!(route.source, Some("fd00:10::1".parse().unwrap()));
    assert!(route.onlink);
    // The blocks of both families of worker-2 have the same tunnel endpoint.
    assert_eq!(desired.kernel.fdb.len(), 2);
    assert_eq!(desired.sysctls["ipv6/conf/all/forwarding"], "1");
    assert_eq!(desired.sysctls["ipv6/conf/nw-vx4096/accept_ra"], "0");
    let uplinks = ["uplink1", "uplink2"].map(|link| link.parse().unwrap());
    assert_eq!(desired.accept_ra_links, uplinks.into());
}

#[test]
fn vxlan_over_ipv6_carries_both_families_with_smaller_mtu() {
    let (inputs, facts) = both_families(IpFamily::Ipv6);
    let desired = desired(&inputs, &facts);
    assert_eq!(invalid(&desired), [""; 0]);
    assert!(desired.plugin.pools.iter().all(|pool| pool.mtu == 1330));
    assert!(desired.kernel.fdb.values().all(IpAddr::is_ipv6));
    assert!(desired.kernel.links.values().all(|link| matches!(
        &link.kind,
        LinkKind::Vxlan(vxlan) if vxlan.local == Some("2001:db8::1".parse().unwrap())
    )));
    assert_eq!(desired.kernel.routes.len(), 4 + 2);
}

#[test]
fn ipv4_only_node_sets_no_ipv6_sysctl_but_accept_ra_of_links() {
    let desired = desired(&inputs(), &facts());
    let ipv6 = desired.sysctls.keys();
    let ipv6 = ipv6.filter(|name| name.starts_with("ipv6"));
    assert_eq!(ipv6.collect::<Vec<_>>(), ["ipv6/conf/nw-vx4096/accept_ra"]);
    assert!(desired.accept_ra_links.is_empty());
}
