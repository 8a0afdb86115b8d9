//! If pools and nodes differ by their family only, the desired states differ by the family only.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use netweft_crds::{EncapsulateWhen, VxlanParameters};
use netweft_netstate::model::{LinkName, Mac};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::desired::tests::*;

/// The IPv6 address that corresponds to an IPv4 address; an IPv6 address corresponds to itself.
fn twin(ip: IpAddr) -> IpAddr {
    let IpAddr::V4(four) = ip else { return ip };
    let [a, _, c, d] = four.octets();
    let range = match a {
        10 => [0xfd00, 0x10],
        192 => [0x2001, 0xdb8],
        _ => [0x2001, 0xdb9],
    };
    Ipv6Addr::new(
        range[0],
        range[1],
        0,
        0,
        0,
        0,
        0,
        u16::from_be_bytes([c, d]),
    )
    .into()
}

fn twin_net(net: IpNet) -> IpNet {
    let longer = if net.addr().is_ipv4() { 96 } else { 0 };
    IpNet::new_assert(twin(net.addr()), net.prefix_len() + longer)
}

fn both(net: &str) -> [IpNet; 2] {
    let four = net.parse().unwrap();
    [four, twin_net(four)]
}

fn block(index: u8) -> [IpNet; 2] {
    both(&format!("10.244.{}.{}/26", index / 4, index % 4 * 64))
}

/// Nodes with even numbers are on the link of this node.
fn node_addresses(number: u8) -> NodeAddresses {
    let subnet = if number.is_multiple_of(2) {
        "192.0.2"
    } else {
        "198.51.100"
    };
    let ipv4 = format!("{subnet}.{number}").parse().unwrap();
    let IpAddr::V6(ipv6) = twin(IpAddr::V4(ipv4)) else {
        unreachable!("a twin is of IPv6")
    };
    NodeAddresses {
        ipv4: Some(ipv4),
        ipv6: Some(ipv6),
    }
}

fn node_mode() -> impl Strategy<Value = NodeMode> {
    let transport = select(vec![
        Transport::Vxlan(VxlanParameters::default()),
        Transport::Direct,
    ]);
    let when = select(vec![EncapsulateWhen::Always, EncapsulateWhen::CrossSubnet]);
    let outer = select(IpFamily::ALL.to_vec());
    let mtu = select(vec![0, 1300]);
    let fields = (transport, when, outer, mtu);
    fields.prop_map(
        |(transport, encapsulate_when, outer_family, mtu)| NodeMode {
            name: "mode".into(),
            pools: vec![],
            standby_pools: vec![],
            transport: transport.into(),
            outer_family,
            encapsulate_when,
            mtu,
            probe: Default::default(),
        },
    )
}

prop_compose! {
    fn twins()(
        mode in node_mode(),
        standby in option::of(node_mode()),
        bridge in any::<bool>(),
        (nat_outgoing, disabled) in any::<(bool, bool)>(),
        reserved in vec(0..128_u8, 0..3),
        own in btree_set(0..4_u8, 0..3),
        remote in btree_map(4..16_u8, (3..8_u8, option::of(select(vec![1350, 1380]))), 0..6),
    ) -> Inputs {
        let reserved = reserved.iter().map(|last| both(&format!("10.244.0.{last}/32")));
        let reserved: Vec<[IpNet; 2]> = reserved.collect();
        let names = ["four", "six"];
        let both_pools = || names.map(str::to_owned).to_vec();
        let pools = [0, 1].map(|family| {
            let pool = Pool {
                nat_outgoing,
                disabled,
                nat_exclude: vec![both("203.0.113.0/24")[family]],
                reserved: reserved.iter().map(|twins| twins[family]).collect(),
                pod_interface: if bridge { PodInterface::Bridge } else { PodInterface::Routed },
                block_prefix: [26, 122][family],
                ..pool(&both("10.244.0.0/16")[family].to_string())
            };
            (names[family].to_owned(), pool)
        });
        let own = own.into_iter().flat_map(|index| block(index).into_iter().zip(names));
        let remote = remote.into_iter().flat_map(|(index, (node, link_mtu))| {
            block(index).into_iter().zip(names).map(move |(cidr, pool)| RemoteBlock {
                cidr,
                pool: pool.into(),
                node: format!("worker-{node}"),
                addresses: node_addresses(node),
                link_mtu,
            })
        });
        let remote: Vec<RemoteBlock> = remote.collect();
        let mut modes = vec![NodeMode { pools: both_pools(), ..mode }];
        modes.extend(standby.map(|mode| NodeMode { name: "next".into(), standby_pools: both_pools(), ..mode }));
        Inputs {
            addresses: node_addresses(2),
            modes,
            blocks: own.map(|(cidr, pool)| OwnBlock { cidr, pool: pool.into() }).collect(),
            nodes: remote.iter().flat_map(|block| block.addresses.iter()).collect(),
            remote,
            pools: pools.into(),
            ..inputs()
        }
    }
}

