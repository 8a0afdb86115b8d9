//! The real kernel, in isolated network namespaces: state, operations, events, and the comparison with the fake kernel.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")]

mod netns_fixture;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use netns_fixture::{batch, churn_lines, in_netns, ip};

use netweft_netstate::diff::{Diff, diff};
use netweft_netstate::events::Events;
use netweft_netstate::kernel::{FakeKernel, Kernel};
use netweft_netstate::model::{
    Address, AddressKey, FdbKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey,
    NetworkState, Port, Route, RouteKey, RouteKind, SpecialAddress, TABLE_MAIN, Vxlan,
};
use netweft_netstate::netns;
use netweft_netstate::object_ref::ObjectRef;
use netweft_netstate::op::Op;
use netweft_netstate::owner::{METRIC, Owner, PROTOCOL_AGENT};
use netweft_netstate::rtnl::{Rtnl, VethPair};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn key(dst: &str) -> RouteKey {
    RouteKey {
        table: TABLE_MAIN,
        dst: dst.parse().unwrap(),
        metric: METRIC,
    }
}

fn blackhole() -> Route {
    Route {
        kind: RouteKind::Blackhole,
        protocol: PROTOCOL_AGENT,
        via: None,
        dev: None,
        onlink: false,
        source: None,
        mtu: None,
    }
}

fn route(via: &str, dev: &str) -> Route {
    let via = Some(via.parse().unwrap());
    Route {
        kind: RouteKind::Unicast,
        via,
        dev: Some(name(dev)),
        onlink: true,
        ..blackhole()
    }
}

/// An uplink `up0` with an address, whose other end is in the returned namespace.
async fn uplink(rtnl: &Rtnl) -> OwnedFd {
    let other = netns::create().unwrap();
    let pair = VethPair {
        host_name: name("up0"),
        host_mac: mac(0x10),
        peer_name: name("eth0"),
        peer_mac: mac(0x11),
        mtu: 1400,
    };
    rtnl.add_veth(&pair, other.as_fd()).await.unwrap();
    netns::run_in(other.as_fd(), "set up the peer", || ip("link set eth0 up")).unwrap();
    ip("link set up0 up");
    ip("address add 10.168.0.2/24 dev up0");
    ip("-6 address add fd00:168::2/64 dev up0 nodad");
    other
}

/// The state of a node with one peer: tunnel, tunnel addresses and routes of both families, a direct route, two blackholes.
fn overlay(vni: u32) -> NetworkState {
    let link = || name("nw-vx");
    let local = Some([10, 168, 0, 2].into());
    let kind = LinkKind::Vxlan(Vxlan {
        vni,
        port: 4789,
        local,
        learning: false,
    });
    let tunnel = Link {
        kind,
        mac: Some(mac(1)),
        mtu: 1350,
        up: true,
    };
    let bridge = Link {
        kind: LinkKind::Bridge,
        mac: Some(mac(9)),
        ..tunnel.clone()
    };
    let address = |link, net: &str| AddressKey {
        link,
        net: net.parse().unwrap(),
    };
    let neighbour = |ip: &str| NeighbourKey {
        link: link(),
        ip: ip.parse().unwrap(),
    };
    let permanent = Neighbour {
        mac: Some(mac(2)),
        permanent: true,
    };
    NetworkState {
        links: [(link(), tunnel), (name("nw-br"), bridge)].into(),
        addresses: [
            (address(link(), "10.244.0.1/32"), Address::default()),
            (address(link(), "fd00:244::1/128"), Address::default()),
            (
                address(name("nw-br"), "10.244.0.64/26"),
                Address { link_scope: true },
            ),
        ]
        .into(),
        neighbours: [
            (neighbour("10.244.1.1"), permanent.clone()),
            (neighbour("fd00:244::1:1"), permanent),
        ]
        .into(),
        fdb: [(
            FdbKey {
                link: link(),
                mac: mac(2),
            },
            [10, 168, 0, 3].into(),
        )]
        .into(),
        routes: routes(),
        ..NetworkState::default()
    }
}

