use std::collections::BTreeMap;

use super::*;
use crate::model::{
    Address, AddressKey, FdbKey, LinkKind, Neighbour, NeighbourKey, Port, RouteKind, TABLE_MAIN,
    Vxlan,
};
use crate::owner::{METRIC, PROTOCOL_AGENT};

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn vxlan(vni: u32) -> Link {
    let kind = LinkKind::Vxlan(Vxlan {
        vni,
        port: 4789,
        local: Some([10, 168, 0, 2].into()),
        learning: false,
    });
    Link {
        kind,
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        mtu: 1350,
        up: true,
    }
}

fn key(dst: &str) -> RouteKey {
    RouteKey {
        table: TABLE_MAIN,
        dst: dst.parse().unwrap(),
        metric: METRIC,
    }
}

fn route(via: Option<&str>, dev: &str) -> Route {
    Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_AGENT,
        via: via.map(|via| via.parse().unwrap()),
        dev: Some(name(dev)),
        onlink: via.is_some(),
        source: None,
        mtu: None,
    }
}

/// One remote node, reached by a tunnel.
fn overlay(vni: u32) -> NetworkState {
    let link = name("nw-vx");
    let remote = "10.244.1.0".parse().unwrap();
    let mac = "02:00:00:00:00:02".parse().unwrap();
    NetworkState {
        links: [(link.clone(), vxlan(vni))].into(),
        ports: Default::default(),
        carriers: Default::default(),
        policy_routing: false,
        special_addresses: BTreeMap::new(),
        addresses: [(
            AddressKey {
                link: link.clone(),
                net: "10.244.0.1/32".parse().unwrap(),
            },
            Address::default(),
        )]
        .into(),
        neighbours: [(
            NeighbourKey {
                link: link.clone(),
                ip: remote,
            },
            Neighbour {
                mac: Some(mac),
                permanent: true,
            },
        )]
        .into(),
        fdb: [(FdbKey { link, mac }, "10.168.0.3".parse().unwrap())].into(),
        routes: [(key("10.244.1.0/26"), route(Some("10.244.1.0"), "nw-vx"))].into(),
    }
}

fn lines(diff: &Diff) -> Vec<String> {
    diff.ops.iter().map(ToString::to_string).collect()
}

fn agent(actual: &NetworkState, desired: &NetworkState) -> Diff {
    diff(actual, desired, &Owner::agent())
}

#[test]
fn diff_creates_links_first_and_routes_last() {
    let expected = [
        "add link nw-vx vxlan vni 4096 port 4789 local 10.168.0.2 mac 02:00:00:00:00:01 mtu 1350 up",
        "add address 10.244.0.1/32 dev nw-vx",
        "set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02",
        "set fdb entry 02:00:00:00:00:02 dst 10.168.0.3 dev nw-vx",
        "add route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink",
    ];
    assert_eq!(
        lines(&agent(&NetworkState::default(), &overlay(4096))),
        expected
    );
}

#[test]
fn diff_deletes_in_reverse_without_cascaded_objects() {
    let mut desired = overlay(4096);
    desired.addresses.clear();
    desired.neighbours.clear();
    desired.fdb.clear();
    desired.routes.clear();
    let address = AddressKey {
        link: name("nw-vx"),
        net: "10.244.0.2/32".parse().unwrap(),
    };
    desired.addresses.insert(address, Address::default());
    let expected = [
        "add address 10.244.0.2/32 dev nw-vx",
        "delete route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink",
        "delete fdb entry 02:00:00:00:00:02 dst 10.168.0.3 dev nw-vx",
        "delete neighbour 10.244.1.0 dev nw-vx",
        "delete address 10.244.0.1/32 dev nw-vx",
    ];
    assert_eq!(lines(&agent(&overlay(4096), &desired)), expected);
    assert_eq!(
        lines(&agent(&overlay(4096), &NetworkState::default())),
        ["delete link nw-vx"]
    );
}

#[test]
fn vxlan_vni_change_recreates_link_and_its_objects() {
    let expected = [
        "recreate link nw-vx: vni is 4096, should be 4097",
        "add address 10.244.0.1/32 dev nw-vx",
        "set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02",
        "set fdb entry 02:00:00:00:00:02 dst 10.168.0.3 dev nw-vx",
        "add route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink",
    ];
    assert_eq!(lines(&agent(&overlay(4096), &overlay(4097))), expected);
}

