//! Leaders that are stopped, replaced, continued and killed: no block is assigned twice, and none is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::{ClusterResourceScope, DynamicObject};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::{IPPool, NetworkMode, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::chart;
use crate::control_plane::ControlPlane;
use crate::held_writes::WriteGate;
use crate::invariants::InvariantMonitor;
use crate::objects::{
    all, allow_deletion, create_node, delete, dynamic_api, eventually, merge, object, token,
};
use crate::operator::{Operator, WAIT_TIMEOUT, assigned, leader, owners, wait_until_assigned};

/// A short lease, so that another operator becomes the leader soon.
const SHORT_LEASE: [&str; 2] = ["--lease-duration", "2s"];

async fn create_nodes(admin: &Client, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        create_node(admin, &name, &address).await;
    }
}

async fn wait_until_leader(admin: &Client, name: &str) {
    let what = format!("{name} is the leader");
    eventually(&what, WAIT_TIMEOUT, async || {
        leader(admin).await.filter(|holder| holder == name)
    })
    .await;
}

#[tokio::test]
async fn leader_takeover_assigns_no_block_twice() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let monitor = InvariantMonitor::start(&admin).await;
    create_nodes(&admin, 1..=1).await;
    let first = Operator::start(&plane, "first", &SHORT_LEASE).await;
    wait_until_leader(&admin, "first").await;
    let mut second = Operator::start(&plane, "second", &SHORT_LEASE).await;
    wait_until_assigned(&admin, 1).await;
    let standby = "the standby is ready";
    eventually(standby, WAIT_TIMEOUT, async || second.is_ready().await).await;
    assert!(
        second
            .has_metric("netweft_operator_leader 0")
            .await
            .is_some()
    );

    // A leader that is stopped, replaced and continued acts as leader for a moment.
    first.process.signal("STOP");
    create_nodes(&admin, 2..=20).await;
    wait_until_assigned(&admin, 20).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("second"));
    first.process.signal("CONT");
    create_nodes(&admin, 21..=40).await;
    wait_until_assigned(&admin, 40).await;
    assert_one_block_each(&admin, 40).await;

    // The leader is killed.
    second.process.kill();
    create_nodes(&admin, 41..=41).await;
    wait_until_assigned(&admin, 41).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("first"));
    assert_one_block_each(&admin, 41).await;
    assert_eq!(monitor.violations(), [""; 0]);

    // A leader releases the lease when it stops.
    first.stop();
    assert_eq!(leader(&admin).await, None);
}

async fn assert_one_block_each(client: &Client, nodes: usize) {
    let owners = owners(client).await;
    assert_eq!(owners.len(), nodes);
    let blocks: BTreeSet<_> = owners.values().flatten().collect();
    assert_eq!(blocks.len(), nodes, "{owners:?}");
    let most = owners.values().map(BTreeSet::len).max();
    assert_eq!(most, Some(1), "{owners:?}");
}

/// The leader is stopped while its writes are in progress. They arrive when another leader has assigned the blocks.
#[tokio::test]
async fn late_writes_of_former_leader_do_no_harm() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_nodes(&admin, 1..=5).await;
    // The finalizer of the pool and two blocks pass. Three blocks are held.
    let gate = WriteGate::start(&plane, 3).await;
    let first = Operator::start_with_url(&plane, &gate.url, "first", &SHORT_LEASE).await;
    eventually("three block creations are held", WAIT_TIMEOUT, async || {
        (gate.held() == 3 && gate.answered() == 3).then_some(())
    })
    .await;
    first.process.signal("STOP");
    // A Node without a block is replaced by another Node, so the next leader assigns each of the held blocks to a
    // different node.
    let have: BTreeSet<_> = owners(&admin).await.into_keys().collect();
    let lacking = (1..=5).map(|number| format!("worker-{number}"));
    let lacking = lacking.into_iter().find(|name| !have.contains(name));
    let nodes: Api<Node> = Api::all(admin.clone());
    let deleted = lacking.unwrap();
    delete(&nodes, &deleted).await;
    create_nodes(&admin, 6..=6).await;
    let monitor = InvariantMonitor::start(&admin).await;
    let second = Operator::start(&plane, "second", &SHORT_LEASE).await;
    wait_until_assigned(&admin, 5).await;
    assert_one_block_each(&admin, 5).await;
    let before = owners(&admin).await;

    gate.open();
    eventually("the held writes have arrived", WAIT_TIMEOUT, async || {
        (gate.answered() >= 6).then_some(())
    })
    .await;
    first.process.signal("CONT");
    let stale =
        "netweft_operator_writes_total{kind=\"NodeSubnet\",verb=\"create\",result=\"stale\"} 3";
    eventually("all three creations conflict", WAIT_TIMEOUT, async || {
        first.has_metric(stale).await
    })
    .await;
    let down = "netweft_operator_leader 0";
    eventually("the first is not the leader", WAIT_TIMEOUT, async || {
        first.has_metric(down).await
    })
    .await;
    assert!(
        second
            .has_metric("netweft_operator_leader 1")
            .await
            .is_some()
    );
    let right = "the statuses are complete";
    eventually(right, WAIT_TIMEOUT, async || is_converged(&admin, 5).await).await;
    assert_eq!(owners(&admin).await, before);
    assert_eq!(monitor.violations(), [""; 0]);
}

