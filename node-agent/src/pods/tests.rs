//! Repair and reclaiming with a kernel in memory, records on disk, and a simulated clock.

mod address_count;

use netweft_cni::attachment::{Bridge, PodAddress, VERSION};
use netweft_cni::env::Pod;
use netweft_cni::pod;
use netweft_netstate::kernel::FakeKernel;
use netweft_netstate::model::{
    Link, LinkKind, LinkName, Neighbour, NeighbourKey, Port, Route, RouteKey, RouteKind, TABLE_MAIN,
};
use netweft_netstate::owner::{METRIC, PROTOCOL_PLUGIN};
use tempfile::TempDir;

use crate::pods::orphan_timer::GRACE;
use crate::pods::*;

struct Fixture {
    pods: Pods,
    kernel: FakeKernel,
    now: Instant,
    dir: TempDir,
}

pub(crate) fn attachment(container: &str, ips: &[&str]) -> Attachment {
    let owner = env::AttachmentId {
        container_id: container.to_owned(),
        if_name: "eth0".parse().unwrap(),
    };
    let pod::Identity {
        host_link,
        host_mac,
        pod_mac,
    } = pod::identity(&owner);
    let address = |ip: &&str| PodAddress {
        ip: ip.parse().unwrap(),
        pool: "p".into(),
        gateway: None,
    };
    Attachment {
        version: VERSION,
        owner,
        pod: Pod::default(),
        netns: "/run/netns/x".into(),
        addresses: ips.iter().map(address).collect(),
        host_link,
        host_mac,
        pod_mac,
        bridge: None,
        mtu: 1350,
    }
}

fn bridged(container: &str, ip: &str) -> Attachment {
    Attachment {
        bridge: Some(Bridge {
            link: "nw-br0".parse().unwrap(),
            mac: "02:00:00:00:00:0b".parse().unwrap(),
        }),
        ..attachment(container, &[ip])
    }
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let pods = Pods::new(Store::new(dir.path()), Metrics::new());
    let kernel = FakeKernel::default();
    let bridge = Link {
        kind: LinkKind::Bridge,
        mac: None,
        mtu: 1350,
        up: true,
    };
    kernel.change_externally(|state| drop(state.links.insert("nw-br0".parse().unwrap(), bridge)));
    Fixture {
        pods,
        kernel,
        now: Instant::now(),
        dir,
    }
}

impl Fixture {
    fn store(&self) -> Store {
        Store::new(self.dir.path())
    }

    fn reserve(&self, attachment: &Attachment) -> netweft_cni::attachment::AddInProgress {
        let store = self.store();
        store
            .lock(Duration::ZERO)
            .unwrap()
            .reserve(attachment)
            .unwrap()
    }

    /// An attachment as a finished ADD leaves it.
    fn add(&self, attachment: &Attachment) {
        drop(self.reserve(attachment));
        self.kernel.change_externally(|state| {
            let made = pod::host_state(attachment);
            state.links.extend(made.links);
            state.ports.extend(made.ports);
            state.routes.extend(made.routes);
            state.neighbours.extend(made.neighbours);
        });
    }

    async fn reconcile(&mut self) -> PodsOutcome {
        let records = self.pods.state(None).unwrap().0;
        let actual = self.kernel.state();
        self.pods
            .reconcile(&self.kernel, &records, &actual, self.now)
            .await
    }

    /// Reconciles twice, with the grace period between.
    async fn reconcile_twice(&mut self) -> PodsOutcome {
        self.reconcile().await;
        self.now += GRACE;
        self.reconcile().await
    }

    fn taken(&self) -> Vec<String> {
        let taken = self.store().allocated().unwrap();
        taken.iter().map(ToString::to_string).collect()
    }

    fn counts(&self) -> (u64, u64) {
        let Counts {
            restored,
            reclaimed,
        } = self.pods.counts();
        (restored, reclaimed)
    }
}

