//! Leaders that are stopped, replaced, resumed and killed: no block is given twice, none is taken back.

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
use crate::held_writes::Gate;
use crate::ledger::Ledger;
use crate::objects::{
    all, any, create_node, delete, eventually, forbid_no_deletion, merge, object,
};
use crate::operator::{Operator, WAIT_TIMEOUT, assigned, leader, owners, until_assigned};

/// Another takes over soon.
const SHORT_LEASE: [&str; 2] = ["--lease-duration", "2s"];

async fn create_nodes(admin: &Client, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        create_node(admin, &name, &address).await;
    }
}

async fn until_leader(admin: &Client, name: &str) {
    let what = format!("{name} leads");
    eventually(&what, WAIT_TIMEOUT, async || {
        leader(admin).await.filter(|holder| holder == name)
    })
    .await;
}

#[tokio::test]
async fn leader_takeover_assigns_no_block_twice() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let ledger = Ledger::begin(&admin).await;
    create_nodes(&admin, 1..=1).await;
    let first = Operator::start(&plane, "first", &SHORT_LEASE).await;
    until_leader(&admin, "first").await;
    let mut second = Operator::start(&plane, "second", &SHORT_LEASE).await;
    until_assigned(&admin, 1).await;
    let standby = "the second is ready without leading";
    eventually(standby, WAIT_TIMEOUT, async || second.is_ready().await).await;
    assert!(second.counts("netweft_operator_leader 0").await.is_some());

    // A leader that is stopped, replaced and resumed believes in its lease for a while.
    first.process.signal("STOP");
    create_nodes(&admin, 2..=20).await;
    until_assigned(&admin, 20).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("second"));
    first.process.signal("CONT");
    create_nodes(&admin, 21..=40).await;
    until_assigned(&admin, 40).await;
    one_block_each(&admin, 40).await;

    // kill -9 of the leader.
    second.process.kill();
    create_nodes(&admin, 41..=41).await;
    until_assigned(&admin, 41).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("first"));
    one_block_each(&admin, 41).await;
    assert_eq!(ledger.breaches(), [""; 0]);

    // A leader that is told to stop gives the lease back.
    first.stop();
    assert_eq!(leader(&admin).await, None);
}

async fn one_block_each(client: &Client, nodes: usize) {
    let owners = owners(client).await;
    assert_eq!(owners.len(), nodes);
    let blocks: BTreeSet<_> = owners.values().flatten().collect();
    assert_eq!(blocks.len(), nodes, "{owners:?}");
    let most = owners.values().map(BTreeSet::len).max();
    assert_eq!(most, Some(1), "{owners:?}");
}

/// The leader is stopped while its writes are under way; they arrive when another has given their blocks away.
#[tokio::test]
async fn late_writes_of_former_leader_do_no_harm() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_nodes(&admin, 1..=5).await;
    // The pool's finalizer and two blocks pass, three blocks are held.
    let gate = Gate::open_for(&plane, 3).await;
    let first = Operator::start_by(&plane, &gate.url, "first", &SHORT_LEASE).await;
    eventually("three blocks are under way", WAIT_TIMEOUT, async || {
        (gate.held() == 3 && gate.answered() == 3).then_some(())
    })
    .await;
    first.process.signal("STOP");
    // One that was to get a block goes, another comes: the next leader gives each of these blocks to somebody else.
    let have: BTreeSet<_> = owners(&admin).await.into_keys().collect();
    let lacking = (1..=5).map(|number| format!("worker-{number}"));
    let lacking = lacking.into_iter().find(|name| !have.contains(name));
    let nodes: Api<Node> = Api::all(admin.clone());
    let gone = lacking.unwrap();
    delete(&nodes, &gone).await;
    create_nodes(&admin, 6..=6).await;
    let ledger = Ledger::begin(&admin).await;
    let second = Operator::start(&plane, "second", &SHORT_LEASE).await;
    until_assigned(&admin, 5).await;
    one_block_each(&admin, 5).await;
    let settled = owners(&admin).await;

    gate.open();
    eventually("they have arrived", WAIT_TIMEOUT, async || {
        (gate.answered() >= 6).then_some(())
    })
    .await;
    first.process.signal("CONT");
    let stale =
        "netweft_operator_writes_total{kind=\"NodeSubnet\",verb=\"create\",result=\"stale\"} 3";
    eventually("all three came too late", WAIT_TIMEOUT, async || {
        first.counts(stale).await
    })
    .await;
    let down = "netweft_operator_leader 0";
    eventually("the first has stepped down", WAIT_TIMEOUT, async || {
        first.counts(down).await
    })
    .await;
    assert!(second.counts("netweft_operator_leader 1").await.is_some());
    let right = "the statuses are what the second says";
    eventually(right, WAIT_TIMEOUT, async || settled_at(&admin, 5).await).await;
    assert_eq!(owners(&admin).await, settled);
    assert_eq!(ledger.breaches(), [""; 0]);
}

