//! Blocks that nodes get and release because of their utilization.

use netweft_crds::{BlockUsage, NodeSubnet};

use crate::testing::{Cluster, at, cluster, pool};

const NODE: &str = "worker-1";

/// The agent of the first node reports these numbers of pods in its blocks.
fn report(cluster: &mut Cluster, pods: &[i64]) {
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    for (usage, pods) in status.subnets.iter_mut().zip(pods) {
        (usage.used, usage.free) = (*pods, 61 - pods);
    }
}

fn with_second_block() -> Cluster {
    let mut cluster = cluster(2);
    cluster.reconcile();
    report(&mut cluster, &[50]);
    cluster.reconcile();
    assert_eq!(
        cluster.blocks(NODE),
        ["10.244.0.0/26", "10.244.0.128/26"],
        "10.244.0.64/26 belongs to worker-2"
    );
    cluster
}

#[test]
fn node_short_of_addresses_gets_one_block_per_report() {
    let mut cluster = with_second_block();
    let shown: Vec<String> = cluster.networks[0]
        .spec
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.244.0.0/26", "10.244.0.128/26"]);
    report(&mut cluster, &[61, 20]);
    cluster.reconcile();
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "the second block has free addresses"
    );
    report(&mut cluster, &[61, 48]);
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE).len(), 3);
    assert_eq!(cluster.blocks("worker-2").len(), 1);
}

/// The NodeSubnet was created, but the write to the NodeNetwork failed with a conflict.
#[test]
fn unannounced_block_counts_as_free_capacity() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    report(&mut cluster, &[50]);
    let networks = cluster.networks.clone();
    cluster.step();
    assert_eq!(cluster.blocks(NODE).len(), 2);
    cluster.networks = networks;
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE).len(), 2);
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

#[test]
fn exhausted_pool_names_nodes_short_of_addresses() {
    let mut cluster = cluster(1);
    cluster.pools = vec![at(0, pool("small", "10.244.0.0/26", ""))];
    cluster.reconcile();
    report(&mut cluster, &[50]);
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("small"),
        "False Exhausted: no block is left, and few addresses are free on worker-1; create another IPPool"
    );
    assert_eq!(
        cluster.node_message(NODE),
        "True SubnetsAssigned: 1 block of small; no block is left in small"
    );
}

#[test]
fn surplus_block_is_withdrawn_then_deleted() {
    let mut cluster = with_second_block();
    report(&mut cluster, &[10, 0]);
    cluster.reconcile();
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "the surplus delay is not over"
    );
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 1);
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "the agent has not acknowledged yet"
    );
    report(&mut cluster, &[10]);
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE), ["10.244.0.0/26"]);
}

#[test]
fn late_pod_in_surplus_block_restores_block() {
    let mut cluster = with_second_block();
    report(&mut cluster, &[10, 0]);
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.reconcile();
    report(&mut cluster, &[10]);
    cluster.networks[0]
        .status
        .as_mut()
        .unwrap()
        .subnets
        .push(BlockUsage {
            cidr: "10.244.0.128/26".parse().unwrap(),
            used: 1,
            free: 0,
        });
    cluster.reconcile();
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "a block with a pod is not released"
    );
    // The next observation finds that the block is not surplus any more.
    cluster.surplus.clear();
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

/// The second block is withdrawn, and the leader is about to delete it.
fn withdrawn() -> (Cluster, NodeSubnet) {
    let mut cluster = with_second_block();
    report(&mut cluster, &[10, 0]);
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.reconcile();
    report(&mut cluster, &[10]);
    let mut deleted = cluster.plan().subnets.delete;
    assert_eq!(deleted.len(), 1);
    (cluster, deleted.remove(0))
}

#[test]
fn new_leader_restores_withdrawn_block() {
    let (mut cluster, _) = withdrawn();
    cluster.surplus.clear();
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

/// The API server deletes only the resource version that the plan is based on.
#[test]
fn restored_block_gets_new_resource_version() {
    let (mut cluster, deleted) = withdrawn();
    cluster.surplus.clear();
    let plan = cluster.step();
    // NodeSubnets are written before NodeNetworks.
    assert_eq!(plan.networks.update[0].spec.subnets.len(), 2);
    let mut subnets = cluster.subnets.iter();
    let back = subnets.find(|subnet| subnet.metadata.uid == deleted.metadata.uid);
    assert_ne!(
        back.unwrap().metadata.resource_version,
        deleted.metadata.resource_version
    );
    assert!(
        cluster.plan().subnets.update.is_empty(),
        "the NodeSubnet is written only once"
    );
}

/// Every write to the NodeNetwork fails with a conflict.
#[test]
fn restored_block_is_written_once_per_generation() {
    let (mut cluster, _) = withdrawn();
    cluster.surplus.clear();
    let networks = cluster.networks.clone();
    cluster.step();
    cluster.networks = networks;
    assert!(cluster.plan().subnets.update.is_empty());
    *cluster.networks[0].metadata.generation.as_mut().unwrap() += 1;
    assert_eq!(cluster.plan().subnets.update.len(), 1);
}

/// A user has deleted the NodeNetworks. The new ones list the withdrawn block.
#[test]
fn restored_block_is_written_before_new_node_network() {
    let (mut cluster, deleted) = withdrawn();
    cluster.surplus.clear();
    cluster.networks.clear();
    let written = cluster.step().subnets.update;
    let written: Vec<_> = written.iter().map(|subnet| subnet.spec.cidr).collect();
    assert_eq!(written, [deleted.spec.cidr]);
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}