/// After every write with `NETWEFT_SWEEP=all`, else after every third one. Two halves run concurrently, because most of
/// the time is spent waiting until leases expire.
#[tokio::test]
async fn leader_killed_after_any_write_of_join_does_no_harm() {
    let sweep = std::env::var("NETWEFT_SWEEP").is_ok_and(|params| params == "all");
    let stride = if sweep { 1 } else { 3 };
    let (odd, even) = tokio::join!(
        kill_after_every_write_from(1, 2 * stride),
        kill_after_every_write_from(1 + stride, 2 * stride)
    );
    let writes = odd.max(even);
    // At least five blocks, five NodeNetworks, five conditions Assigned, a finalizer and two statuses.
    assert!(writes + stride > 18, "the join has only {writes} writes");
    println!("killed after each of {writes} writes");
}

/// Kills the leader after its `first` write, then after every `stride`-th. Returns the number of the last write.
async fn kill_after_every_write_from(first: usize, stride: usize) -> usize {
    let plane = ControlPlane::with_chart().await;
    let mut write = first;
    while kill_after_write(&plane, write).await {
        write += stride;
    }
    write.saturating_sub(stride)
}

/// Creates five Nodes and kills the leader after `writes` writes. Returns false if it has fewer writes to do.
async fn kill_after_write(plane: &ControlPlane, writes: usize) -> bool {
    let admin = plane.admin();
    reset_cluster(plane).await;
    create_nodes(&admin, 1..=5).await;
    let monitor = InvariantMonitor::start(&admin).await;
    let gate = WriteGate::start(plane, writes).await;
    let mut first = Operator::start_with_url(plane, &gate.url, "first", &SHORT_LEASE).await;
    let held = eventually("the first has written", WAIT_TIMEOUT, async || {
        let held = gate.held() > 0 && gate.answered() == writes;
        if held {
            return Some(true);
        }
        is_converged(&admin, 5).await.map(|()| false)
    })
    .await;
    if !held {
        first.stop();
        return false;
    }
    let second = Operator::start(plane, "second", &SHORT_LEASE).await;
    eventually("the standby is ready", WAIT_TIMEOUT, async || {
        second.is_ready().await
    })
    .await;
    first.process.kill();
    let what = format!("the second completes the join after {writes} writes");
    eventually(&what, WAIT_TIMEOUT, async || is_converged(&admin, 5).await).await;
    assert_one_block_each(&admin, 5).await;
    assert_eq!(monitor.violations(), [""; 0], "after {writes} writes");
    assert_eq!(monitor.assignment_count(), 5, "after {writes} writes");
    second.stop();
    true
}

/// Whether the objects and statuses of all nodes are complete.
async fn is_converged(admin: &Client, nodes: usize) -> Option<()> {
    let networks = all::<NodeNetwork>(admin).await;
    let blocks = networks.iter().map(|network| network.spec.subnets.len());
    let listed = assigned(&networks) == nodes && blocks.sum::<usize>() == nodes;
    let count = i64::try_from(nodes).unwrap();
    let pool = Api::<IPPool>::all(admin.clone()).get("default-v4").await;
    let pool = pool.unwrap();
    let usage = pool.status.as_ref()?.usage?;
    let mode = Api::<NetworkMode>::all(admin.clone()).get("default").await;
    let progress = mode.unwrap().status?.nodes?;
    let counted = usage.blocks.used == count && progress.total == count;
    (listed && counted && pool.finalizers().len() == 1).then_some(())
}

/// Restores the default objects of the chart and deletes all others.
async fn reset_cluster(plane: &ControlPlane) {
    let admin = &plane.admin();
    allow_deletion(admin).await;
    // A policy allows only the operator to change the finalizers.
    let operator = plane.client(&token(admin, "netweft-operator", None).await);
    let pools: Api<IPPool> = Api::all(operator);
    let none = json!({ "metadata": { "finalizers": null } });
    for pool in all::<IPPool>(admin).await {
        merge(&pools, &pool.name_any(), none.clone()).await;
    }
    delete_all::<IPPool>(admin).await;
    delete_all::<NetworkMode>(admin).await;
    delete_all::<NodeSubnet>(admin).await;
    delete_all::<NodeNetwork>(admin).await;
    delete_all::<Node>(admin).await;
    let objects = chart::rendered(&[]);
    for kind in ["NetworkMode", "IPPool"] {
        for default in chart::of_kind(&objects, kind) {
            create_default(admin, default).await;
        }
    }
}

/// The policy against overlapping pools may still see the deleted pool for a moment.
async fn create_default(admin: &Client, value: &Value) {
    let new: DynamicObject = object(value.clone());
    let api = dynamic_api(admin, value);
    eventually(
        "a default object is created",
        Duration::from_secs(10),
        async || api.create(&PostParams::default(), &new).await.ok(),
    )
    .await;
}

async fn delete_all<K>(admin: &Client)
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(admin.clone());
    let (params, list) = (DeleteParams::default(), ListParams::default());
    eventually("all objects are deleted", WAIT_TIMEOUT, async || {
        // The API server applies the deleted policy for a moment.
        drop(api.delete_collection(&params, &list).await);
        all::<K>(admin).await.is_empty().then_some(())
    })
    .await;
}
