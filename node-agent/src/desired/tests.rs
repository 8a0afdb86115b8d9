//! The desired state of a node with VXLAN in a cluster of three nodes.

mod bridge;
mod dual_stack;
mod filter;
mod masquerade;
mod mtu;
mod standby;
mod symmetry;
mod transports;
mod tunnel_addresses;

use std::net::IpAddr;

use netweft_cni::node::PoolConfig;
use netweft_crds::{
    IpFamily, NodeAddresses, PodInterface, Transport, TransportSource, VxlanParameters,
};
use netweft_netstate::model::{AddressKey, LinkKind};

use crate::desired::*;
use crate::inputs::host_facts::Egress;
use crate::inputs::{OwnBlock, Pool, RemoteBlock};
use crate::pods::PodState;
use crate::status::problem::ProblemKind;

fn pool(cidr: &str) -> Pool {
    Pool {
        cidr: cidr.parse().unwrap(),
        block_prefix: 26,
        bgp_export_disabled: false,
        nat_outgoing: true,
        nat_exclude: vec!["192.168.0.0/16".parse().unwrap()],
        reserved: vec![],
        pod_interface: PodInterface::Routed,
        disabled: false,
        draining: false,
        has_node_selector: false,
        namespace_selector: None,
    }
}

fn addresses(ipv4: &str) -> NodeAddresses {
    NodeAddresses {
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
    }
}

/// The messages about parts that are left out.
fn invalid(desired: &Desired) -> Vec<&str> {
    desired.problems.messages(ProblemKind::Invalid)
}

/// The messages about objects that other programs have to create first.
fn not_programmed(desired: &Desired) -> Vec<&str> {
    desired.problems.messages(ProblemKind::ProgrammingFailed)
}

fn notes(desired: &Desired) -> Vec<&str> {
    desired.problems.messages(ProblemKind::Note)
}

fn inputs() -> Inputs {
    let vxlan = TransportSource::from(Transport::Vxlan(VxlanParameters::default()));
    let mode = NodeMode {
        name: "default".into(),
        pools: vec!["default-v4".into()],
        standby_pools: vec![],
        transport: vxlan,
        outer_family: IpFamily::Ipv4,
        encapsulate_when: Default::default(),
        mtu: 0,
        probe: Default::default(),
    };
    let remote = |cidr: &str, node: &str, address: &str| RemoteBlock {
        cidr: cidr.parse().unwrap(),
        pool: "default-v4".into(),
        node: node.into(),
        addresses: addresses(address),
        link_mtu: None,
    };
    Inputs {
        node: "worker-1".into(),
        addresses: addresses("192.0.2.1"),
        modes: vec![mode],
        serving_pools: vec![],
        nodes: ["192.0.2.2", "192.0.2.3"]
            .map(|node| node.parse().unwrap())
            .into(),
        namespaces: BTreeMap::new(),
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
        bgp: None,
        pods: Default::default(),
        problems: Problems::default(),
    }
}

fn facts() -> HostFacts {
    let egress = Egress {
        link: "uplink1".parse().unwrap(),
        mtu: 1400,
        on_link: ["192.0.2.0/24".parse().unwrap()].into(),
        off_link: Default::default(),
    };
    HostFacts {
        default_gateways: Default::default(),
        accept_ra_links: ["uplink2".parse().unwrap()].into(),
        bgp_routes: BTreeMap::new(),
        bgp_peer_links: Default::default(),
        tun_links: BTreeMap::new(),
        egress: BTreeMap::from([("192.0.2.1".parse().unwrap(), egress)]),
    }
}

#[test]
fn desired_state_of_vxlan_node_matches_snapshot() {
    insta::assert_debug_snapshot!(desired(&inputs(), &facts()));
}

/// The same cluster with a pool of each family, on nodes with addresses of the family `outer`.
fn both_families(outer: IpFamily) -> (Inputs, HostFacts) {
    let (mut inputs, mut facts) = (inputs(), facts());
    let block = |cidr: &str| OwnBlock {
        cidr: cidr.parse().unwrap(),
        pool: "default-v6".into(),
    };
    let remote = |block: &RemoteBlock, cidr: &str| RemoteBlock {
        cidr: cidr.parse().unwrap(),
        pool: "default-v6".into(),
        ..block.clone()
    };
    inputs
        .pools
        .insert("default-v6".into(), pool("fd00:10::/64"));
    inputs.modes[0].pools.push("default-v6".into());
    inputs.blocks.push(block("fd00:10::/122"));
    inputs
        .remote
        .push(remote(&inputs.remote[0], "fd00:10::40/122"));
    if outer == IpFamily::Ipv6 {
        let only = |last: u16| NodeAddresses {
            ipv4: None,
            ipv6: Some([0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()),
        };
        inputs.modes[0].outer_family = outer;
        inputs.addresses = only(1);
        for block in &mut inputs.remote {
            block.addresses = only(if block.node == "worker-2" { 2 } else { 3 });
        }
        let egress = facts.egress.pop_first().unwrap().1;
        facts.egress.insert("2001:db8::1".parse().unwrap(), egress);
    }
    (inputs, facts)
}

#[test]
fn withdrawn_block_keeps_blackhole_but_allocates_nothing() {
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
fn tunnel_address_is_reserved_from_pods() {
    let desired = desired(&inputs(), &facts());
    let tunnel: Vec<_> = desired.kernel.addresses.keys().map(|key| key.net).collect();
    assert_eq!(tunnel, ["10.244.0.1/32".parse().unwrap()]);
    assert!(desired.plugin.pools[0].reserved.contains(&tunnel[0]));
}

#[test]
fn node_without_block_in_pool_still_reaches_pool() {
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
fn peer_without_address_is_reported_others_are_reached() {
    let mut inputs = inputs();
    inputs.remote[2].addresses = NodeAddresses::default();
    let desired = desired(&inputs, &facts());
    let problems = invalid(&desired);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("10.244.1.0/26") && problems[0].contains("worker-3"));
    assert_eq!(desired.kernel.fdb.len(), 1);
}

#[test]
fn unknown_transport_is_reported_and_programs_nothing() {
    let mut inputs = inputs();
    inputs.modes[0].transport = TransportSource::default();
    let desired = desired(&inputs, &facts());
    assert!(desired.kernel.links.is_empty());
    assert!(invalid(&desired)[0].contains("NetworkMode default"));
}
