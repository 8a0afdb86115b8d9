//! What a plan costs grows with the cluster, not with its square.

use std::time::{Duration, Instant};

use crate::testing::{cluster, pool};

/// The shortest time that a plan takes in a cluster that is as it should be.
fn planning(nodes: usize) -> Duration {
    let mut cluster = cluster(nodes);
    // A block of each family for every node.
    cluster.pools = vec![
        pool("v4", "10.64.0.0/12", ""),
        pool("v6", "fd00:10:64::/64", ""),
    ];
    cluster.settle();
    cluster.agents_report(5);
    cluster.settle();
    let cluster_state = cluster.cluster_state();
    let tries = (0..5).map(|_| {
        let begun = Instant::now();
        assert!(crate::plan(&cluster_state).is_empty());
        begun.elapsed()
    });
    tries.min().unwrap()
}

/// Twenty times as slow is measured, since little of what is looked at is in the processor's caches then; one quadratic step
/// made it more than fifty.
#[test]
fn planning_time_grows_less_than_quadratically() {
    let (few, many) = (planning(500), planning(5000));
    println!("500 nodes: {few:?}, 5,000 nodes: {many:?}");
    assert!(many < few * 40, "500 nodes: {few:?}, 5,000 nodes: {many:?}");
}
