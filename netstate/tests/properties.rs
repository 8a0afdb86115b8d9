//! Properties of the diff of any two states: idempotence, convergence, unchanged foreign objects, order, crash safety.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_netstate::diff::{Conflict, diff};
use netweft_netstate::kernel::FakeKernel;
use netweft_netstate::model::{
    Address, AddressKey, FdbKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey,
    NetworkState, Port, Route, RouteKey, RouteKind, TABLE_MAIN, Vxlan,
};
use netweft_netstate::op::Op;
use netweft_netstate::owner::{METRIC, Owner, PROTOCOL_AGENT};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

const OWN_LINKS: [&str; 3] = ["nw-a", "nw-b", "nw-c"];
const ADDRESSES: [&str; 4] = [
    "10.244.0.1/32",
    "10.244.0.2/32",
    "fd00::1/128",
    "fd00::2/128",
];
const DESTINATIONS: [&str; 6] = [
    "10.244.1.0/26",
    "10.244.2.0/26",
    "10.244.3.0/26",
    "fd00::1:0/122",
    "fd00::2:0/122",
    "fd00::3:0/122",
];

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn mac() -> impl Strategy<Value = Mac> {
    (0..3_u8).prop_map(|n| Mac([2, 0, 0, 0, 0, n]))
}

fn link() -> impl Strategy<Value = Link> {
    let kind = prop_oneof![
        3 => (1..3_u32, select(vec![4789_u16, 8472]))
            .prop_map(|(vni, port)| LinkKind::Vxlan(Vxlan { vni, port, local: None, learning: false })),
        1 => Just(LinkKind::Bridge),
    ];
    (kind, mac(), select(vec![1350_u32, 1400])).prop_map(|(kind, mac, mtu)| Link {
        kind,
        mac: Some(mac),
        mtu,
        up: true,
    })
}

/// The random part of a route. The indices select objects of the state that gets the route.
#[derive(Clone, Debug)]
struct RouteSpec {
    dev: usize,
    blackhole: bool,
    source: Option<usize>,
    mtu: Option<u32>,
}

fn route_spec() -> impl Strategy<Value = RouteSpec> {
    let mtu = option::of(select(vec![1300_u32, 1350]));
    (
        0..8_usize,
        prop::bool::weighted(0.2),
        option::of(0..8_usize),
        mtu,
    )
        .prop_map(|(dev, blackhole, source, mtu)| RouteSpec {
            dev,
            blackhole,
            source,
            mtu,
        })
}

prop_compose! {
    /// A desired state of the agent: only objects of the agent, on links that exist.
    fn desired()(
        links in btree_map(select(OWN_LINKS.to_vec()), link(), 0..4),
        addresses in btree_map(select(ADDRESSES.to_vec()), (0..4_usize, any::<bool>()), 0..4),
        routes in btree_map(select(DESTINATIONS.to_vec()), route_spec(), 0..6),
        neighbours in vec((0..4_usize, 0..4_u8, mac()), 0..4),
        fdb in vec((0..4_usize, mac(), 0..4_u8), 0..4),
        ports in vec((select(OWN_LINKS.to_vec()), select(OWN_LINKS.to_vec()), any::<bool>()), 0..3),
    ) -> NetworkState {
        let mut state = NetworkState::default();
        state.links.extend(links.into_iter().map(|(text, link)| (name(text), link)));
        let is_bridge = |text: &str| state.links.get(&name(text)).map(|link| link.kind == LinkKind::Bridge);
        let port = |(link, master, hairpin): &(&str, &str, bool)| {
            let possible = is_bridge(link) == Some(false) && is_bridge(master) == Some(true);
            possible.then(|| (name(link), Port { master: name(master), hairpin: *hairpin }))
        };
        let ports: Vec<_> = ports.iter().filter_map(port).collect();
        state.ports.extend(ports);
        let links: Vec<LinkName> = state.links.keys().cloned().collect();
        let pick = |n: usize| links.get(n % links.len().max(1)).cloned();
        for (text, (dev, link_scope)) in addresses {
            let net: IpNet = text.parse().unwrap();
            let address = Address { link_scope: link_scope && net.addr().is_ipv4() };
            state.addresses.extend(pick(dev).map(|link| (AddressKey { link, net }, address)));
        }
        for (dev, last, mac) in neighbours {
            let key = |link| NeighbourKey { link, ip: IpAddr::from([10, 244, 9, last]) };
            state.neighbours.extend(pick(dev).map(|link| (key(link), Neighbour { mac: Some(mac), permanent: true })));
        }
        for (dev, mac, last) in fdb {
            state.fdb.extend(pick(dev).map(|link| (FdbKey { link, mac }, IpAddr::from([10, 168, 0, last]))));
        }
        for (dst, spec) in routes {
            state.routes.extend([route(&state, dst, &spec)]);
        }
        state
    }
}

