//! The loop with a kernel made of memory and files of its own. nft is the real one, in a network namespace of the test.

mod acknowledged;
mod unowned;

use netweft_cni::node;
use netweft_netstate::op::Op;
use std::path::Path;

use netweft_cni::conf::CONFLIST_FILE;
use netweft_cni::node::NodeConfig;
use netweft_crds::condition::READY;
use netweft_crds::{NodeMode, NodeNetworkStatus, Transport};
use netweft_netstate::kernel::FakeKernel;
use netweft_netstate::model::{
    Address, AddressKey, Link, LinkKind, LinkName, NetworkState, Route, RouteKey, RouteKind,
    TABLE_MAIN,
};
use netweft_netstate::netns;
use nix::errno::Errno;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::bird::Observed;
use crate::firewall::Firewall;
use crate::probes::responder::Responder;
use crate::reconcile::RETRY;
use crate::reconcile::*;
use crate::status::problem::Problems;
use crate::status::publisher::StatusPublisher;
use crate::status::sink::StatusSink;

const OBJECTS: [&str; 4] = [
    "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16, natOutgoing: true}",
    "kind: NodeSubnet\nmetadata: {name: 10-244-0-0-26}\nspec: {cidr: 10.244.0.0/26, pool: p, node: one, nodeAddresses: {ipv4: 192.0.2.1}, state: Active}",
    "kind: NodeSubnet\nmetadata: {name: 10-244-0-64-26}\nspec: {cidr: 10.244.0.64/26, pool: p, node: two, nodeAddresses: {ipv4: 192.0.2.2}, state: Active}",
    "kind: NodeNetwork\nmetadata: {name: one, generation: 4}\nspec: {addresses: {ipv4: 192.0.2.1}, subnets: [10.244.0.0/26], modes: [{name: default, pools: [p], transport: {vxlan: {}}}]}",
];

struct Fixture {
    reconciler: Reconciler<FakeKernel>,
    publisher: StatusPublisher,
    hours: u32,
    objects: Objects,
    bird: watch::Sender<Observed>,
    dir: TempDir,
}

fn node_state() -> NetworkState {
    let mut state = NetworkState::default();
    let uplink: LinkName = "ens7".parse().unwrap();
    let link = Link {
        kind: LinkKind::Veth,
        mac: None,
        mtu: 1400,
        up: true,
    };
    state.links.insert(uplink.clone(), link);
    let key = AddressKey {
        link: uplink,
        net: "192.0.2.1/24".parse().unwrap(),
    };
    state.addresses.insert(key, Address::default());
    state
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let [pool, own, remote, network] =
        OBJECTS.map(|text| format!("apiVersion: netweft.io/v1alpha1\n{text}"));
    let objects = Objects {
        pools: vec![serde_saphyr::from_str(&pool).unwrap()],
        subnets: vec![
            serde_saphyr::from_str(&own).unwrap(),
            serde_saphyr::from_str(&remote).unwrap(),
        ],
        namespaces: Default::default(),
        network: Some(serde_saphyr::from_str(&network).unwrap()),
        unreadable: Problems::default(),
    };
    let path = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let paths = Paths {
        run_dir: path("run"),
        cni_conf_dir: path("cni"),
        sysctl_dir: path("sysctl"),
    };
    for parameter in [
        "ipv4/ip_forward",
        "ipv4/conf/ens7/forwarding",
        "ipv4/conf/nw-vx4096/forwarding",
        "ipv4/conf/nw-vx4096/rp_filter",
    ] {
        let parameter = paths.sysctl_dir.join(parameter);
        std::fs::create_dir_all(parameter.parent().unwrap()).unwrap();
        std::fs::write(parameter, "0\n").unwrap();
    }
    let health = Health::new();
    let reporter = StatusSink::file(&paths.run_dir);
    let (status, publisher) = StatusPublisher::new("one".into(), reporter, health.clone());
    let kernel = FakeKernel::new(node_state());
    let (link, bird) = crate::bird::Link::alone();
    let (probes, _) = ProbeHandle::alone();
    let (_, firewall) = Firewall::new(&paths);
    let told = (status, Metrics::new(), health);
    let (_, responding) = Responder::new(9471);
    let links = (link, probes, firewall, responding);
    let reconciler = Reconciler::new("one".into(), kernel, links, (paths, None), told);
    Fixture {
        reconciler,
        publisher,
        hours: 0,
        objects,
        bird,
        dir,
    }
}