#[test]
fn link_recreation_reason_names_changed_attribute() {
    let LinkKind::Vxlan(desired) = vxlan(4096).kind else {
        panic!()
    };
    let reasons = [
        (
            Vxlan {
                port: 8472,
                ..desired.clone()
            },
            "port is 8472, should be 4789",
        ),
        (
            Vxlan {
                local: None,
                ..desired.clone()
            },
            "local address is unset, should be 10.168.0.2",
        ),
        (
            Vxlan {
                learning: true,
                ..desired.clone()
            },
            "learning is on, should be off",
        ),
    ];
    for (found, reason) in reasons {
        assert_eq!(
            incompatible(&LinkKind::Vxlan(found), &LinkKind::Vxlan(desired.clone())).unwrap(),
            reason
        );
    }
    let reason = incompatible(&LinkKind::Other("tun".into()), &LinkKind::Bridge).unwrap();
    assert_eq!(reason, "kind is tun, should be bridge");
}

#[test]
fn link_mtu_and_mac_change_in_place_restores_neighbours() {
    let mut actual = overlay(4096);
    let link = actual.links.get_mut(&name("nw-vx")).unwrap();
    link.mtu = 1400;
    assert_eq!(
        lines(&agent(&actual, &overlay(4096))),
        ["set link nw-vx mtu 1350"]
    );
    actual.links.get_mut(&name("nw-vx")).unwrap().mac = None;
    let expected = [
        "set link nw-vx mtu 1350 mac 02:00:00:00:00:01",
        "set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02",
    ];
    assert_eq!(lines(&agent(&actual, &overlay(4096))), expected);
}

#[test]
fn link_set_up_adds_routes_lost_while_down() {
    let mut actual = overlay(4096);
    actual.links.get_mut(&name("nw-vx")).unwrap().up = false;
    actual.routes.clear();
    let expected = [
        "set link nw-vx up",
        "add route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink",
    ];
    assert_eq!(lines(&agent(&actual, &overlay(4096))), expected);
}

#[test]
fn route_moved_from_deleted_link_is_replaced_once() {
    let mut desired = NetworkState::default();
    desired
        .routes
        .insert(key("10.244.1.0/26"), route(Some("10.168.0.3"), "eth0"));
    let expected = [
        "replace route 10.244.1.0/26 via 10.168.0.3 dev eth0 onlink",
        "delete link nw-vx",
    ];
    assert_eq!(lines(&agent(&overlay(4096), &desired)), expected);
}

#[test]
fn address_replacement_restores_routes_with_its_source() {
    let mut actual = overlay(4096);
    actual.routes.get_mut(&key("10.244.1.0/26")).unwrap().source =
        Some("10.244.0.1".parse().unwrap());
    let desired = actual.clone();
    for address in actual.addresses.values_mut() {
        address.link_scope = true;
    }
    let expected = [
        "replace address 10.244.0.1/32 dev nw-vx",
        "set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02",
        "replace route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink src 10.244.0.1",
    ];
    assert_eq!(lines(&agent(&actual, &desired)), expected);
}

#[test]
fn routes_without_gateway_precede_routes_with_gateway() {
    let mut desired = NetworkState::default();
    desired
        .routes
        .insert(key("10.0.0.0/8"), route(Some("192.0.2.1"), "eth0"));
    desired
        .routes
        .insert(key("192.0.2.1/32"), route(None, "eth0"));
    let additions = agent(&NetworkState::default(), &desired);
    assert_eq!(
        lines(&additions),
        [
            "add route 192.0.2.1/32 dev eth0",
            "add route 10.0.0.0/8 via 192.0.2.1 dev eth0 onlink"
        ]
    );
    let removals = agent(&desired, &NetworkState::default());
    assert_eq!(
        removals.ops.first().unwrap().to_string(),
        "delete route 10.0.0.0/8 via 192.0.2.1 dev eth0 onlink"
    );
}