fn facts_of(inputs: &Inputs) -> HostFacts {
    let egress = Egress {
        on_link: both("192.0.2.0/24").into(),
        ..facts().egress.pop_first().unwrap().1
    };
    let addresses = IpFamily::ALL.map(|family| inputs.addresses.of(family).unwrap());
    HostFacts {
        default_gateways: Default::default(),
        egress: addresses.map(|address| (address, egress.clone())).into(),
        ..facts()
    }
}

/// The objects of each family, converted to IPv6.
type Parts<T> = [BTreeSet<T>; 2];

fn parts<T, U: Ord>(
    all: impl IntoIterator<Item = T>,
    is_four: impl Fn(&T) -> bool,
    as_six: impl Fn(T) -> U,
) -> Parts<U> {
    let (four, six): (Vec<T>, Vec<T>) = all.into_iter().partition(is_four);
    [four, six].map(|part| part.into_iter().map(&as_six).collect())
}

/// The routes. A next hop behind a tunnel represents the other node, and differs by family.
fn routes(kernel: &NetworkState) -> Parts<String> {
    parts(
        &kernel.routes,
        |(key, _)| key.dst.addr().is_ipv4(),
        |(key, route)| {
            let tunnelled = route
                .dev
                .as_ref()
                .is_some_and(|dev| dev.as_str().starts_with("nw-"));
            let key = RouteKey {
                dst: twin_net(key.dst),
                ..key.clone()
            };
            let route = Route {
                via: route.via.filter(|_| !tunnelled).map(twin),
                source: route.source.map(twin),
                ..route.clone()
            };
            format!("{key:?} {route:?}")
        },
    )
}

fn addresses_on_links(kernel: &NetworkState) -> Parts<(LinkName, IpNet)> {
    let own = kernel
        .addresses
        .keys()
        .filter(|key| key.net.addr() != IpAddr::V6(netweft_cni::pod::BRIDGE_LINK_LOCAL));
    parts(
        own,
        |key| key.net.addr().is_ipv4(),
        |key| (key.link.clone(), twin_net(key.net)),
    )
}

fn neighbours(kernel: &NetworkState) -> Parts<(LinkName, Option<Mac>)> {
    let all = kernel.neighbours.iter();
    parts(
        all,
        |(key, _)| key.ip.is_ipv4(),
        |(key, it)| (key.link.clone(), it.mac),
    )
}

fn plugin_pools(desired: &Desired) -> Parts<String> {
    parts(
        &desired.plugin.pools,
        |pool| pool.name == "four",
        |pool| {
            let twins = |nets: &[IpNet]| nets.iter().copied().map(twin_net).collect();
            let mut pool = PoolConfig {
                name: String::new(),
                cidr: pool.cidr.map(twin_net),
                blocks: twins(&pool.blocks),
                reserved: twins(&pool.reserved),
                ..pool.clone()
            };
            if let Some(bridge) = &mut pool.bridge {
                bridge
                    .gateways
                    .retain(|block, _| pool.blocks.contains(&twin_net(*block)));
                let gateways = std::mem::take(&mut bridge.gateways).into_iter();
                bridge.gateways = gateways
                    .map(|(block, ip)| (twin_net(block), twin(ip)))
                    .collect();
            }
            format!("{pool:?}")
        },
    )
}

fn nft_lines(nft: &str) -> Parts<String> {
    let word = |word: &str| {
        let (bare, comma) = word
            .strip_suffix([',', ';'])
            .map_or((word, ""), |bare| (bare, &word[bare.len()..]));
        let net = bare.parse().map(|net: IpNet| twin_net(net).to_string());
        let ip = bare.parse().map(|ip: IpAddr| twin(ip).to_string());
        let bare = match bare {
            "ip" => "ip6".to_owned(),
            "ipv4_addr" => "ipv6_addr".to_owned(),
            _ => net.or(ip).unwrap_or_else(|_| bare.replace("_v4", "_v6")),
        };
        bare + comma
    };
    let as_six = |line: &str| {
        line.split_whitespace()
            .map(word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let plain = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    // What only one family has: neighbor discovery, a loopback network, ICMP redirects.
    let alone = ["icmpv6", "icmp type", "127.0.0.0"];
    let lines = nft.lines();
    let lines = lines.filter(|line| !alone.iter().any(|word| line.contains(word)));
    let of_a_family = lines.filter(|line| {
        as_six(line) != plain(line) || ["6 ", "v6", "::"].iter().any(|mark| line.contains(mark))
    });
    parts(of_a_family, |line| as_six(line) != plain(line), as_six)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn desired_state_is_equal_for_both_families(inputs in twins()) {
        let desired = desired(&inputs, &facts_of(&inputs));
        let [four, six] = routes(&desired.kernel);
        prop_assert_eq!(four, six);
        let [four, six] = addresses_on_links(&desired.kernel);
        prop_assert_eq!(four, six);
        let [four, six] = neighbours(&desired.kernel);
        prop_assert_eq!(four, six);
        let [four, six] = plugin_pools(&desired);
        prop_assert_eq!(four, six);
        let [four, six] = nft_lines(&desired.nft);
        prop_assert_eq!(four, six);
    }
}
