use super::*;
use crate::attachment::{Bridge, PodAddress, VERSION};
use crate::env::Pod;
use netweft_netstate::diff::diff;
use netweft_netstate::owner;

fn owner() -> AttachmentId {
    AttachmentId {
        container_id: "c0ffee".to_owned(),
        if_name: "eth0".parse().unwrap(),
    }
}

fn attachment() -> Attachment {
    let Identity {
        host_link,
        host_mac,
        pod_mac,
    } = identity(&owner());
    let address = |ip: &str| PodAddress {
        ip: ip.parse().unwrap(),
        pool: "default".to_owned(),
        gateway: None,
    };
    Attachment {
        version: VERSION,
        owner: owner(),
        pod: Pod::default(),
        netns: "/run/netns/x".to_owned(),
        addresses: vec![address("10.244.0.5"), address("fd00::5")],
        host_link,
        host_mac,
        pod_mac,
        bridge: None,
        mtu: 1350,
    }
}

fn setup_lines(state: &NetworkState) -> Vec<String> {
    setup_ops(state).iter().map(ToString::to_string).collect()
}

#[test]
fn pod_link_identity_is_stable_and_unique_per_owner() {
    let one = identity(&owner());
    assert_eq!(one, identity(&owner()));
    assert!(
        owner::Owner::plugin().owns_link(&one.host_link),
        "{}",
        one.host_link
    );
    let other = identity(&AttachmentId {
        if_name: "eth1".parse().unwrap(),
        ..owner()
    });
    assert!(
        one.host_link != other.host_link
            && one.host_mac != other.host_mac
            && one.host_mac != one.pod_mac
    );
    assert!(one.host_mac.0[0] == 2 && one.pod_mac.0[0] == 2);
}

#[test]
fn host_side_has_route_and_neighbour_per_address() {
    let link = identity(&owner()).host_link;
    let mac = identity(&owner()).pod_mac;
    let expected = [
        format!("set link {link} up"),
        format!("set neighbour 10.244.0.5 dev {link} mac {mac}"),
        format!("set neighbour fd00::5 dev {link} mac {mac}"),
        format!("add route 10.244.0.5/32 dev {link}"),
        format!("add route fd00::5/128 dev {link}"),
    ];
    assert_eq!(setup_lines(&host_state(&attachment())), expected);
}

#[test]
fn pod_side_has_addresses_and_default_routes() {
    let mac = identity(&owner()).host_mac;
    let expected = [
        "set link eth0 up".to_owned(),
        "add address 10.244.0.5/32 dev eth0".to_owned(),
        "add address fd00::5/128 dev eth0".to_owned(),
        format!("set neighbour 169.254.1.1 dev eth0 mac {mac}"),
        format!("set neighbour fe80::1 dev eth0 mac {mac}"),
        "add route 169.254.1.1/32 dev eth0".to_owned(),
        "add route 0.0.0.0/0 via 169.254.1.1 dev eth0".to_owned(),
        "add route ::/0 via fe80::1 dev eth0".to_owned(),
    ];
    assert_eq!(setup_lines(&pod_state(&attachment())), expected);
}

#[test]
fn host_state_of_plugin_has_no_diff_to_itself() {
    let state = host_state(&attachment());
    let found = diff(&state, &state, &owner::Owner::plugin());
    assert_eq!((found.ops.len(), found.conflicts.len()), (0, 0));
}

#[test]
fn differences_name_only_missing_objects() {
    let expected = host_state(&attachment());
    let mut actual = expected.clone();
    actual.links.values_mut().for_each(|link| link.mtu = 1300);
    assert_eq!(differences(&actual, &expected), Vec::<String>::new());
    actual.routes.pop_first();
    actual.links.values_mut().for_each(|link| link.up = false);
    let link = identity(&owner()).host_link;
    let found = [
        format!("link {link} is down"),
        format!("not in effect: add route 10.244.0.5/32 dev {link}"),
    ];
    assert_eq!(differences(&actual, &expected), found);
}

fn bridged() -> Attachment {
    let mut attachment = attachment();
    attachment.bridge = Some(Bridge {
        link: "nw-br0".parse().unwrap(),
        mac: "02:00:00:00:00:0b".parse().unwrap(),
    });
    for (address, gateway) in attachment
        .addresses
        .iter_mut()
        .zip(["10.244.0.1/26", "fd00::1/122"])
    {
        address.gateway = Some(gateway.parse().unwrap());
    }
    attachment
}

#[test]
fn bridged_host_side_has_only_port_in_hairpin_mode() {
    let link = identity(&owner()).host_link;
    let expected = [
        format!("set link {link} master nw-br0 hairpin on"),
        format!("set link {link} up"),
    ];
    assert_eq!(setup_lines(&host_state(&bridged())), expected);
}

#[test]
fn bridged_pod_has_block_route_and_bridge_as_gateway() {
    let expected = [
        "set link eth0 up",
        "add address 10.244.0.5/26 dev eth0",
        "add address fd00::5/122 dev eth0",
        "set neighbour 10.244.0.1 dev eth0 mac 02:00:00:00:00:0b",
        "set neighbour fd00::1 dev eth0 mac 02:00:00:00:00:0b",
        "add route 10.244.0.0/26 dev eth0",
        "add route fd00::/122 dev eth0",
        "add route 0.0.0.0/0 via 10.244.0.1 dev eth0",
        "add route ::/0 via fd00::1 dev eth0",
    ];
    assert_eq!(setup_lines(&pod_state(&bridged())), expected);
}

#[test]
fn port_on_other_bridge_or_without_hairpin_differs() {
    let expected = host_state(&bridged());
    let link = identity(&owner()).host_link;
    let missing = [format!(
        "not in effect: set link {link} master nw-br0 hairpin on"
    )];
    let differs = |change: fn(&mut Port)| {
        let mut actual = expected.clone();
        actual.ports.values_mut().for_each(change);
        differences(&actual, &expected)
    };
    assert_eq!(differs(|_| {}), Vec::<String>::new());
    assert_eq!(differs(|port| port.hairpin = false), missing);
    assert_eq!(
        differs(|port| port.master = "br0".parse().unwrap()),
        missing
    );
    let mut actual = expected.clone();
    actual.ports.clear();
    assert_eq!(differences(&actual, &expected), missing);
}

#[test]
fn bridged_pod_requires_bridge_and_gateways() {
    let found = differences(&NetworkState::default(), &bridge_state(&bridged()));
    let expected = [
        "link nw-br0 is missing",
        "not in effect: add address 10.244.0.1/26 dev nw-br0",
        "not in effect: add address fd00::1/122 dev nw-br0",
        "not in effect: add address fe80::1/64 dev nw-br0",
        "not in effect: add route 10.244.0.0/26 dev nw-br0 src 10.244.0.1",
        "not in effect: add route fd00::/122 dev nw-br0 src fd00::1",
    ];
    assert_eq!(found, expected);
    assert_eq!(bridge_state(&attachment()), NetworkState::default());
}
