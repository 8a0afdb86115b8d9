//! What a plan costs grows with the cluster, not with its square.

use std::time::{Duration, Instant};

use crate::testing::{cluster, pool};

/// The shortest time that a plan takes in a cluster that is as it should be.
fn planning(nodes: usize) -> Duration {
    let mut cluster = cluster(nodes);
    // A block of each family for every node.
    cluster.pools = vec![
        pool("v4", "10.64.0.0/13", ""),
        pool("v6", "fd00:10:64::/64", ""),
    ];
    cluster.settle();
    cluster.agents_report(5);
    cluster.settle();
    let world = cluster.world();
    let tries = (0..5).map(|_| {
        let begun = Instant::now();
        assert!(crate::plan(&world).is_empty());
        begun.elapsed()
    });
    tries.min().unwrap()
}

#[test]
fn four_times_as_many_nodes_make_a_plan_no_more_than_eight_times_as_slow() {
    let (few, many) = (planning(400), planning(1600));
    println!("400 nodes: {few:?}, 1600 nodes: {many:?}");
    assert!(many < few * 8, "400 nodes: {few:?}, 1600 nodes: {many:?}");
}
