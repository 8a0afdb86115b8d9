//! Reconciles with a kernel in memory and files in a temporary directory. nft is the real program, in a network namespace.

mod acknowledged_generation;
mod bird_routes;
mod pods;
mod programming_failures;
mod without_node_network;

use std::path::Path;

use netweft_cni::conf::CONFLIST_FILE;
use netweft_cni::node;
use netweft_cni::node::NodeConfig;
use netweft_crds::condition::READY;
use netweft_crds::{NodeMode, NodeNetworkStatus, Transport};
use netweft_netstate::kernel::FakeKernel;
use netweft_netstate::model::{
    Address, AddressKey, Link, LinkKind, LinkName, NetworkState, Route, RouteKey, RouteKind,
    TABLE_MAIN,
};
use netweft_netstate::op::Op;
use nix::errno::Errno;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::bird::{BirdHandle, Observation};
use crate::firewall::Firewall;
use crate::probes::responder::Responder;
use crate::reconcile::RETRY;
use crate::reconcile::*;
use crate::status::problem::Problems;
use crate::status::publisher::StatusPublisher;
use crate::status::sink::StatusSink;
use crate::testing::in_namespace;

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
    bird: watch::Sender<Observation>,
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
    let sink = StatusSink::file(&paths.run_dir);
    let (status, publisher) = StatusPublisher::new("one".into(), sink, health.clone());
    let kernel = FakeKernel::new(node_state());
    let (bird_handle, bird) = BirdHandle::detached();
    let (probes, _) = ProbeHandle::detached();
    let (_, firewall) = Firewall::new(&paths);
    let (_, responder) = Responder::new(9471);
    let tasks = TaskHandles {
        bird: bird_handle,
        probes,
        firewall,
        responder,
    };
    let telemetry = (status, Metrics::new(), health);
    let reconciler = Reconciler::new("one".into(), kernel, tasks, (paths, None), telemetry);
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
        let requeue_after = self.reconciler.reconcile(&self.objects).await;
        // After the minimum interval between two writes of the status.
        self.hours += 1;
        let late = Duration::from_secs(3600) * self.hours;
        let now = tokio::time::Instant::now();
        self.publisher.step(now + late).await;
        requeue_after
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

    /// The metric of present problems of a kind.
    fn problems(&self, kind: &str) -> u32 {
        let metrics = self.reconciler.metrics.encode();
        let prefix = format!("netweft_agent_problems{{kind=\"{kind}\"}} ");
        let mut values = metrics.lines().filter_map(|it| it.strip_prefix(&prefix));
        values.next().unwrap().parse().unwrap()
    }

    fn kernel(&self) -> &FakeKernel {
        &self.reconciler.kernel
    }
}

fn status_of(dir: &Path) -> NodeNetworkStatus {
    serde_saphyr::from_str(&std::fs::read_to_string(dir.join("run/status.yaml")).unwrap()).unwrap()
}

/// Prevents changes of `node.json`, as a full disk does: the temporary file cannot be created.
fn block_node_json(node: &Fixture) -> PathBuf {
    let temporary = format!("run/.{}.{}", node::FILE, std::process::id());
    let temporary = node.dir.path().join(temporary);
    std::fs::create_dir(&temporary).unwrap();
    temporary
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