impl Fixture {
    async fn reconcile(&mut self) -> Option<Duration> {
        let again = self.reconciler.reconcile(&self.objects).await;
        // Every time late enough for what may rest.
        self.hours += 1;
        let late = Duration::from_secs(3600) * self.hours;
        let now = tokio::time::Instant::now();
        self.publisher.step(now + late).await;
        again
    }

    fn conflist(&self) -> bool {
        self.dir.path().join("cni").join(CONFLIST_FILE).exists()
    }

    fn ready(&self) -> (String, String) {
        let status = status_of(self.dir.path());
        let ready = status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == READY)
            .unwrap();
        (ready.status, ready.message)
    }

    fn kernel(&self) -> &FakeKernel {
        &self.reconciler.kernel
    }
}

fn status_of(dir: &Path) -> NodeNetworkStatus {
    serde_saphyr::from_str(&std::fs::read_to_string(dir.join("run/status.yaml")).unwrap()).unwrap()
}

/// From now on `node.json` stays as it is, as on a full disk: the file that is to take its place cannot be made.
fn hinder_node_json(node: &Fixture) -> PathBuf {
    let aside = format!("run/.{}.{}", node::FILE, std::process::id());
    let aside = node.dir.path().join(aside);
    std::fs::create_dir(&aside).unwrap();
    aside
}

/// In a network namespace of its own, so that nft touches no table of the machine.
fn in_namespace(test: impl AsyncFnOnce() + Send) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    netns::run_in_new("the agent's loop", run).unwrap();
}

#[test]
fn netns_second_reconcile_changes_nothing() {
    in_namespace(async || {
        let mut node = fixture();
        assert_eq!(node.reconcile().await, None);
        assert!(!node.kernel().take_applied().is_empty());
        assert!(node.conflist());
        assert_eq!(
            node.ready(),
            ("True".into(), "in sync: 1 route, 1 link".into())
        );
        assert_eq!(status_of(node.dir.path()).observed_generation, Some(4));
        assert_eq!(node.reconcile().await, None);
        assert_eq!(node.kernel().take_applied(), []);
    });
}

#[test]
fn netns_externally_deleted_fdb_entries_are_restored() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        let wanted = node.kernel().state();
        node.kernel().change_externally(|state| state.fdb.clear());
        assert_eq!(node.reconcile().await, None);
        assert_eq!(node.kernel().state(), wanted);
    });
}

#[test]
fn netns_nft_table_stays_in_every_mode() {
    in_namespace(async || {
        let mut node = fixture();
        let tables = || {
            let listed = std::process::Command::new("nft")
                .args(["list", "tables"])
                .output();
            String::from_utf8(listed.unwrap().stdout).unwrap()
        };
        assert_eq!(node.reconcile().await, None);
        assert_eq!(tables(), "table inet netweft\n");
        node.objects.pools[0].spec.nat_outgoing = false;
        assert_eq!(node.reconcile().await, None);
        assert_eq!(tables(), "table inet netweft\n");
        assert_eq!(node.ready().0, "True");
        let network = node.objects.network.as_mut().unwrap();
        network.spec.modes[0].transport = Transport::Direct.into();
        assert_eq!(node.reconcile().await, None);
        assert_eq!(tables(), "table inet netweft\n");
    });
}

