//! Of which pools a node gets blocks, and when.

use netweft_crds::BlockRequest;

use crate::testing::{Cluster, at, cluster, pool};

const NODE: &str = "worker-1";
const FOR_WEB: &str = "namespaceSelector: {matchLabels: {team: web}}";

/// One node and these pools: name, range, further fields.
fn with(pools: &[(&str, &str, &str)]) -> Cluster {
    let mut cluster = cluster(1);
    let pools = pools.iter();
    cluster.pools = pools
        .map(|(name, cidr, more)| at(0, pool(name, cidr, more)))
        .collect();
    cluster.settle();
    cluster
}

/// Pods of the node ask for a first block of any of these pools.
fn ask(cluster: &mut Cluster, pools: &[&str]) {
    let status = cluster.networks[0].status.get_or_insert_default();
    let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    status.block_requests.push(BlockRequest { pools });
    cluster.settle();
}

/// So many addresses are in use in each of the node's blocks.
fn fill(cluster: &mut Cluster, pods: i64) {
    cluster.agents_report(pods);
    cluster.settle();
}

/// Nearly all addresses are in use in those of the node's blocks that begin so.
fn shorten(cluster: &mut Cluster, begin: &str) {
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    let blocks = status.subnets.iter_mut();
    for said in blocks.filter(|said| said.cidr.to_string().starts_with(begin)) {
        (said.used, said.free) = (60, 1);
    }
    cluster.settle();
}

#[test]
fn a_node_has_one_block_of_each_family_of_the_first_pool_for_everybody() {
    let cluster = with(&[
        ("b", "10.22.0.0/16", ""),
        ("a", "10.21.0.0/16", ""),
        ("web", "10.23.0.0/16", FOR_WEB),
        ("six", "fd00:244::/112", ""),
        ("six-web", "fd00:245::/112", FOR_WEB),
    ]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "fd00:244::/122"]);
}

#[test]
fn a_pool_for_some_nodes_comes_before_those_for_all() {
    let some = "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-1}}";
    let cluster = with(&[("a", "10.21.0.0/16", ""), ("rack", "10.22.0.0/16", some)]);
    assert_eq!(cluster.blocks(NODE), ["10.22.0.0/26"]);
}

#[test]
fn where_every_pool_is_for_some_namespaces_a_node_has_one_block_all_the_same() {
    let cluster = with(&[
        ("web", "10.23.0.0/16", FOR_WEB),
        ("webs", "10.24.0.0/16", FOR_WEB),
    ]);
    assert_eq!(cluster.blocks(NODE), ["10.23.0.0/26"]);
}

#[test]
fn a_pool_for_some_namespaces_gives_its_first_block_when_a_pod_asks() {
    let mut cluster = with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/16", FOR_WEB)]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
    ask(&mut cluster, &["web"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
    // The agent has not withdrawn the request yet.
    cluster.settle();
    assert_eq!(cluster.blocks(NODE).len(), 2);
}

#[test]
fn a_request_is_met_by_one_of_its_pools() {
    let mut cluster = with(&[
        ("a", "10.21.0.0/16", ""),
        ("web", "10.23.0.0/16", FOR_WEB),
        ("web-2", "10.24.0.0/16", FOR_WEB),
    ]);
    ask(&mut cluster, &["web", "web-2"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
}

#[test]
fn a_request_of_a_new_node_is_met_by_the_block_it_gets_anyway() {
    let mut cluster = cluster(1);
    cluster.pools[0].spec.disabled = true;
    cluster.settle();
    ask(&mut cluster, &["default-v4"]);
    assert!(cluster.blocks(NODE).is_empty(), "it is disabled");
    cluster.pools[0].spec.disabled = false;
    cluster.settle();
    assert_eq!(cluster.blocks(NODE), ["10.244.0.0/26"]);
}

#[test]
fn a_request_for_pools_that_are_none_of_the_nodes_is_passed_over() {
    let elsewhere = "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}";
    let mut cluster = with(&[
        ("a", "10.21.0.0/16", ""),
        ("rack", "10.22.0.0/16", elsewhere),
    ]);
    ask(&mut cluster, &["rack", "missing"]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
}

#[test]
fn a_request_that_no_pool_can_meet_is_told_of() {
    let mut cluster = with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/26", FOR_WEB)]);
    let mut other = cluster.subnets[0].clone();
    other.spec.node = "gone".to_owned();
    other.spec.pool = "web".to_owned();
    other.spec.cidr = "10.23.0.0/26".parse().unwrap();
    cluster.subnets.push(at(0, other.spec.into_object()));
    ask(&mut cluster, &["web"]);
    assert_eq!(
        cluster.pool_says("web"),
        "False Exhausted: no block is left for worker-1; 1 block of deleted Nodes about to be reclaimed; create another IPPool"
    );
    assert_eq!(
        cluster.node_says(NODE),
        "True SubnetsAssigned: 1 subnet of a; no block is left in web"
    );
}

#[test]
fn when_the_first_pool_is_spent_the_next_serves_before_a_pod_has_to_ask() {
    let mut cluster = with(&[("a", "10.21.0.0/26", ""), ("b", "10.22.0.0/16", "")]);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26"]);
    fill(&mut cluster, 50);
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.22.0.0/26"]);
    assert_eq!(
        cluster.pool_says("a"),
        "True NearlyExhausted: only 0 blocks free: create another IPPool before they are spent",
        "the other has enough"
    );
}

#[test]
fn a_pool_that_runs_short_while_another_serves_the_same_pods_grows_but_does_not_complain() {
    let mut cluster = with(&[("a", "10.21.0.0/16", ""), ("b", "10.22.0.0/25", "")]);
    ask(&mut cluster, &["b"]);
    fill(&mut cluster, 0);
    shorten(&mut cluster, "10.22");
    assert_eq!(
        cluster.blocks(NODE),
        ["10.21.0.0/26", "10.22.0.0/26", "10.22.0.64/26"]
    );
    shorten(&mut cluster, "10.22");
    assert_eq!(cluster.blocks(NODE).len(), 3);
    assert!(cluster.pool_says("b").starts_with("True NearlyExhausted"));
}

#[test]
fn a_pool_for_some_namespaces_that_runs_short_gets_no_help_from_others() {
    let mut cluster = with(&[("a", "10.21.0.0/16", ""), ("web", "10.23.0.0/26", FOR_WEB)]);
    ask(&mut cluster, &["web"]);
    shorten(&mut cluster, "10.23");
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.23.0.0/26"]);
    assert_eq!(
        cluster.pool_says("web"),
        "False Exhausted: no block is left, and addresses run short on worker-1; create another IPPool"
    );
}

#[test]
fn a_disabled_pool_is_followed_by_the_next_at_once() {
    let mut cluster = with(&[("a", "10.21.0.0/16", ""), ("b", "10.22.0.0/16", "")]);
    cluster.pools[0].spec.disabled = true;
    cluster.settle();
    assert_eq!(cluster.blocks(NODE), ["10.21.0.0/26", "10.22.0.0/26"]);
}
