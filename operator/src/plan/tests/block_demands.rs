//! The pools of a node's blocks, and the time of their assignment.

use netweft_crds::BlockRequest;

use crate::testing::{Cluster, at, cluster, pool};

const NODE: &str = "worker-1";
const FOR_WEB: &str = "namespaceSelector: {matchLabels: {team: web}}";

/// A cluster of one node with these pools: name, CIDR, other fields.
fn cluster_with(pools: &[(&str, &str, &str)]) -> Cluster {
    let mut cluster = cluster(1);
    let pools = pools.iter();
    cluster.pools = pools
        .map(|(name, cidr, more)| at(0, pool(name, cidr, more)))
        .collect();
    cluster.reconcile();
    cluster
}

/// Pods of the node request a first block of one of these pools.
fn request_block(cluster: &mut Cluster, pools: &[&str]) {
    let status = cluster.networks[0].status.get_or_insert_default();
    let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    status.block_requests.push(BlockRequest { pools });
    cluster.reconcile();
}

/// The agent reports `pods` addresses in use in each block of the node.
fn fill(cluster: &mut Cluster, pods: i64) {
    cluster.agents_report(pods);
    cluster.reconcile();
}

/// The agent reports nearly full blocks, for all blocks whose CIDR starts with `prefix`.
fn nearly_fill(cluster: &mut Cluster, prefix: &str) {
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    let blocks = status.subnets.iter_mut();
    for usage in blocks.filter(|usage| usage.cidr.to_string().starts_with(prefix)) {
        (usage.used, usage.free) = (60, 1);
    }
    cluster.reconcile();
}

#[test]
fn node_gets_one_block_per_family_of_first_general_pool() {
    let cluster = cluster_with(&[
        ("b", "10.22.0.0/16", ""),
        ("a", "10.21.0.0/16", ""),
        ("web", "10.23.0.0/16", FOR_WEB),
        ("six", "fd00:244::/112", ""),
        ("six-web", "fd00:245::/112", FOR_WEB),
    ]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "fd00:244::/122"]);
}

#[test]
fn node_selector_pool_precedes_general_pool() {
    let some = "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-1}}";
    let cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("rack", "10.22.0.0/16", some)]);
    assert_eq!(cluster.blocks(NODE), ["10.22.0.0/26"]);
}

#[test]
fn node_gets_block_when_all_pools_are_for_namespaces() {
    let cluster = cluster_with(&[
        ("web", "10.23.0.0/16", FOR_WEB),
        ("webs", "10.24.0.0/16", FOR_WEB),
    ]);
    assert_eq!(cluster.blocks(NODE), ["10.23.0.0/26"]);
}

#[test]
fn namespace_pool_assigns_first_block_on_pod_request() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/16", FOR_WEB)]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
    request_block(&mut cluster, &["web"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
    // The agent has not withdrawn the request yet.
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE).len(), 2);
}

#[test]
fn block_request_is_served_by_one_of_its_pools() {
    let mut cluster = cluster_with(&[
        ("a", "10.21.0.0/16", ""),
        ("web", "10.23.0.0/16", FOR_WEB),
        ("web-2", "10.24.0.0/16", FOR_WEB),
    ]);
    request_block(&mut cluster, &["web", "web-2"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
}

#[test]
fn block_request_of_new_node_is_served_by_initial_block() {
    let mut cluster = cluster(1);
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    request_block(&mut cluster, &["default-v4"]);
    assert!(cluster.blocks(NODE).is_empty(), "the pool is disabled");
    cluster.pools[0].spec.disabled = false;
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE), ["10.244.0.0/26"]);
}

#[test]
fn block_request_for_unavailable_pools_is_ignored() {
    let elsewhere = "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}";
    let mut cluster = cluster_with(&[
        ("a", "10.21.0.0/16", ""),
        ("rack", "10.22.0.0/16", elsewhere),
    ]);
    request_block(&mut cluster, &["rack", "missing"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
}

#[test]
fn unserved_block_request_is_reported_as_exhausted() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/26", FOR_WEB)]);
    let mut other = cluster.subnets[0].clone();
    other.spec.node = "deleted".to_owned();
    other.spec.pool = "web".to_owned();
    other.spec.cidr = "10.23.0.0/26".parse().unwrap();
    cluster.subnets.push(at(0, other.spec.into_object()));
    request_block(&mut cluster, &["web"]);
    assert_eq!(
        cluster.pool_message("web"),
        "False Exhausted: no block is left for worker-1; 1 block of deleted Nodes about to be reclaimed; create another IPPool"
    );
    assert_eq!(
        cluster.node_message(NODE),
        "True SubnetsAssigned: 1 block of a; no block is left in web"
    );
}

#[test]
fn next_pool_serves_node_before_first_is_exhausted() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/26", ""), ("b", "10.22.0.0/16", "")]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
    fill(&mut cluster, 50);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.22.0.0/26"]);
    assert_eq!(
        cluster.pool_message("a"),
        "True NearlyExhausted: only 0 blocks free: create another IPPool before the pool is exhausted",
        "the other pool has free addresses"
    );
}

#[test]
fn short_pool_with_alternative_grows_without_exhausted() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("b", "10.22.0.0/25", "")]);
    request_block(&mut cluster, &["b"]);
    fill(&mut cluster, 0);
    nearly_fill(&mut cluster, "10.22");
    assert_eq!(
        cluster.blocks(NODE),
        ["10.21.0.0/26", "10.22.0.0/26", "10.22.0.64/26"]
    );
    nearly_fill(&mut cluster, "10.22");
    assert_eq!(cluster.blocks(NODE).len(), 3);
    assert!(
        cluster
            .pool_message("b")
            .starts_with("True NearlyExhausted")
    );
}

#[test]
fn short_namespace_pool_gets_no_blocks_of_other_pools() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/26", FOR_WEB)]);
    request_block(&mut cluster, &["web"]);
    nearly_fill(&mut cluster, "10.23");
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
    assert_eq!(
        cluster.pool_message("web"),
        "False Exhausted: no block is left, and few addresses are free on worker-1; create another IPPool"
    );
}

#[test]
fn disabled_pool_is_replaced_by_next_pool_at_once() {
    let mut cluster = cluster_with(&[("a", "10.21.0.0/16", ""), ("b", "10.22.0.0/16", "")]);
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.22.0.0/26"]);
}
