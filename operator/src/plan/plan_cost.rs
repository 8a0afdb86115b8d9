//! The cost of a plan grows with the size of the cluster, not with its square.

use std::time::{Duration, Instant};

use crate::testing::{cluster, pool};

/// Shortest planning time in a cluster whose plan is empty.
fn planning_time(nodes: usize) -> Duration {
    let mut cluster = cluster(nodes);
    // One block of each family for every node.
    cluster.pools = vec![
        pool("v4", "10.64.0.0/12", ""),
        pool("v6", "fd00:10:64::/64", ""),
    ];
    cluster.reconcile();
    cluster.agents_report(5);
    cluster.reconcile();
    let cluster_state = cluster.cluster_state();
    let tries = (0..5).map(|_| {
        let start = Instant::now();
        assert!(crate::plan(&cluster_state).is_empty());
        start.elapsed()
    });
    tries.min().unwrap()
}

/// With ten times the nodes, planning takes about twenty times as long: fewer objects are in the CPU's caches. A
/// quadratic step makes it more than fifty times.
#[test]
fn planning_time_grows_less_than_quadratically() {
    let (few, many) = (planning_time(500), planning_time(5000));
    println!("500 nodes: {few:?}, 5,000 nodes: {many:?}");
    assert!(many < few * 40, "500 nodes: {few:?}, 5,000 nodes: {many:?}");
}