/// After every write with `NETWEFT_SWEEP=all`, else after every third. In two halves at the same time: most of the time is spent
/// waiting for leases to run out.
#[tokio::test]
async fn leader_killed_after_any_write_of_join_does_no_harm() {
    let sweep = std::env::var("NETWEFT_SWEEP").is_ok_and(|how| how == "all");
    let stride = if sweep { 1 } else { 3 };
    let (odd, even) = tokio::join!(
        every_write_from(1, 2 * stride),
        every_write_from(1 + stride, 2 * stride)
    );
    let writes = odd.max(even);
    // Five blocks, five NodeNetworks, five conditions Assigned, a finalizer and two statuses at least.
    assert!(
        writes + stride > 18,
        "only {writes} writes were found to kill after"
    );
    println!("killed after each of {writes} writes");
}

/// Kills the leader after its `first` write of a join, then after every `stride`-th; returns the last.
async fn every_write_from(first: usize, stride: usize) -> usize {
    let plane = ControlPlane::with_chart().await;
    let mut write = first;
    while killed_after(&plane, write).await {
        write += stride;
    }
    write.saturating_sub(stride)
}

/// Lets five nodes join and kills the leader after so many writes. Returns false if it has not that many to do.
async fn killed_after(plane: &ControlPlane, writes: usize) -> bool {
    let admin = plane.admin();
    fresh_cluster(&admin).await;
    create_nodes(&admin, 1..=5).await;
    let ledger = Ledger::begin(&admin).await;
    let gate = Gate::open_for(plane, writes).await;
    let mut first = Operator::start_by(plane, &gate.url, "first", &SHORT_LEASE).await;
    let held = eventually("the first has written", WAIT_TIMEOUT, async || {
        let held = gate.held() > 0 && gate.answered() == writes;
        if held {
            return Some(true);
        }
        settled_at(&admin, 5).await.map(|()| false)
    })
    .await;
    if !held {
        first.stop();
        return false;
    }
    let second = Operator::start(plane, "second", &SHORT_LEASE).await;
    eventually("the second stands by", WAIT_TIMEOUT, async || {
        second.is_ready().await
    })
    .await;
    first.process.kill();
    let what = format!("the second completes what was begun by {writes} writes");
    eventually(&what, WAIT_TIMEOUT, async || settled_at(&admin, 5).await).await;
    one_block_each(&admin, 5).await;
    assert_eq!(ledger.breaches(), [""; 0], "after {writes} writes");
    assert_eq!(ledger.blocks(), 5, "after {writes} writes");
    second.stop();
    true
}

/// Whether everything is said and done for so many nodes.
async fn settled_at(admin: &Client, nodes: usize) -> Option<()> {
    let networks = all::<NodeNetwork>(admin).await;
    let blocks = networks.iter().map(|network| network.spec.subnets.len());
    let told = assigned(&networks) == nodes && blocks.sum::<usize>() == nodes;
    let count = i64::try_from(nodes).unwrap();
    let pool = Api::<IPPool>::all(admin.clone()).get("default-v4").await;
    let pool = pool.unwrap();
    let usage = pool.status.as_ref()?.usage?;
    let mode = Api::<NetworkMode>::all(admin.clone()).get("default").await;
    let progress = mode.unwrap().status?.nodes?;
    let counted = usage.blocks.used == count && progress.total == count;
    (told && counted && pool.finalizers().len() == 1).then_some(())
}

/// The chart's default objects as they were first applied, and nothing else.
async fn fresh_cluster(admin: &Client) {
    forbid_no_deletion(admin).await;
    let pools: Api<IPPool> = Api::all(admin.clone());
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

/// The policy against overlap may still see the pool that was deleted a moment ago.
async fn create_default(admin: &Client, value: &Value) {
    let new: DynamicObject = object(value.clone());
    let api = any(admin, value);
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
    let (how, which) = (DeleteParams::default(), ListParams::default());
    eventually("they are gone", WAIT_TIMEOUT, async || {
        // Refused as long as the policy that forbids it is remembered.
        drop(api.delete_collection(&how, &which).await);
        all::<K>(admin).await.is_empty().then_some(())
    })
    .await;
}