fn routes() -> BTreeMap<RouteKey, Route> {
    let through = |via, source: &str| {
        let source = Some(source.parse().unwrap());
        Route {
            source,
            mtu: Some(1300),
            ..route(via, "nw-vx")
        }
    };
    let direct = Route {
        onlink: false,
        via: None,
        ..route("0.0.0.0", "up0")
    };
    [
        (key("10.244.1.0/26"), through("10.244.1.1", "10.244.0.1")),
        (
            key("fd00:244::1:0/122"),
            through("fd00:244::1:1", "fd00:244::1"),
        ),
        (key("10.244.2.0/26"), route("10.168.0.4", "up0")),
        (key("10.244.3.0/26"), direct),
        (key("10.244.0.0/26"), blackhole()),
        (key("fd00:244::/122"), blackhole()),
    ]
    .into()
}

fn agent(actual: &NetworkState, desired: &NetworkState) -> Diff {
    diff(actual, desired, &Owner::agent())
}

/// The agent's part of a state.
fn owned(mut state: NetworkState) -> NetworkState {
    let owner = Owner::agent();
    state.links.retain(|name, _| owner.owns_link(name));
    state.ports.retain(|link, _| owner.owns_port(link));
    state.addresses.retain(|key, _| owner.owns_address(key));
    state.routes.retain(|_, route| owner.owns_route(route));
    state
        .neighbours
        .retain(|key, neighbour| owner.owns_neighbour(key, neighbour));
    state.fdb.retain(|key, _| owner.owns_fdb(key));
    state.carriers.clear();
    state.special_addresses.clear();
    state
}

async fn converge(rtnl: &Rtnl, desired: &NetworkState) -> Vec<String> {
    let found = agent(&rtnl.read().await.unwrap(), desired);
    assert_eq!(found.conflicts, []);
    for op in &found.ops {
        rtnl.apply(op).await.unwrap();
    }
    let now = rtnl.read().await.unwrap();
    assert_eq!(&owned(now.clone()), desired);
    assert_eq!(agent(&now, desired).ops, [], "a second diff is empty");
    found.ops.iter().map(ToString::to_string).collect()
}

#[test]
fn netns_applied_state_reads_back_and_damage_is_repaired() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        let before = foreign(rtnl.read().await.unwrap());
        assert_eq!(converge(&rtnl, &overlay(4096)).await.len(), 14);

        let damages = [
            ("route delete 10.244.1.0/26", 1),
            ("-6 route delete fd00:244::1:0/122", 1),
            ("route delete blackhole 10.244.0.0/26", 1),
            ("neighbour delete 10.244.1.1 dev nw-vx", 1),
            // With the last IPv4 address all IPv4 objects are deleted; the IPv6 route only loses its source.
            ("address flush dev nw-vx", 5),
            // The MTU of the IPv6 route is locked and stays.
            ("link set nw-vx mtu 1280", 1),
            ("link set nw-vx address 02:00:00:00:00:99", 3),
            // All objects on the link, except the forwarding entry and the IPv4 address.
            ("link set nw-vx down", 6),
            ("link delete nw-vx", 8),
            ("link delete nw-br", 2),
        ];
        for (command, repairs) in damages {
            ip(command);
            let done = converge(&rtnl, &overlay(4096)).await;
            assert_eq!(done.len(), repairs, "after ip {command}: {done:#?}");
        }
        converge(&rtnl, &NetworkState::default()).await;
        assert_eq!(foreign(rtnl.read().await.unwrap()), before);
    });
}

/// The part of a state that the agent does not own.
fn foreign(mut state: NetworkState) -> NetworkState {
    let owner = Owner::agent();
    state.links.retain(|name, _| !owner.owns_link(name));
    state.ports.retain(|link, _| !owner.owns_port(link));
    state.carriers.retain(|name| !owner.owns_link(name));
    state.addresses.retain(|key, _| !owner.owns_address(key));
    state.routes.retain(|_, route| !owner.owns_route(route));
    // The kernel resolves neighbours at any time.
    state
        .neighbours
        .retain(|key, found| found.permanent && !owner.owns_neighbour(key, found));
    // Duplicate address detection ends at any time.
    state.special_addresses.clear();
    state
}