#[test]
fn netns_conflist_is_written_only_after_datapath_is_complete() {
    in_namespace(async || {
        let mut node = fixture();
        node.kernel()
            .fail_with(|op| matches!(op, Op::LinkAdd { .. }).then_some(Errno::EOPNOTSUPP));
        assert!(node.reconcile().await.is_some());
        assert!(!node.conflist());
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("nw-vx4096"), "{message}");
        assert_eq!(
            node.kernel().take_applied().len(),
            1,
            "only the blackhole does not hang on the link"
        );
        node.kernel().clear_fault();
        assert_eq!(node.reconcile().await, None);
        assert!(node.conflist());
    });
}

#[test]
fn netns_unsupported_link_of_other_pool_does_not_block_pods() {
    in_namespace(async || {
        let mut node = fixture();
        let mut pool = node.objects.pools[0].clone();
        pool.metadata.name = Some("far".into());
        pool.spec.cidr = "10.99.0.0/16".parse().unwrap();
        let mut block = node.objects.subnets[1].clone();
        block.spec.cidr = "10.99.0.0/26".parse().unwrap();
        block.spec.pool = "far".into();
        node.objects.pools.push(pool);
        node.objects.subnets.push(block);
        let modes = &mut node.objects.network.as_mut().unwrap().spec.modes;
        modes.push(NodeMode {
            name: "far".into(),
            pools: vec!["far".into()],
            transport: Transport::Ipip.into(),
            ..modes[0].clone()
        });
        let is_ipip =
            |op: &Op| matches!(op, Op::LinkAdd { name, .. } if name.as_str() == "nw-ipip");
        node.kernel()
            .fail_with(move |op| is_ipip(op).then_some(Errno::EOPNOTSUPP));
        assert_eq!(node.reconcile().await, None, "to try again would not help");
        assert!(node.conflist(), "its own pods have what they need");
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(
            message.contains("no ipip links") && message.contains("modprobe ipip"),
            "{message}"
        );
    });
}

#[test]
fn netns_failing_route_does_not_block_routes_of_same_uplink() {
    in_namespace(async || {
        let mut node = fixture();
        let mut block = node.objects.subnets[1].clone();
        block.spec.cidr = "10.244.0.128/26".parse().unwrap();
        block.spec.node = "three".into();
        node.objects.subnets.push(block);
        let modes = &mut node.objects.network.as_mut().unwrap().spec.modes;
        modes[0].transport = Transport::Direct.into();
        node.kernel().change_externally(|state| {
            let key = RouteKey {
                table: TABLE_MAIN,
                dst: "192.0.2.0/24".parse().unwrap(),
                metric: 0,
            };
            let connected = Route {
                kind: RouteKind::Unicast,
                protocol: 2,
                via: None,
                dev: Some("ens7".parse().unwrap()),
                onlink: false,
                source: None,
                mtu: None,
            };
            state.routes.insert(key, connected);
        });
        let first = |op: &Op| matches!(op, Op::RouteAdd { key, .. } if key.dst.to_string() == "10.244.0.64/26");
        node.kernel()
            .fail_with(move |op| first(op).then_some(Errno::ENETUNREACH));
        assert!(node.reconcile().await.is_some());
        let (_, message) = node.ready();
        assert!(message.contains("10.244.0.64/26"), "{message}");
        let state = node.kernel().state();
        assert!(
            state
                .routes
                .keys()
                .any(|key| key.dst.to_string() == "10.244.0.128/26"),
            "the other route is there"
        );
    });
}

#[test]
fn netns_later_programming_failure_keeps_conflist() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        node.kernel().change_externally(|state| state.fdb.clear());
        node.kernel()
            .fail_with(|op| matches!(op, Op::FdbReplace { .. }).then_some(Errno::EBUSY));
        node.objects.pools[0].spec.disabled = true;
        assert!(node.reconcile().await.is_some());
        assert_eq!(node.ready().0, "False");
        assert!(node.conflist());
        let plugin = NodeConfig::read(&node.dir.path().join("run")).unwrap();
        assert!(plugin.pools[0].disabled, "the plugin is told all the same");
    });
}