#[tokio::test]
async fn lost_pod_objects_are_restored_once() {
    let mut node = fixture();
    let routed = attachment("routed", &["10.0.0.2", "fd00::2"]);
    let on_bridge = bridged("bridged", "10.1.0.2");
    node.add(&routed);
    node.add(&on_bridge);
    let intact = node.kernel.state();
    assert_eq!(node.reconcile().await, PodsOutcome::default());
    assert_eq!(node.kernel.take_applied(), []);
    let (link, port) = (routed.host_link, on_bridge.host_link);
    let damages: [&dyn Fn(&mut NetworkState); 8] = [
        &|state| drop(state.routes.pop_first()),
        &|state| state.routes.clear(),
        &|state| drop(state.neighbours.pop_first()),
        &|state| state.neighbours.clear(),
        // The kernel removes the routes of a link that is set down.
        &|state| {
            state.links.get_mut(&link).unwrap().up = false;
            state.routes.clear();
        },
        &|state| state.links.get_mut(&link).unwrap().mac = None,
        &|state| state.ports.clear(),
        &|state| state.ports.get_mut(&port).unwrap().hairpin = false,
    ];
    for (n, damage) in damages.iter().enumerate() {
        let before = node.counts().0;
        node.kernel.change_externally(damage);
        assert_eq!(node.reconcile().await, PodsOutcome::default(), "{n}");
        assert_eq!(node.kernel.state(), intact, "{n}");
        assert!(node.counts().0 > before, "{n}");
    }
    assert_eq!(node.counts().1, 0);
    assert!(
        node.pods
            .metrics
            .encode()
            .contains("pods_restored_total{kind=\"port_replace\"} 2")
    );
}

#[tokio::test]
async fn pod_link_mtu_set_by_later_plugin_is_kept() {
    let mut node = fixture();
    node.add(&attachment("one", &["10.0.0.2"]));
    node.kernel
        .change_externally(|state| state.links.values_mut().for_each(|link| link.mtu = 1300));
    let before = node.kernel.state();
    node.kernel.change_externally(|state| state.routes.clear());
    node.reconcile().await;
    assert_eq!(node.kernel.state(), before);
}

#[tokio::test]
async fn routed_pod_link_is_detached_from_bridge() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2"]);
    node.add(&one);
    let port = Port {
        master: "nw-br0".parse().unwrap(),
        hairpin: false,
    };
    node.kernel
        .change_externally(|state| drop(state.ports.insert(one.host_link, port)));
    node.reconcile().await;
    assert!(node.kernel.state().ports.is_empty());
}

#[tokio::test]
async fn pod_add_in_progress_is_not_repaired_or_reclaimed() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2"]);
    let held = node.reserve(&one);
    // Before the link is created, and after it but before its other objects.
    assert_eq!(node.reconcile_twice().await, PodsOutcome::default());
    let link = pod::host_state(&one).links;
    node.kernel
        .change_externally(|state| state.links.extend(link));
    assert_eq!(node.reconcile_twice().await, PodsOutcome::default());
    assert_eq!(node.kernel.take_applied(), []);
    // The ADD is killed while the sandbox exists: missing objects are added, and the address stays assigned.
    drop(held);
    node.reconcile_twice().await;
    assert_eq!(node.taken(), ["10.0.0.2"]);
    assert_eq!(node.kernel.state().routes.len(), 1);
}

#[tokio::test]
async fn attachment_without_link_is_released_after_grace() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2", "fd00::2"]);
    drop(node.reserve(&one));
    assert_eq!(node.reconcile().await.requeue_after, Some(GRACE));
    node.now += GRACE / 2;
    assert_eq!(node.reconcile().await.requeue_after, Some(GRACE / 2));
    assert_eq!(node.taken().len(), 2);
    node.now += GRACE / 2;
    node.reconcile().await;
    assert_eq!(node.taken(), Vec::<String>::new());
    assert_eq!(node.counts(), (0, 1));
    assert_eq!(node.reconcile().await, PodsOutcome::default());
}

#[tokio::test]
async fn attachment_whose_link_appears_late_is_kept() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2"]);
    drop(node.reserve(&one));
    node.reconcile().await;
    node.now += GRACE;
    // The first reading is outdated: the link exists when the kernel is read under the lock.
    let records = node.pods.state(None).unwrap().0;
    let before = node.kernel.state();
    let link = pod::host_state(&one).links;
    node.kernel
        .change_externally(|state| state.links.extend(link));
    node.pods
        .reconcile(&node.kernel, &records, &before, node.now)
        .await;
    assert_eq!(node.taken(), ["10.0.0.2"]);
}

#[tokio::test]
async fn pod_repair_waits_while_lock_is_held() {
    let mut node = fixture();
    node.add(&attachment("one", &["10.0.0.2"]));
    node.kernel.change_externally(|state| state.routes.clear());
    let store = node.store();
    let held = store.lock(Duration::ZERO).unwrap();
    let outcome = node.reconcile().await;
    assert_eq!(
        (outcome.requeue_after, failures(&outcome)),
        (Some(RETRY_INTERVAL), 0)
    );
    assert_eq!(node.kernel.take_applied(), []);
    drop(held);
    assert_eq!(node.reconcile().await, PodsOutcome::default());
    assert_eq!(node.kernel.state().routes.len(), 1);
}

fn failures(outcome: &PodsOutcome) -> usize {
    outcome.problems.of(ProblemKind::ProgrammingFailed).count()
}