fn route(state: &NetworkState, dst: &str, spec: &RouteSpec) -> (RouteKey, Route) {
    let dst: IpNet = dst.parse().unwrap();
    let key = RouteKey {
        table: TABLE_MAIN,
        dst,
        metric: METRIC,
    };
    // The links of the state, and eth0.
    let devs: Vec<LinkName> = state.links.keys().cloned().chain([name("eth0")]).collect();
    let sources: Vec<IpAddr> = state
        .addresses
        .keys()
        .map(|key| key.net.addr())
        .filter(|ip| ip.is_ipv4() == dst.addr().is_ipv4())
        .collect();
    let source = spec
        .source
        .filter(|_| !sources.is_empty())
        .map(|n| sources[n % sources.len()]);
    let route = Route {
        kind: if spec.blackhole {
            RouteKind::Blackhole
        } else {
            RouteKind::Unicast
        },
        protocol: PROTOCOL_AGENT,
        via: (!spec.blackhole).then(|| dst.addr()),
        dev: (!spec.blackhole).then(|| devs[spec.dev % devs.len()].clone()),
        onlink: !spec.blackhole,
        source: source.filter(|_| !spec.blackhole),
        mtu: spec.mtu.filter(|_| !spec.blackhole),
    };
    (key, route)
}

prop_compose! {
    /// An actual state: an earlier state of the agent, damages, and foreign objects.
    fn actual()(
        mut state in desired(),
        down in vec(select(OWN_LINKS.to_vec()), 0..2),
        foreign_routes in vec((select(DESTINATIONS.to_vec()), select(vec![METRIC, 78]), select(vec![4_u8, 12])), 0..3),
        resolved in vec((select(OWN_LINKS.to_vec()), 0..4_u8, mac()), 0..3),
        attached in option::of(select(OWN_LINKS.to_vec())),
    ) -> NetworkState {
        for link in down.iter().map(|text| name(text)) {
            if let Some(found) = state.links.get_mut(&link) {
                found.up = false;
                state.routes.retain(|_, route| route.dev.as_ref() != Some(&link));
                state.neighbours.retain(|key, _| key.link != link);
            }
        }
        for (dst, metric, protocol) in foreign_routes {
            let (key, route) = route(&NetworkState::default(), dst, &RouteSpec { dev: 0, blackhole: false, source: None, mtu: None });
            state.routes.insert(RouteKey { metric, ..key }, Route { protocol, ..route });
        }
        for (link, last, mac) in resolved {
            if state.links.contains_key(&name(link)) {
                let key = NeighbourKey { link: name(link), ip: IpAddr::from([10, 244, 9, last]) };
                state.neighbours.entry(key).or_insert(Neighbour { mac: Some(mac), permanent: false });
            }
        }
        let hardware = Link { kind: LinkKind::Other(String::new()), mac: None, mtu: 1400, up: true };
        state.links.insert(name("eth0"), hardware);
        state.links.insert(name("nwa123"), Link { kind: LinkKind::Veth, mac: None, mtu: 1400, up: true });
        // A foreign bridge with a foreign port. An own link may be attached to it too.
        state.links.insert(name("br0"), Link { kind: LinkKind::Bridge, mac: None, mtu: 1400, up: true });
        let foreign = Port { master: name("br0"), hairpin: false };
        state.ports.insert(name("nwa123"), foreign.clone());
        if let Some(link) = attached.map(name).filter(|link| state.links.get(link).is_some_and(|link| link.kind != LinkKind::Bridge)) {
            state.ports.insert(link, foreign);
        }
        let net = "10.168.0.2/24".parse().unwrap();
        state.addresses.insert(AddressKey { link: name("eth0"), net }, Address::default());
        let key = NeighbourKey { link: name("eth0"), ip: [10, 168, 0, 1].into() };
        state.neighbours.insert(key, Neighbour { mac: None, permanent: true });
        state
    }
}