#[test]
fn netns_iproute2_shows_applied_attributes() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        converge(&rtnl, &overlay(4096)).await;
        let link = ip("-details link show dev nw-vx");
        for attribute in [
            "vxlan id 4096 local 10.168.0.2",
            "dstport 4789 nolearning",
            "addrgenmode none",
            "mtu 1350",
        ] {
            assert!(link.contains(attribute), "{attribute} in {link}");
        }
        let bridge = ip("-details link show dev nw-br");
        assert!(bridge.contains("no_linklocal_learn 1"), "{bridge}");
        let routes = ip("-details route show 10.244.1.0/26");
        let expected = "10.244.1.0/26 via 10.244.1.1 dev nw-vx proto 78 scope global src 10.244.0.1 metric 20 onlink";
        assert!(
            routes.contains(expected) && routes.contains("mtu 1300"),
            "{routes}"
        );
        assert!(ip("-details route show 10.244.3.0/26").contains("proto 78 scope link metric 20"));
        assert!(
            ip("-6 -details route show fd00:244::/122")
                .contains("blackhole fd00:244::/122 dev lo proto 78")
        );
        assert!(ip("address show dev nw-vx").contains("inet6 fd00:244::1/128 scope global nodad"));
        assert!(
            ip("address show dev nw-br")
                .contains("inet 10.244.0.64/26 scope link noprefixroute nw-br")
        );
    });
}

#[test]
fn netns_vxlan_vni_change_recreates_link_and_its_objects() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        converge(&rtnl, &overlay(4096)).await;
        let done = converge(&rtnl, &overlay(4097)).await;
        assert_eq!(done[0], "recreate link nw-vx: vni is 4096, should be 4097");
        assert!(ip("-details link show dev nw-vx").contains("vxlan id 4097"));
    });
}

#[test]
fn netns_vxlan_with_default_remote_is_recreated() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        ip(
            "link add nw-vx type vxlan id 4096 dstport 4789 local 10.168.0.2 nolearning remote 10.168.0.9",
        );
        let done = converge(&rtnl, &overlay(4096)).await;
        assert!(
            done.iter()
                .any(|op| op.starts_with("recreate link nw-vx: kind is vxlan with a default")),
            "{done:#?}"
        );
    });
}

#[test]
fn netns_foreign_route_at_own_key_survives() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        ip("route add 10.244.2.0/26 via 10.168.0.9 dev up0 metric 20 proto 4");
        ip("-6 route add blackhole fd00:244::/122 metric 20 proto 12");
        let found = agent(&rtnl.read().await.unwrap(), &overlay(4096));
        assert_eq!(found.conflicts.len(), 2, "{:?}", found.conflicts);
        for op in &found.ops {
            rtnl.apply(op).await.unwrap();
        }
        // The foreign route was added after the state was read.
        let late = Op::RouteAdd {
            key: key("10.244.2.0/26"),
            route: route("10.168.0.4", "up0"),
        };
        let error = rtnl.apply(&late).await.unwrap_err();
        let expected =
            "add route 10.244.2.0/26 via 10.168.0.4 dev up0 onlink: EEXIST (File exists)";
        assert_eq!(
            (error.to_string().as_str(), error.is_retryable()),
            (expected, true)
        );
        assert!(ip("route show 10.244.2.0/26").contains("via 10.168.0.9 dev up0 proto static"));
        assert!(ip("-6 route show fd00:244::/122").contains("proto bird"));
    });
}

#[test]
fn netns_route_selection_follows_routing_rules() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        ip("link add up1 type bridge");
        ip("link set up1 up");
        ip("address add 10.169.0.2/24 dev up1");
        ip("-6 address add fd00:169::2/64 dev up1 nodad");
        let selected = async |to: &str| {
            let route = rtnl.select_route(to.parse().unwrap()).await.unwrap();
            route.map(|route| (route.link.to_string(), route.source.unwrap().to_string()))
        };
        let by = |link: &str, source: &str| Some((link.to_owned(), source.to_owned()));
        for (to, source, after) in [
            ("10.168.0.9", "10.168.0.2", "10.169.0.2"),
            ("fd00:168::9", "fd00:168::2", "fd00:169::2"),
        ] {
            assert!(!rtnl.read().await.unwrap().policy_routing);
            assert_eq!(selected(to).await, by("up0", source));
            let family = if to.contains(':') { "-6" } else { "-4" };
            ip(&format!("{family} rule add to {to} lookup 100"));
            ip(&format!("{family} route add default dev up1 table 100"));
            assert!(rtnl.read().await.unwrap().policy_routing);
            assert_eq!(selected(to).await, by("up1", after));
            ip(&format!("{family} rule delete to {to} lookup 100"));
        }
        for (to, refusal) in [
            ("203.0.113.1", None),
            ("203.0.113.2", Some("blackhole")),
            ("203.0.113.3", Some("prohibit")),
            ("fd00:170::1", None),
        ] {
            if let Some(refusal) = refusal {
                ip(&format!("route add {refusal} {to}"));
            }
            assert_eq!(selected(to).await, None);
        }
    });
}

