//! Deletion of pools.

use kube::ResourceExt;
use netweft_crds::names::POOL_FINALIZER;

use crate::plan::tests::delete_pool;
use crate::testing::{cluster, node};

#[test]
fn deleted_pool_withdraws_blocks_before_deleting_them() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster.agents_report(3);
    cluster.reconcile();
    delete_pool(&mut cluster, "default-v4");
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("default-v4"),
        "False InUse: being deleted; waiting until 2 blocks are without pods (see status.remainingPods) on worker-1, worker-2"
    );
    assert_eq!(
        cluster.networks[0].spec.subnets.len(),
        1,
        "pods have addresses of the block"
    );
    // Without pods, but with tunnel addresses, the blocks are withdrawn.
    cluster.agents_report(0);
    cluster.reconcile();
    assert!(
        cluster
            .networks
            .iter()
            .all(|network| network.spec.subnets.is_empty())
    );
    assert_eq!(
        cluster.subnets.len(),
        2,
        "the agents have not acknowledged yet"
    );
    cluster.agents_report(0);
    cluster.reconcile();
    assert!(cluster.subnets.is_empty() && cluster.pools.is_empty());
}

#[test]
fn late_pod_in_withdrawn_block_keeps_block() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    delete_pool(&mut cluster, "default-v4");
    cluster.agents_report(0);
    let mut usage = cluster.networks[0].status.as_ref().unwrap().subnets.clone();
    usage[0].used = 1;
    cluster.reconcile();
    assert!(cluster.networks[0].spec.subnets.is_empty());
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    status.subnets = usage;
    status.links.clear();
    cluster.reconcile();
    assert_eq!(cluster.subnets.len(), 1);
    assert_eq!(cluster.pools.len(), 1);
}

#[test]
fn acknowledgement_of_old_generation_releases_no_block() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.agents_report(0);
    delete_pool(&mut cluster, "default-v4");
    cluster.networks[0].metadata.generation = Some(7);
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 1);
}

/// A former leader has created the block, and its write to the NodeNetwork may still arrive.
#[test]
fn unannounced_block_is_announced_before_withdrawal() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.agents_report(50);
    let networks = cluster.networks.clone();
    cluster.step();
    assert_eq!(cluster.subnets.len(), 2);
    cluster.networks = networks;
    delete_pool(&mut cluster, "default-v4");
    let plan = cluster.step();
    assert!(plan.subnets.delete.is_empty());
    assert_eq!(cluster.networks[0].spec.subnets.len(), 2);
    for _ in 0..2 {
        cluster.agents_report(0);
        cluster.reconcile();
    }
    assert!(cluster.subnets.is_empty() && cluster.pools.is_empty());
}

#[test]
fn deleted_pool_assigns_no_new_blocks() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    delete_pool(&mut cluster, "default-v4");
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    cluster.reconcile();
    assert!(cluster.blocks("worker-2").is_empty());
}

#[test]
fn pool_has_finalizer_from_first_to_last_block() {
    let mut cluster = cluster(0);
    cluster.pools[0].metadata.finalizers = Some(vec!["other/one".to_owned()]);
    cluster.reconcile();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one"]);
    cluster.nodes.push(node("worker-1", &["10.1.0.1"]));
    cluster.reconcile();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one", POOL_FINALIZER]);
    cluster.subnets.clear();
    cluster.nodes.clear();
    delete_pool(&mut cluster, "default-v4");
    cluster.reconcile();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one"]);
}