/// The part of a state that the agent owns.
fn owned(state: &NetworkState) -> NetworkState {
    part(state, true)
}

/// The part of a state that the agent owns, or the other part.
fn part(state: &NetworkState, own: bool) -> NetworkState {
    fn keep<K: Ord + Clone, V: Clone>(
        map: &BTreeMap<K, V>,
        test: impl Fn(&K, &V) -> bool,
    ) -> BTreeMap<K, V> {
        map.iter()
            .filter(|(key, value)| test(key, value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }
    let owner = Owner::agent();
    NetworkState {
        links: keep(&state.links, |name, _| owner.owns_link(name) == own),
        carriers: Default::default(),
        policy_routing: false,
        special_addresses: BTreeMap::new(),
        ports: keep(&state.ports, |link, _| owner.owns_port(link) == own),
        addresses: keep(&state.addresses, |key, _| owner.owns_address(key) == own),
        routes: keep(&state.routes, |_, route| owner.owns_route(route) == own),
        neighbours: keep(&state.neighbours, |key, found| {
            owner.owns_neighbour(key, found) == own
        }),
        fdb: keep(&state.fdb, |key, _| owner.owns_fdb(key) == own),
    }
}

/// A state with only the object of the operation.
fn object(op: &Op) -> NetworkState {
    let link = Link {
        kind: LinkKind::Bridge,
        mac: None,
        mtu: 0,
        up: true,
    };
    let mut state = NetworkState::default();
    match op.clone() {
        Op::LinkAdd { name, .. }
        | Op::LinkRecreate { name, .. }
        | Op::LinkChange { name, .. }
        | Op::LinkDelete { name } => {
            state.links.insert(name, link);
        }
        Op::PortReplace { link, .. } | Op::PortDelete { link } => {
            let master = name("nw-b");
            state.ports.insert(
                link,
                Port {
                    master,
                    hairpin: false,
                },
            );
        }
        Op::AddressAdd { key, .. } | Op::AddressReplace { key, .. } | Op::AddressDelete { key } => {
            state.addresses.insert(key, Address::default());
        }
        Op::RouteAdd { key, route }
        | Op::RouteReplace { key, route }
        | Op::RouteDelete { key, route } => {
            state.routes.insert(key, route);
        }
        Op::NeighbourReplace { key, .. } | Op::NeighbourDelete { key } => {
            state.neighbours.insert(
                key,
                Neighbour {
                    mac: None,
                    permanent: true,
                },
            );
        }
        Op::FdbReplace { key, remote } | Op::FdbDelete { key, remote } => {
            state.fdb.insert(key, remote);
        }
    }
    state
}

/// Executes operations. The fake kernel refuses what the real kernel refuses, so a wrong order fails here.
fn run(kernel: &FakeKernel, ops: &[Op]) -> Result<(), TestCaseError> {
    for op in ops {
        kernel
            .apply_now(op)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
    }
    Ok(())
}

/// The state that can be reached: the desired one without the routes whose keys foreign routes have.
fn reachable(desired: &NetworkState, conflicts: &[Conflict]) -> NetworkState {
    let mut state = desired.clone();
    for conflict in conflicts {
        match conflict {
            Conflict::RouteTaken { key, .. } => drop(state.routes.remove(key)),
            Conflict::Unowned { what } => panic!("{what}"),
        }
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn diff_of_equal_states_is_empty(state in desired()) {
        let found = diff(&state, &state, &Owner::agent());
        prop_assert_eq!(found.ops, vec![]);
        prop_assert_eq!(found.conflicts, vec![]);
    }

    #[test]
    fn diff_reaches_desired_state_and_keeps_foreign_objects(a in actual(), d in desired()) {
        let found = diff(&a, &d, &Owner::agent());
        let kernel = FakeKernel::new(a.clone());
        run(&kernel, &found.ops)?;
        prop_assert_eq!(owned(&kernel.state()), reachable(&d, &found.conflicts));
        let again = diff(&kernel.state(), &d, &Owner::agent());
        prop_assert_eq!(again.ops, vec![], "a second diff is empty");
        let (mut before, mut after) = (part(&a, false), part(&kernel.state(), false));
        // Resolved neighbours on own links are deleted with the links.
        before.neighbours.retain(|_, neighbour| neighbour.permanent);
        after.neighbours.retain(|_, neighbour| neighbour.permanent);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn diff_never_touches_foreign_objects(a in actual(), d in desired()) {
        for op in diff(&a, &d, &Owner::agent()).ops {
            prop_assert_eq!(part(&object(&op), false), NetworkState::default(), "{}", op);
            if let Op::RouteReplace { key, .. } | Op::RouteDelete { key, .. } = &op {
                prop_assert!(Owner::agent().owns_route(&a.routes[key]), "{op}");
            }
        }
    }

    #[test]
    fn diff_after_interrupted_run_converges(a in actual(), d in desired(), cut in any::<proptest::sample::Index>()) {
        let found = diff(&a, &d, &Owner::agent());
        let kernel = FakeKernel::new(a);
        run(&kernel, &found.ops[..cut.index(found.ops.len() + 1)])?;
        let rest = diff(&kernel.state(), &d, &Owner::agent());
        run(&kernel, &rest.ops)?;
        prop_assert_eq!(owned(&kernel.state()), reachable(&d, &rest.conflicts));
    }

    #[test]
    fn kept_or_changed_route_is_never_missing(a in actual(), d in desired()) {
        let found = diff(&a, &d, &Owner::agent());
        // Routes that the kernel deletes in a cascade are restored later.
        let cascades = |op: &Op| matches!(op, Op::LinkRecreate { .. } | Op::AddressReplace { .. });
        prop_assume!(!found.ops.iter().any(cascades) && early_deletions(&found.ops).is_empty());
        let kernel = FakeKernel::new(a.clone());
        for op in &found.ops {
            run(&kernel, std::slice::from_ref(op))?;
            for key in a.routes.keys().filter(|key| d.routes.contains_key(*key)) {
                prop_assert!(kernel.state().routes.contains_key(key), "{key} after {op}");
            }
        }
    }

    #[test]
    fn only_last_ipv4_address_is_deleted_before_additions(a in actual(), d in desired()) {
        for op in early_deletions(&diff(&a, &d, &Owner::agent()).ops) {
            let Op::AddressDelete { key } = op else { return Err(TestCaseError::fail(op.to_string())) };
            let last = |other: &AddressKey| other.link == key.link && other.net.addr().is_ipv4();
            prop_assert!(!d.addresses.keys().any(last), "{key:?}");
        }
    }
}

/// The deletions before the last addition.
fn early_deletions(ops: &[Op]) -> Vec<&Op> {
    let last_addition = ops.iter().rposition(|op| !op.is_delete()).unwrap_or(0);
    ops[..last_addition]
        .iter()
        .filter(|op| op.is_delete())
        .collect()
}