#[test]
fn netns_secondary_and_unstable_addresses_are_marked() {
    in_netns(|| async {
        ip("link add up0 type bridge");
        ip("link set up0 up");
        let of_up0 = |net: &str, special| {
            let key = AddressKey {
                link: "up0".parse().unwrap(),
                net: net.parse().unwrap(),
            };
            (key, special)
        };
        let lines = [
            ("192.0.2.1/24", ""),
            ("192.0.2.9/24", ""),
            ("2001:db8::1/64", "nodad"),
            ("2001:db8::2/64", "nodad preferred_lft 0"),
        ];
        for (net, more) in lines {
            ip(&format!("address add {net} dev up0 {more}"));
        }
        ip("link add far0 type veth peer name up1");
        // The link has no carrier, so the address stays tentative.
        ip("link set up1 addrgenmode none up");
        ip("address add 2001:db8:1::3/64 dev up1");
        let rtnl = Rtnl::new().unwrap();
        let mut state = rtnl.read().await.unwrap();
        let link_local = "fe80::/64".parse::<IpNet>().unwrap();
        let special = &mut state.special_addresses;
        special.retain(|key, _| key.net.trunc() != link_local);
        let tentative = AddressKey {
            link: "up1".parse().unwrap(),
            net: "2001:db8:1::3/64".parse().unwrap(),
        };
        let expected = BTreeMap::from([
            of_up0("192.0.2.9/24", SpecialAddress::Secondary),
            of_up0("2001:db8::2/64", SpecialAddress::Unstable),
            (tentative, SpecialAddress::Unstable),
        ]);
        assert_eq!(state.special_addresses, expected);
    });
}

#[test]
fn netns_delete_of_absent_object_succeeds() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let desired = overlay(4096);
        // First without the link, then with it.
        for _ in 0..2 {
            for op in agent(&desired, &NetworkState::default())
                .ops
                .into_iter()
                .chain(single_deletions(&desired))
            {
                rtnl.apply(&op).await.unwrap();
            }
            ip("link add nw-vx type bridge");
        }
    });
}

fn single_deletions(state: &NetworkState) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(state.routes.iter().map(|(key, route)| Op::RouteDelete {
        key: key.clone(),
        route: route.clone(),
    }));
    ops.extend(state.fdb.iter().map(|(key, remote)| Op::FdbDelete {
        key: key.clone(),
        remote: *remote,
    }));
    ops.extend(
        state
            .neighbours
            .keys()
            .map(|key| Op::NeighbourDelete { key: key.clone() }),
    );
    ops.extend(
        state
            .addresses
            .keys()
            .map(|key| Op::AddressDelete { key: key.clone() }),
    );
    ops
}

/// The fake kernel has the cascades of the real kernel.
#[test]
fn netns_fake_kernel_cascades_match_real_kernel() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        let fake = FakeKernel::new(rtnl.read().await.unwrap());
        let additions = agent(&rtnl.read().await.unwrap(), &overlay(4096)).ops;
        for op in additions.into_iter().chain(cascading_operations()) {
            rtnl.apply(&op).await.unwrap();
            fake.apply_now(&op).unwrap();
            assert_eq!(
                owned(rtnl.read().await.unwrap()),
                owned(fake.state()),
                "after {op}"
            );
        }
        // The kernel deletes the IPv6 addresses of a link that is set down. The fake kernel does not.
        let down = Op::LinkChange {
            name: name("nw-vx"),
            mtu: None,
            mac: None,
            up: Some(false),
        };
        rtnl.apply(&down).await.unwrap();
        fake.apply_now(&down).unwrap();
        let (mut real, mut simulated) = (owned(rtnl.read().await.unwrap()), owned(fake.state()));
        for state in [&mut real, &mut simulated] {
            state.addresses.retain(|key, _| key.net.addr().is_ipv4());
        }
        assert_eq!(real, simulated);
    });
}