fn notes(outcome: &PodsOutcome) -> Vec<&str> {
    outcome.problems.messages(ProblemKind::Note)
}

fn stray() -> LinkName {
    "nw0123456789a".parse().unwrap()
}

fn stray_link(up: bool) -> (LinkName, Link) {
    let link = Link {
        kind: LinkKind::Veth,
        mac: None,
        mtu: 1350,
        up,
    };
    (stray(), link)
}

fn route_over(link: LinkName, dst: &str) -> (RouteKey, Route) {
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: dst.parse().unwrap(),
        metric: METRIC,
    };
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_PLUGIN,
        via: None,
        dev: Some(link),
        onlink: false,
        source: None,
        mtu: None,
    };
    (key, route)
}

#[tokio::test]
async fn stray_link_is_deleted_unless_used_by_pod() {
    for up in [false, true] {
        let mut node = fixture();
        node.kernel
            .change_externally(|state| state.links.extend([stray_link(up)]));
        node.reconcile_twice().await;
        assert!(!node.kernel.state().links.contains_key(&stray()));
        assert_eq!(node.counts(), (0, 1));
    }
    let mut node = fixture();
    node.kernel.change_externally(|state| {
        state.links.extend([stray_link(true)]);
        state.routes.extend([route_over(stray(), "10.0.0.9/32")]);
    });
    let outcome = node.reconcile_twice().await;
    assert!(
        notes(&outcome)[0].starts_with("link nw0123456789a belongs to a pod without a CNI record")
    );
    assert_eq!(node.kernel.take_applied(), []);
}

#[tokio::test]
async fn stray_pod_routes_and_neighbours_are_deleted() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2"]);
    node.add(&one);
    let intact = node.kernel.state();
    let link = one.host_link;
    node.kernel.change_externally(|state| {
        state
            .routes
            .extend([route_over(link.clone(), "10.0.0.9/32")]);
        let key = NeighbourKey {
            link: link.clone(),
            ip: "10.0.0.9".parse().unwrap(),
        };
        let neighbour = Neighbour {
            mac: None,
            permanent: true,
        };
        state.neighbours.insert(key, neighbour);
    });
    node.reconcile().await;
    assert_eq!(node.kernel.take_applied(), [], "during the grace period");
    node.now += GRACE;
    node.reconcile().await;
    assert_eq!(node.kernel.state(), intact);
    assert_eq!(node.counts(), (0, 2));
}

#[tokio::test]
async fn unreadable_record_is_reported_and_protects_all_links() {
    let mut node = fixture();
    node.add(&attachment("one", &["10.0.0.2"]));
    std::fs::write(node.dir.path().join("attachments/10.0.0.9"), "{").unwrap();
    node.kernel.change_externally(|state| {
        state.links.extend([stray_link(false)]);
        state.routes.extend([route_over(stray(), "10.0.0.9/32")]);
    });
    let outcome = node.reconcile_twice().await;
    assert_eq!(notes(&outcome).len(), 1);
    assert!(
        notes(&outcome)[0]
            .starts_with("the attachment of address 10.0.0.9 cannot be read and is kept")
    );
    assert_eq!(node.kernel.take_applied(), []);
    assert_eq!(node.taken(), ["10.0.0.2", "10.0.0.9"]);
}

#[tokio::test]
async fn foreign_route_at_pod_key_is_conflict_and_kept() {
    let mut node = fixture();
    let one = attachment("one", &["10.0.0.2"]);
    node.add(&one);
    node.kernel.change_externally(|state| {
        state
            .routes
            .values_mut()
            .for_each(|route| route.protocol = 4);
    });
    let outcome = node.reconcile().await;
    assert!(
        outcome.problems.messages(ProblemKind::ForeignObject)[0].starts_with("route 10.0.0.2/32"),
        "{outcome:?}"
    );
    node.kernel.change_externally(|state| {
        state.routes.clear();
        state.links.get_mut(&one.host_link).unwrap().kind = LinkKind::Other("dummy".into());
    });
    node.reconcile_twice().await;
    assert_eq!(node.kernel.take_applied(), []);
    assert_eq!(node.taken(), ["10.0.0.2"]);
}

#[tokio::test]
async fn link_deleted_during_repair_is_no_failure() {
    for (errno, expected) in [(Errno::ENODEV, 0), (Errno::EPERM, 1)] {
        let mut node = fixture();
        node.add(&attachment("one", &["10.0.0.2"]));
        node.kernel.change_externally(|state| state.routes.clear());
        node.kernel.fail_with(move |_| Some(errno));
        let outcome = node.reconcile().await;
        assert_eq!(failures(&outcome), expected);
        assert_eq!(outcome.requeue_after.is_some(), expected == 0);
    }
}
