mod filter;
mod standby;
mod symmetry;
mod transports;
mod tunnel_addresses;

use std::net::IpAddr;

use netweft_crds::{NodeAddresses, Transport, TransportSource, VxlanParameters};
use netweft_netstate::model::{AddressKey, LinkKind};

use crate::desired::*;
use crate::inputs::host_facts::Egress;
use crate::inputs::{Pool, RemoteBlock};
use crate::pods::PodState;
use crate::status::problem::ProblemKind;

fn pool(cidr: &str) -> Pool {
    Pool {
        cidr: cidr.parse().unwrap(),
        block_prefix: 26,
        unannounced: false,
        nat_outgoing: true,
        nat_exclude: vec!["192.168.0.0/16".parse().unwrap()],
        reserved: vec![],
        pod_interface: PodInterface::Routed,
        disabled: false,
        draining: false,
        some_nodes: false,
        namespaces: None,
    }
}

fn addresses(ipv4: &str) -> NodeAddresses {
    NodeAddresses {
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
    }
}

/// What is left out and why.
fn invalid(desired: &Desired) -> Vec<&str> {
    desired.problems.messages(ProblemKind::Invalid)
}

/// What waits for another program.
fn waiting_for(desired: &Desired) -> Vec<&str> {
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
        serving: vec![],
        peers_without_blocks: vec![],
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

fn facts() -> Facts {
    let egress = Egress {
        link: "uplink1".parse().unwrap(),
        mtu: 1400,
        on_link: ["192.0.2.0/24".parse().unwrap()].into(),
        elsewhere: Default::default(),
    };
    Facts {
        listening: ["uplink2".parse().unwrap()].into(),
        bgp_routes: BTreeMap::new(),
        towards_peers: Default::default(),
        tuns: BTreeMap::new(),
        egress: BTreeMap::from([("192.0.2.1".parse().unwrap(), egress)]),
    }
}

#[test]
fn desired_state_of_vxlan_node_matches_snapshot() {
    insta::assert_debug_snapshot!(desired(&inputs(), &facts()));
}

#[test]
fn nft_table_of_pool_matches_snapshot() {
    insta::assert_snapshot!(desired(&inputs(), &facts()).nft);
}

/// The same cluster with a pool of each family, on nodes of one.
fn both_families(outer: IpFamily) -> (Inputs, Facts) {
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
fn vxlan_over_ipv4_carries_both_families() {
    let (inputs, facts) = both_families(IpFamily::Ipv4);
    let desired = desired(&inputs, &facts);
    assert_eq!(invalid(&desired), [""; 0]);
    let on_link: Vec<String> = desired
        .kernel
        .addresses
        .keys()
        .map(|key| key.net.to_string())
        .collect();
    assert_eq!(on_link, ["10.244.0.1/32", "fd00:10::1/128"]);
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: "fd00:10::40/122".parse().unwrap(),
        metric: METRIC,
    };
    let route = &desired.kernel.routes[&key];
    // Not an address that a route of another link could lead to.
    let via = route.via.unwrap().to_string();
    assert!(via.starts_with("fe80::"), "{via}");
    assert_eq!(route.source, Some("fd00:10::1".parse().unwrap()));
    assert!(route.onlink);
    // Both families of worker-2 are behind the same endpoint.
    assert_eq!(desired.kernel.fdb.len(), 2);
    assert_eq!(desired.sysctls["ipv6/conf/all/forwarding"], "1");
    assert_eq!(desired.sysctls["ipv6/conf/nw-vx4096/accept_ra"], "0");
    let listening = ["uplink1", "uplink2"].map(|link| link.parse().unwrap());
    assert_eq!(desired.accept_ra_links, listening.into());
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
    let ipv6 = desired
        .sysctls
        .keys()
        .filter(|name| name.starts_with("ipv6"));
    assert_eq!(ipv6.collect::<Vec<_>>(), ["ipv6/conf/nw-vx4096/accept_ra"]);
    assert!(desired.accept_ra_links.is_empty());
}

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
fn pool_without_nat_is_excluded_from_masquerade_both_ways() {
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
fn tunnel_address_replaces_other_node_sources_in_tunnel() {
    let mut inputs = inputs();
    for nat_outgoing in [true, false] {
        for pool in inputs.pools.values_mut() {
            pool.nat_outgoing = nat_outgoing;
        }
        let nft = desired(&inputs, &facts()).nft;
        let rule = "oifname \"nw-vx4096\" ip saddr != @pools_v4 fib saddr type local masquerade";
        assert!(nft.contains(rule), "{nft}");
        assert!(
            !nft.contains("ip6 saddr != @pools_v6"),
            "no pool of IPv6: {nft}"
        );
    }
}

#[test]
fn nft_table_has_no_nat_chain_without_masquerade_and_tunnels() {
    let mut inputs = inputs();
    inputs.modes[0].transport = Transport::Direct.into();
    for pool in inputs.pools.values_mut() {
        pool.nat_outgoing = false;
    }
    let nft = desired(&inputs, &facts()).nft;
    assert!(
        nft.contains("chain prerouting") && !nft.contains("type nat"),
        "{nft}"
    );
}

#[test]
fn missing_nftables_message_names_pools_of_this_node() {
    let mut inputs = inputs();
    let elsewhere = pool("10.9.0.0/16");
    inputs.pools.insert("elsewhere".into(), elsewhere);
    let said = nft::unmasqueraded(&inputs).unwrap();
    assert!(
        said.message
            .contains("pods of IPPool default-v4 are not masqueraded"),
        "{said}"
    );
    // A pod may still be in a block that is being given back.
    inputs.withdrawn.push("10.9.0.0/26".parse().unwrap());
    let said = nft::unmasqueraded(&inputs).unwrap();
    assert!(
        said.message
            .contains("pods of IPPools default-v4, elsewhere are"),
        "{said}"
    );
    inputs.blocks.clear();
    inputs.withdrawn.clear();
    assert_eq!(nft::unmasqueraded(&inputs), None);
}

#[test]
fn unknown_transport_is_reported_and_programs_nothing() {
    let mut inputs = inputs();
    inputs.modes[0].transport = TransportSource::default();
    let desired = desired(&inputs, &facts());
    assert!(desired.kernel.links.is_empty());
    assert!(invalid(&desired)[0].contains("NetworkMode default"));
}

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
    // What is masqueraded on its way into the tunnel takes an address of the tunnel's link.
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
    assert_eq!(gateways.len(), 2, "only the pool's own");
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
    // Nothing is left but the pods.
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
    let six = Pool {
        pod_interface: PodInterface::Bridge,
        ..pool("fd00:244::/112")
    };
    inputs.pools.insert("six".into(), six);
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

/// nft itself reads what we render.
#[test]
fn nft_accepts_rendered_table() {
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