#[test]
fn foreign_route_at_own_key_is_kept_and_reported() {
    let mut actual = overlay(4096);
    actual
        .routes
        .get_mut(&key("10.244.1.0/26"))
        .unwrap()
        .protocol = 4;
    let diff = agent(&actual, &overlay(4096));
    assert_eq!(diff.ops, []);
    let conflicts: Vec<_> = diff.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        conflicts,
        [
            "route 10.244.1.0/26 metric 20 via 10.244.1.0 dev nw-vx onlink of another program (protocol 4) prevents route 10.244.1.0/26 \
             via 10.244.1.0 dev nw-vx onlink of netweft: delete the route of the other program (ip route delete 10.244.1.0/26 metric 20), \
             and stop the program from adding the route again"
        ]
    );
}

#[test]
fn objects_without_owner_mark_are_not_created() {
    let mut desired = NetworkState::default();
    desired.links.insert(name("vxlan0"), vxlan(1));
    desired.routes.insert(
        key("10.0.0.0/8"),
        Route {
            protocol: 4,
            ..route(None, "eth0")
        },
    );
    let net = "10.0.0.1/32".parse().unwrap();
    desired.addresses.insert(
        AddressKey {
            link: name("eth0"),
            net,
        },
        Address::default(),
    );
    let diff = agent(&NetworkState::default(), &desired);
    assert_eq!((diff.ops.len(), diff.conflicts.len()), (0, 3));
}

#[test]
fn resolved_neighbour_is_replaced_only_at_own_key() {
    let mut actual = overlay(4096);
    let resolved = Neighbour {
        mac: Some("02:00:00:00:00:09".parse().unwrap()),
        permanent: false,
    };
    actual
        .neighbours
        .values_mut()
        .for_each(|neighbour| *neighbour = resolved.clone());
    let other = NeighbourKey {
        link: name("nw-vx"),
        ip: "10.244.1.9".parse().unwrap(),
    };
    actual.neighbours.insert(other, resolved);
    let expected = ["set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02"];
    assert_eq!(lines(&agent(&actual, &overlay(4096))), expected);
}

#[test]
fn last_ipv4_address_is_deleted_before_cascaded_objects() {
    let mut desired = overlay(4096);
    desired.addresses.clear();
    let expected = [
        "delete address 10.244.0.1/32 dev nw-vx",
        "set neighbour 10.244.1.0 dev nw-vx mac 02:00:00:00:00:02",
        "replace route 10.244.1.0/26 via 10.244.1.0 dev nw-vx onlink",
    ];
    assert_eq!(lines(&agent(&overlay(4096), &desired)), expected);
}

/// A bridge with a tunnel as its port.
fn bridged(hairpin: bool) -> NetworkState {
    let bridge = Link {
        kind: LinkKind::Bridge,
        ..vxlan(1)
    };
    let port = Port {
        master: name("nw-br"),
        hairpin,
    };
    NetworkState {
        links: [(name("nw-br"), bridge), (name("nw-a"), vxlan(1))].into(),
        ports: [(name("nw-a"), port)].into(),
        ..NetworkState::default()
    }
}

#[test]
fn bridge_port_is_attached_after_bridge_and_fixed_in_place() {
    let additions = lines(&agent(&NetworkState::default(), &bridged(true)));
    assert_eq!(additions.len(), 3);
    assert_eq!(additions[2], "set link nw-a master nw-br hairpin on");
    assert_eq!(
        lines(&agent(&bridged(false), &bridged(true))),
        ["set link nw-a master nw-br hairpin on"]
    );
    let mut elsewhere = bridged(true);
    elsewhere
        .ports
        .values_mut()
        .for_each(|port| port.master = name("br0"));
    assert_eq!(
        lines(&agent(&elsewhere, &bridged(true))),
        ["set link nw-a master nw-br hairpin on"]
    );
    let mut detached = bridged(true);
    detached.ports.clear();
    assert_eq!(
        lines(&agent(&bridged(true), &detached)),
        ["set link nw-a nomaster"]
    );
}

#[test]
fn recreated_bridge_regains_its_ports() {
    let mut actual = bridged(true);
    actual.links.insert(name("nw-br"), vxlan(7));
    let ops = lines(&agent(&actual, &bridged(true)));
    assert_eq!(
        ops,
        [
            "recreate link nw-br: kind is vxlan vni 7 port 4789 local 10.168.0.2, should be bridge",
            "set link nw-a master nw-br hairpin on"
        ]
    );
}