/// Operations with cascades.
fn cascading_operations() -> Vec<Op> {
    let link = || name("nw-vx");
    let change = |mtu, mac| Op::LinkChange {
        name: link(),
        mtu,
        mac,
        up: None,
    };
    let address = |net: &str| AddressKey {
        link: link(),
        net: net.parse().unwrap(),
    };
    let ipv6_route = || key("fd00:244::1:0/122");
    vec![
        change(None, Some(mac(7))),
        // Below and above the MTU of the IPv6 route.
        change(Some(1290), None),
        change(Some(1320), None),
        change(Some(1340), None),
        Op::AddressReplace {
            key: address("10.244.0.1/32"),
            address: Address { link_scope: true },
        },
        Op::AddressDelete {
            key: address("fd00:244::1/128"),
        },
        Op::AddressDelete {
            key: address("10.244.0.1/32"),
        },
        Op::RouteReplace {
            key: key("10.244.2.0/26"),
            route: blackhole(),
        },
        Op::RouteDelete {
            key: ipv6_route(),
            route: routes().remove(&ipv6_route()).unwrap(),
        },
        Op::LinkRecreate {
            name: link(),
            link: overlay(4097).links.remove(&link()).unwrap(),
            reason: String::new(),
        },
    ]
}

/// The real and the fake kernel have the same ports, also if the port precedes its bridge in the list of links.
#[test]
fn netns_bridge_port_reads_back_and_is_lost_with_bridge() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        // The port has the lower index, so it is listed before its bridge.
        ip("link add nw-port type veth peer name peer0");
        ip("link add nw-br type bridge");
        ip("link set nw-br up");
        let fake = FakeKernel::new(rtnl.read().await.unwrap());
        let port = |hairpin| Op::PortReplace {
            link: name("nw-port"),
            port: Port {
                master: name("nw-br"),
                hairpin,
            },
        };
        let detach = || Op::PortDelete {
            link: name("nw-port"),
        };
        let delete_bridge = Op::LinkDelete {
            name: name("nw-br"),
        };
        for op in [
            port(true),
            port(false),
            detach(),
            detach(),
            port(true),
            delete_bridge,
        ] {
            rtnl.apply(&op).await.unwrap();
            fake.apply_now(&op).unwrap();
            let found = rtnl.read().await.unwrap().ports;
            assert_eq!(found, fake.state().ports, "after {op}");
            let shown = ip("-details link show dev nw-port");
            for port in found.values() {
                let hairpin = if port.hairpin {
                    "hairpin on"
                } else {
                    "hairpin off"
                };
                assert!(
                    shown.contains("master nw-br") && shown.contains(hairpin),
                    "{shown}"
                );
            }
            assert!(!found.is_empty() || !shown.contains("master"), "{shown}");
        }
        for (op, errno) in [(port(true), "ENODEV"), (detach(), "")] {
            let (real, simulated) = (rtnl.apply(&op).await, fake.apply_now(&op));
            let text = |result: Result<(), _>| {
                result.map_err(|error: netweft_netstate::error::Error| error.to_string())
            };
            let (real, simulated) = (text(real), text(simulated));
            assert_eq!(real, simulated, "{op}");
            assert!(real.err().unwrap_or_default().contains(errno));
        }
    });
}

#[test]
fn netns_address_with_short_prefix_adds_no_kernel_route() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        ip("link add nw-br type bridge");
        ip("link set nw-br up");
        for net in ["10.244.0.65/26", "fd00:244::41/122"] {
            let key = AddressKey {
                link: name("nw-br"),
                net: net.parse().unwrap(),
            };
            let address = Address::default();
            rtnl.apply(&Op::AddressAdd { key, address }).await.unwrap();
        }
        assert_eq!(ip("route show"), "");
        assert!(
            !ip("-6 route show").contains("fd00"),
            "{}",
            ip("-6 route show")
        );
        assert!(
            ip("address show dev nw-br").contains("inet 10.244.0.65/26 scope global noprefixroute")
        );
    });
}

#[test]
fn netns_veth_pair_is_created_across_namespaces() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let other = uplink(&rtnl).await;
        assert!(rtnl.link_exists(&name("up0")).await.unwrap());
        assert!(!rtnl.link_exists(&name("eth0")).await.unwrap());
        let peer = Rtnl::in_netns(other.as_fd()).unwrap();
        let found = peer
            .read()
            .await
            .unwrap()
            .links
            .remove(&name("eth0"))
            .unwrap();
        assert_eq!(
            found,
            Link {
                kind: LinkKind::Veth,
                mac: Some(mac(0x11)),
                mtu: 1400,
                up: true
            }
        );
        rtnl.delete_link(&name("up0")).await.unwrap();
        rtnl.delete_link(&name("up0")).await.unwrap();
        assert!(!peer.link_exists(&name("eth0")).await.unwrap());
    });
}