#[test]
fn netns_missing_node_address_or_node_network_removes_nothing() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        assert!(!node.kernel().take_applied().is_empty());
        node.kernel().change_externally(|state| {
            state.addresses.retain(|key, _| key.link.as_str() != "ens7");
        });
        assert!(node.reconcile().await.is_some());
        assert!(node.ready().1.contains("192.0.2.1"));
        node.objects.network = None;
        assert_eq!(node.reconcile().await, None);
        assert_eq!(node.kernel().take_applied(), []);
    });
}

#[test]
fn netns_retry_backoff_grows_and_resets_after_success() {
    in_namespace(async || {
        let mut node = fixture();
        node.kernel().fail_with(|_| Some(Errno::EPERM));
        let first = node.reconcile().await.unwrap();
        let second = node.reconcile().await.unwrap();
        assert!(
            first <= RETRY.0 && second >= RETRY.0,
            "{first:?} {second:?}"
        );
        for _ in 0..20 {
            assert!(node.reconcile().await.unwrap() <= RETRY.1);
        }
        node.kernel().clear_fault();
        assert_eq!(node.reconcile().await, None);
        node.kernel().change_externally(|state| state.fdb.clear());
        node.kernel().fail_with(|_| Some(Errno::EPERM));
        assert!(node.reconcile().await.unwrap() <= RETRY.0);
    });
}

#[test]
fn netns_pod_repair_count_is_written_after_invalidation() {
    in_namespace(async || {
        let mut node = fixture();
        let pod = crate::pods::tests::attachment("one", &["10.244.0.2"]);
        let store = Store::new(&node.dir.path().join("run"));
        drop(store.lock(Duration::ZERO).unwrap().reserve(&pod).unwrap());
        let made = netweft_cni::pod::host_state(&pod);
        node.kernel()
            .change_externally(|state| state.links.extend(made.links));
        assert_eq!(node.reconcile().await, None);
        assert!(
            made.routes
                .keys()
                .all(|key| node.kernel().state().routes.contains_key(key))
        );
        let told = |node: &Fixture| status_of(node.dir.path()).repairs.unwrap();
        assert_eq!(told(&node).restored, 2, "a route and a neighbour");
        node.kernel().change_externally(|state| {
            state.routes.retain(|key, _| !made.routes.contains_key(key));
        });
        node.reconcile().await;
        assert_eq!(told(&node).restored, 2, "a repair alone is not told");
        node.reconciler.doubt();
        node.reconcile().await;
        assert_eq!(told(&node).restored, 3);
    });
}

#[test]
fn netns_leaked_attachment_is_rechecked_and_reported() {
    in_namespace(async || {
        let mut node = fixture();
        let pod = crate::pods::tests::attachment("one", &["10.244.0.2"]);
        let store = Store::new(&node.dir.path().join("run"));
        drop(store.lock(Duration::ZERO).unwrap().reserve(&pod).unwrap());
        let again = node.reconcile().await.unwrap();
        assert!(
            again > Duration::from_secs(1) && again <= Duration::from_secs(5),
            "{again:?}"
        );
        assert_eq!(node.ready().0, "True");
        assert_eq!(status_of(node.dir.path()).subnets[0].used, 1);
        std::fs::write(node.dir.path().join("run/attachments/10.244.0.9"), "").unwrap();
        node.reconcile().await;
        let (ready, message) = node.ready();
        assert_eq!(ready, "True");
        assert!(
            message.contains("the attachment of address 10.244.0.9 cannot be read"),
            "{message}"
        );
    });
}

/// A route that a BIRD has left in the kernel.
fn birds(dst: &str, metric: u32) -> (RouteKey, Route) {
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: dst.parse().unwrap(),
        metric,
    };
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: 12,
        via: "192.0.2.3".parse().ok(),
        dev: "ens7".parse().ok(),
        onlink: false,
        source: None,
        mtu: None,
    };
    (key, route)
}

