//! A node gets more blocks, and gives them back.

use netweft_crds::{BlockUsage, NodeSubnet};

use crate::testing::{Cluster, at, cluster, pool};

const NODE: &str = "worker-1";

/// The agent of the first node reports so many pods in its blocks, in their order.
fn report(cluster: &mut Cluster, pods: &[i64]) {
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    for (said, pods) in status.subnets.iter_mut().zip(pods) {
        (said.used, said.free) = (*pods, 61 - pods);
    }
}

fn grown() -> Cluster {
    let mut cluster = cluster(2);
    cluster.settle();
    report(&mut cluster, &[50]);
    cluster.settle();
    assert_eq!(
        cluster.blocks(NODE),
        ["10.244.0.0/26", "10.244.0.128/26"],
        "the next one is worker-2's"
    );
    cluster
}

#[test]
fn node_short_of_addresses_gets_one_block_per_report() {
    let mut cluster = grown();
    let shown: Vec<String> = cluster.networks[0]
        .spec
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.244.0.0/26", "10.244.0.128/26"]);
    report(&mut cluster, &[61, 20]);
    cluster.settle();
    assert_eq!(cluster.blocks(NODE).len(), 2, "the second has room");
    report(&mut cluster, &[61, 48]);
    cluster.settle();
    assert_eq!(cluster.blocks(NODE).len(), 3);
    assert_eq!(cluster.blocks("worker-2").len(), 1);
}

/// As when the NodeSubnet has been created and the write to the NodeNetwork was refused, since the agent had just told its status.
#[test]
fn unannounced_block_counts_as_free_capacity() {
    let mut cluster = cluster(1);
    cluster.settle();
    report(&mut cluster, &[50]);
    let untold = cluster.networks.clone();
    cluster.step();
    assert_eq!(cluster.blocks(NODE).len(), 2);
    cluster.networks = untold;
    cluster.settle();
    assert_eq!(cluster.blocks(NODE).len(), 2);
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

#[test]
fn exhausted_pool_names_nodes_short_of_addresses() {
    let mut cluster = cluster(1);
    cluster.pools = vec![at(0, pool("small", "10.244.0.0/26", ""))];
    cluster.settle();
    report(&mut cluster, &[50]);
    cluster.settle();
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
    let mut cluster = grown();
    report(&mut cluster, &[10, 0]);
    cluster.settle();
    assert_eq!(cluster.blocks(NODE).len(), 2, "not before its time");
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.settle();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 1);
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "not before the agent has seen that"
    );
    report(&mut cluster, &[10]);
    cluster.settle();
    assert_eq!(cluster.blocks(NODE), ["10.244.0.0/26"]);
}

#[test]
fn late_pod_in_surplus_block_restores_block() {
    let mut cluster = grown();
    report(&mut cluster, &[10, 0]);
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.settle();
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
    cluster.settle();
    assert_eq!(
        cluster.blocks(NODE).len(),
        2,
        "a live address is never freed"
    );
    // Which the next look finds: the block is not surplus any more.
    cluster.surplus.clear();
    cluster.settle();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

/// The second block is withdrawn, and its leader is about to delete it.
fn withdrawn() -> (Cluster, NodeSubnet) {
    let mut cluster = grown();
    report(&mut cluster, &[10, 0]);
    cluster.surplus = ["10-244-0-128-26".to_owned()].into();
    cluster.settle();
    report(&mut cluster, &[10]);
    let mut deleted = cluster.plan().subnets.delete;
    assert_eq!(deleted.len(), 1);
    (cluster, deleted.remove(0))
}

#[test]
fn new_leader_restores_withdrawn_block() {
    let (mut cluster, _) = withdrawn();
    cluster.surplus.clear();
    cluster.settle();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}

/// The API server deletes only the version that was looked at.
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
    assert!(cluster.plan().subnets.update.is_empty(), "once is enough");
}

/// As when every write to the NodeNetwork is refused, since the agent has just told its status.
#[test]
fn restored_block_is_written_once_per_generation() {
    let (mut cluster, _) = withdrawn();
    cluster.surplus.clear();
    let untold = cluster.networks.clone();
    cluster.step();
    cluster.networks = untold;
    assert!(cluster.plan().subnets.update.is_empty());
    *cluster.networks[0].metadata.generation.as_mut().unwrap() += 1;
    assert_eq!(cluster.plan().subnets.update.len(), 1);
}

/// Somebody has deleted the NodeNetworks: the next ones name what the old ones did not.
#[test]
fn restored_block_is_written_before_new_node_network() {
    let (mut cluster, deleted) = withdrawn();
    cluster.surplus.clear();
    cluster.networks.clear();
    let written = cluster.step().subnets.update;
    let written: Vec<_> = written.iter().map(|subnet| subnet.spec.cidr).collect();
    assert_eq!(written, [deleted.spec.cidr]);
    cluster.settle();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
}