#[test]
fn netns_events_report_changes_but_not_resolution() {
    in_netns(|| async {
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        let mut events = Events::new("netweft").unwrap();
        let has_event = async |events: &mut Events| {
            let wait = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
            let has_event = wait.is_ok();
            while tokio::time::timeout(Duration::from_millis(20), events.next())
                .await
                .is_ok()
            {}
            has_event
        };
        has_event(&mut events).await;
        for command in [
            "link add nw-vx type vxlan id 1 dstport 4789 nolearning",
            "address add 10.0.0.1/32 dev up0",
            "-6 address add fd00::1/128 dev up0 nodad",
            "route add 10.9.0.0/24 dev up0",
            "-6 route add fd09::/64 dev up0",
            "neighbour add 10.168.0.7 lladdr 02:00:00:00:00:07 dev up0 nud permanent",
            "neighbour delete 10.168.0.7 dev up0",
            "link set up0 mtu 1399",
        ] {
            ip(command);
            assert!(has_event(&mut events).await, "ip {command}");
        }
        ip("neighbour add 10.168.0.8 lladdr 02:00:00:00:00:08 dev up0 nud reachable");
        ip("neighbour change 10.168.0.8 lladdr 02:00:00:00:00:08 dev up0 nud stale");
        assert!(!has_event(&mut events).await, "resolution");
        let entry = [
            "bridge",
            "fdb",
            "add",
            "02:00:00:00:00:07",
            "dev",
            "nw-vx",
            "dst",
            "10.168.0.7",
        ];
        assert!(
            Command::new(entry[0])
                .args(&entry[1..])
                .status()
                .unwrap()
                .success()
        );
        assert!(has_event(&mut events).await, "a forwarding entry");
    });
}

/// Runs a program to its end; returns its process ID.
fn run(line: &str) -> u32 {
    let mut words = line.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success(), "{line}");
    child.id()
}

#[test]
fn netns_events_record_writer_of_each_object() {
    in_netns(|| async {
        let mut events = Events::new("netweft").unwrap();
        let rtnl = Rtnl::new().unwrap();
        let _other = uplink(&rtnl).await;
        let route = ObjectRef::Route("10.9.0.0/24".parse().unwrap());
        let neighbour = ObjectRef::Neighbour("10.168.0.7".parse().unwrap());
        let mac = "lladdr 02:00:00:00:00:07";
        for (line, object) in [
            ("ip route add 10.9.0.0/24 dev up0", route.clone()),
            ("ip route del 10.9.0.0/24 dev up0", route),
            (
                "ip address add 10.0.0.1/32 dev up0",
                ObjectRef::Address("10.0.0.1/32".parse().unwrap()),
            ),
            (
                "ip address del 10.0.0.1/32 dev up0",
                ObjectRef::Address("10.0.0.1/32".parse().unwrap()),
            ),
            (
                &format!("ip neighbour add 10.168.0.7 {mac} dev up0 nud permanent"),
                neighbour,
            ),
            (
                "nft add table inet netweft",
                ObjectRef::Table("netweft".into()),
            ),
            (
                "nft delete table inet netweft",
                ObjectRef::Table("netweft".into()),
            ),
        ] {
            while tokio::time::timeout(Duration::from_millis(20), events.next())
                .await
                .is_ok()
            {}
            events.take_writers();
            let process = run(line);
            let waited = tokio::time::timeout(Duration::from_secs(5), async {
                while !events.writers().contains_key(&object) {
                    events.next().await.unwrap();
                }
            });
            waited
                .await
                .unwrap_or_else(|_| panic!("{line}: {:?}", events.writers()));
            let writer = events.take_writers().remove(&object).unwrap();
            assert_eq!(writer.process(), Some(process), "{line}");
        }
        run("nft add table inet other");
        let silence = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
        assert!(silence.is_err(), "other tables cause no event");
    });
}

#[test]
fn netns_event_buffer_overflow_is_one_event() {
    in_netns(|| async {
        let mut events = Events::new("netweft").unwrap();
        ip("link add nw-br type bridge");
        ip("link set nw-br up");
        // More messages than the socket's buffer holds.
        batch(&churn_lines("route", 200, 1000));
        let mut received = 0;
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(100), events.next()).await
        {
            event.unwrap();
            received += 1;
        }
        // The kernel sent two thousand messages; without the overflow each is an event.
        assert!(received > 0 && received < 2000, "{received}");
        ip("link set nw-br down");
        let next = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
        next.unwrap().unwrap();
    });
}
