mod agent_reported_addresses;
mod block_demands;
mod hostile_node;
mod modes;
mod node_status_addresses;
mod nodes;
mod other_networks;
mod pool_deletion;
mod pools;
mod properties;
mod remaining_pods;
mod rollout;
mod utilization;

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::plan::model::cluster_state::{Unreadable, UserKind};
use crate::plan::*;
use crate::testing::{Cluster, at, cluster, condition, node, pool, vxlan, yaml};

/// Requests the deletion of a pool.
fn delete_pool(cluster: &mut Cluster, name: &str) {
    let pool = cluster
        .pools
        .iter_mut()
        .find(|pool| pool.name_any() == name)
        .unwrap();
    pool.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
}

#[test]
fn first_plan_of_new_cluster_matches_snapshot() {
    insta::assert_yaml_snapshot!(shown(&cluster(2).plan()));
}

#[test]
fn statuses_of_running_cluster_match_snapshot() {
    let mut cluster = cluster(3);
    cluster.modes.push(at(0, vxlan("spare", 5)));
    cluster.peers.push(yaml(
        "{metadata: {name: tor}, spec: {peerIP: 10.1.0.254, asNumber: 65001}}",
    ));
    cluster.reconcile();
    cluster.agents_report(10);
    cluster.networks[1]
        .status
        .as_mut()
        .unwrap()
        .conditions
        .clear();
    cluster.reconcile();
    let pools = cluster
        .pools
        .iter()
        .map(|pool| serde_json::to_value(&pool.status).unwrap());
    let modes = cluster
        .modes
        .iter()
        .map(|mode| serde_json::to_value(&mode.status).unwrap());
    let peers = cluster
        .peers
        .iter()
        .map(|peer| serde_json::to_value(&peer.status).unwrap());
    let assigned = cluster
        .networks
        .iter()
        .take(1)
        .map(|network| serde_json::to_value(&network.status).unwrap());
    insta::assert_yaml_snapshot!(
        pools
            .chain(modes)
            .chain(peers)
            .chain(assigned)
            .collect::<Vec<_>>()
    );
}

fn shown(plan: &Plan) -> serde_json::Value {
    serde_json::json!({
        "subnets": plan.subnets.create,
        "networks": plan.networks.create,
        "finalizers": plan.finalizers.iter().map(|change| &change.finalizers).collect::<Vec<_>>(),
        "pools": plan.pool_statuses.iter().map(|change| &change.status).collect::<Vec<_>>(),
        "modes": plan.mode_statuses.iter().map(|change| &change.status).collect::<Vec<_>>(),
    })
}

#[test]
fn plan_after_applied_plan_is_empty() {
    let mut cluster = cluster(3);
    cluster.reconcile();
    cluster.agents_report(2);
    cluster.reconcile();
    assert!(cluster.plan().is_empty());
    // Time alone changes nothing.
    cluster.clock += 1000;
    assert!(cluster.plan().is_empty());
}

#[test]
fn first_plan_names_only_created_blocks() {
    let plan = cluster(3).plan();
    let created: BTreeSet<_> = plan
        .subnets
        .create
        .iter()
        .map(|subnet| subnet.spec.cidr)
        .collect();
    let named: BTreeSet<_> = plan
        .networks
        .create
        .iter()
        .flat_map(|network| network.spec.subnets.clone())
        .collect();
    assert_eq!((created.len(), &created), (3, &named));
}

#[test]
fn node_network_lists_blocks_oldest_first() {
    let mut cluster = cluster(1);
    cluster.pools[0] = at(0, pool("zebra", "10.244.0.0/16", ""));
    cluster.reconcile();
    cluster.pools.push(at(9, pool("ape", "10.9.0.0/16", "")));
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    let shown: Vec<_> = cluster.networks[0]
        .spec
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.244.0.0/26", "10.9.0.0/26"]);
}

#[test]
fn foreign_conditions_cause_no_status_write() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.pools[0]
        .status
        .as_mut()
        .unwrap()
        .conditions
        .insert(0, condition("example.org/Foreign", "True", "x"));
    assert!(cluster.plan().is_empty());
}

#[test]
fn event_follows_reason_change_but_not_count_change() {
    let mut cluster = cluster(1);
    let first = cluster.plan();
    let of_pool = first.pool_statuses[0].event.as_ref().unwrap();
    let of_mode = first.mode_statuses[0].event.as_ref().unwrap();
    assert_eq!(
        (of_pool.reason.as_str(), of_pool.warning),
        ("Allocatable", false)
    );
    assert_eq!(
        (of_mode.reason.as_str(), of_mode.warning),
        ("Programming", false)
    );
    cluster.reconcile();
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    let plan = cluster.plan();
    assert_eq!(
        (plan.pool_statuses.len(), &plan.pool_statuses[0].event),
        (1, &None)
    );
}

#[test]
fn unreadable_pool_is_reported_and_keeps_its_blocks() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    let broken = cluster.pools.remove(0);
    let mut cluster_state = cluster.cluster_state();
    cluster_state.unreadable.push(Unreadable {
        kind: UserKind::Pool,
        metadata: broken.metadata,
        error: "no number".to_owned(),
    });
    let plan = plan(&cluster_state);
    assert!(plan.subnets.delete.is_empty() && plan.networks.update.is_empty());
    let ready = &plan.pool_statuses[0].status.conditions[0];
    assert_eq!(
        (ready.reason.as_str(), ready.message.as_str()),
        ("Invalid", "the object cannot be read: no number")
    );
}

#[test]
fn plan_for_5000_nodes_is_fast() {
    let mut cluster = cluster(5000);
    cluster.pools.push(at(0, pool("six", "fd00:244::/104", "")));
    cluster.pools[0] = at(0, pool("first", "10.64.0.0/12", ""));
    let start = Instant::now();
    let plan = cluster.plan();
    assert_eq!(plan.subnets.create.len(), 10_000);
    // The measured time is 30 ms. A quadratic step takes many seconds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}