#[test]
fn netns_leftover_bird_routes_are_removed_foreign_ones_kept() {
    in_namespace(async || {
        let mut node = fixture();
        let ours = birds("10.244.9.0/26", 78);
        let another = [birds("10.244.9.64/26", 32), birds("198.51.100.0/24", 78)];
        node.kernel().change_externally(|state| {
            state.routes.extend([ours.clone()]);
            state.routes.extend(another.clone());
        });
        node.reconcile().await;
        let there = |node: &Fixture, (key, _): &(RouteKey, Route)| {
            node.kernel().state().routes.contains_key(key)
        };
        assert!(there(&node, &ours), "BIRD may still want it");
        let counts = status_of(node.dir.path()).routes.unwrap();
        assert_eq!((counts.tunnel, counts.bgp), (1, 1));
        node.bird.send_modify(|observed| observed.released = true);
        node.reconcile().await;
        assert!(!there(&node, &ours));
        assert!(another.iter().all(|route| there(&node, route)));
    });
}

#[test]
fn netns_bird_config_is_written_and_bird_routes_are_kept() {
    in_namespace(async || {
        let mut node = fixture();
        let bgp = "{asNumber: 64512, routerID: 192.0.2.1, listenPort: 179, sessions: []}";
        let network = node.objects.network.as_mut().unwrap();
        network.spec.bgp = Some(serde_saphyr::from_str(bgp).unwrap());
        network.spec.modes[0].transport = Transport::Bgp.into();
        let bgp_routes = birds("10.244.0.64/26", 78);
        node.kernel()
            .change_externally(|state| state.routes.extend([bgp_routes.clone()]));
        // What was observed before BGP was on must not count.
        node.bird.send_modify(|observed| observed.released = true);
        assert_eq!(node.reconcile().await, None);
        assert!(node.reconciler.bird.wanted().is_some());
        assert!(node.kernel().state().routes.contains_key(&bgp_routes.0));
        assert_eq!(node.ready().0, "True", "no session is waited for");
        assert!(node.conflist());
    });
}

/// The kernel's routes behind BIRD's.
fn backup_routes(node: &Fixture) -> Vec<(String, Option<String>)> {
    let routes = node.kernel().state().routes;
    let ours = routes
        .iter()
        .filter(|(key, route)| key.metric == 79 && route.protocol == 78);
    ours.map(|(key, route)| (key.dst.to_string(), route.via.map(|via| via.to_string())))
        .collect()
}

#[test]
fn netns_starting_bird_has_backup_routes() {
    in_namespace(async || {
        let mut node = fixture();
        let bgp = "{asNumber: 64512, routerID: 192.0.2.1, listenPort: 179, sessions: []}";
        let network = node.objects.network.as_mut().unwrap();
        network.spec.bgp = Some(serde_saphyr::from_str(bgp).unwrap());
        network.spec.modes[0].transport = Transport::Bgp.into();
        let ours = birds("10.244.0.64/26", 78);
        let others = birds("198.51.100.0/24", 78);
        let gone = |state: &mut NetworkState| drop(state.routes.remove(&ours.0));
        node.kernel()
            .change_externally(|state| state.routes.extend([ours.clone(), others.clone()]));
        node.bird.send_modify(|observed| observed.met = 1);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(backup_routes(&node), []);
        let before = status_of(node.dir.path()).routes.unwrap();
        // It is killed.
        node.bird.send_modify(|observed| observed.absent = true);
        assert!(node.reconcile().await.is_some(), "to take them away again");
        let there = [("10.244.0.64/26".to_owned(), Some("192.0.2.3".to_owned()))];
        assert_eq!(backup_routes(&node), there);
        assert_eq!(status_of(node.dir.path()).routes.unwrap(), before);
        // Another begins, and takes away what it has not heard of yet.
        node.bird.send_modify(|observed| {
            observed.absent = false;
            observed.met = 2;
        });
        node.reconcile().await;
        node.kernel().change_externally(gone);
        node.reconcile().await;
        assert_eq!(backup_routes(&node), there);
        assert_eq!(status_of(node.dir.path()).drift, None);
        // BGP is switched off.
        let network = node.objects.network.as_mut().unwrap();
        network.spec.bgp = None;
        node.reconcile().await;
        assert_eq!(backup_routes(&node), []);
    });
}
