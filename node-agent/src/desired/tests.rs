use netweft_crds::{NodeAddresses, Transport, VxlanParameters};

use super::*;
use crate::facts::Egress;
use crate::inputs::{Pool, RemoteBlock};

fn pool(cidr: &str) -> Pool {
    Pool {
        cidr: cidr.parse().unwrap(),
        nat_outgoing: true,
        nat_exclude: vec!["192.168.0.0/16".parse().unwrap()],
        reserved: vec![],
        pod_interface: PodInterface::Routed,
        disabled: false,
    }
}

fn addresses(ipv4: &str) -> NodeAddresses {
    NodeAddresses {
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
    }
}

fn inputs() -> Inputs {
    let vxlan = Transport::vxlan(VxlanParameters::default());
    let mode = NodeMode {
        name: "default".into(),
        pools: vec!["default-v4".into()],
        accept: vec![vxlan],
        send: vxlan,
        encapsulate_when: Default::default(),
        mtu: 0,
    };
    let remote = |cidr: &str, node: &str, address: &str| RemoteBlock {
        cidr: cidr.parse().unwrap(),
        pool: "default-v4".into(),
        node: node.into(),
        addresses: addresses(address),
    };
    Inputs {
        node: "worker-1".into(),
        addresses: addresses("192.0.2.1"),
        modes: vec![mode],
        blocks: vec![OwnBlock {
            cidr: "10.244.0.0/26".parse().unwrap(),
            pool: "default-v4".into(),
        }],
        withdrawn: vec![],
        remote: vec![
            remote("10.244.0.64/26", "worker-2", "192.0.2.2"),
            remote("10.244.0.128/26", "worker-2", "192.0.2.2"),
            remote("10.244.1.0/26", "worker-3", "192.0.2.3"),
        ],
        pools: BTreeMap::from([("default-v4".to_owned(), pool("10.244.0.0/16"))]),
        problems: vec![],
    }
}

fn facts() -> Facts {
    let egress = Egress {
        link: "uplink1".parse().unwrap(),
        mtu: 1400,
    };
    Facts {
        egress: BTreeMap::from([("192.0.2.1".parse().unwrap(), egress)]),
    }
}

#[test]
fn a_node_of_a_vxlan_cluster() {
    insta::assert_debug_snapshot!(desired(&inputs(), &facts()));
}

#[test]
fn the_nft_table_of_a_pool() {
    insta::assert_snapshot!(desired(&inputs(), &facts()).nft);
}

#[test]
fn an_mtu_that_is_set_is_taken_as_it_is() {
    let mut inputs = inputs();
    inputs.modes[0].mtu = 1300;
    let desired = desired(&inputs, &facts());
    assert_eq!(desired.plugin.pools[0].mtu, 1300);
    assert!(desired.kernel.links.values().all(|link| link.mtu == 1300));
}

#[test]
fn a_measured_mtu_leaves_room_for_the_encapsulation() {
    assert_eq!(desired(&inputs(), &facts()).plugin.pools[0].mtu, 1350);
}

#[test]
fn a_withdrawn_block_stays_blackholed_but_is_not_handed_out_from() {
    let mut inputs = inputs();
    inputs.withdrawn.push("10.244.9.0/26".parse().unwrap());
    let desired = desired(&inputs, &facts());
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: "10.244.9.0/26".parse().unwrap(),
        metric: METRIC,
    };
    assert_eq!(desired.kernel.routes[&key].kind, RouteKind::Blackhole);
    assert!(
        !desired
            .plugin
            .pools
            .iter()
            .any(|pool| pool.blocks.contains(&key.dst))
    );
}

#[test]
fn the_tunnel_address_is_never_given_to_a_pod() {
    let desired = desired(&inputs(), &facts());
    let tunnel: Vec<_> = desired.kernel.addresses.keys().map(|key| key.net).collect();
    assert_eq!(tunnel, ["10.244.0.1/32".parse().unwrap()]);
    assert!(desired.plugin.pools[0].reserved.contains(&tunnel[0]));
}

#[test]
fn a_node_without_a_block_in_a_pool_still_reaches_it() {
    let mut inputs = inputs();
    inputs.pools.insert("other".into(), pool("10.99.0.0/16"));
    inputs.modes[0].pools.push("other".into());
    inputs.remote[0].pool = "other".into();
    inputs.remote[0].cidr = "10.99.0.0/26".parse().unwrap();
    let desired = desired(&inputs, &facts());
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: "10.99.0.0/26".parse().unwrap(),
        metric: METRIC,
    };
    assert_eq!(
        desired.kernel.routes[&key].source,
        Some("10.244.0.1".parse().unwrap())
    );
}

#[test]
fn a_peer_without_an_address_is_named_and_the_others_are_reached() {
    let mut inputs = inputs();
    inputs.remote[2].addresses = NodeAddresses::default();
    let desired = desired(&inputs, &facts());
    assert_eq!(desired.problems.len(), 1);
    assert!(
        desired.problems[0].contains("10.244.1.0/26") && desired.problems[0].contains("worker-3")
    );
    assert_eq!(desired.kernel.fdb.len(), 1);
}

#[test]
fn a_pool_without_nat_is_not_masqueraded_but_not_masqueraded_towards_either() {
    let mut inputs = inputs();
    inputs.pools.insert(
        "public".into(),
        Pool {
            nat_outgoing: false,
            ..pool("203.0.113.0/24")
        },
    );
    let nft = desired(&inputs, &facts()).nft;
    assert!(!nft.contains("saddr 203.0.113.0/24"));
    assert!(nft.contains("elements = { 10.244.0.0/16, 203.0.113.0/24 }"));
}

#[test]
fn a_transport_this_version_lacks_is_named_and_programs_nothing() {
    let mut inputs = inputs();
    inputs.modes[0].send = Transport {
        direct: Some(Default::default()),
        ..Transport::default()
    };
    let desired = desired(&inputs, &facts());
    assert!(desired.kernel.links.is_empty());
    assert!(desired.problems[0].contains("NetworkMode default"));
}

/// nft itself reads what we render.
#[test]
fn nft_accepts_the_table() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("nft")
        .args(["-c", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(desired(&inputs(), &facts()).nft.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
