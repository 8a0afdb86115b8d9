//! Assignments of released blocks.

use super::{GRACE, LAG, Scenario, net, subnet};
use crate::invariants::InvariantConfig;
use netweft_crds::SubnetState;

#[test]
fn wrong_order_of_block_reuse_is_detected() {
    let [a, b, c] = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"];
    let released_one_after_the_other = |all: &[&str]| {
        let blocks = all.iter().map(|block| net(block)).collect();
        let mut scenario = Scenario::start(InvariantConfig {
            grace: Some(GRACE),
            blocks: [("p".to_owned(), blocks)].into(),
            ..InvariantConfig::default()
        });
        for block in [a, b] {
            scenario.orphaned(block, "x");
        }
        scenario.advance(GRACE);
        scenario.deleted(b, "x");
        scenario.advance(LAG * 2);
        scenario.deleted(a, "x");
        scenario.checker.check_converged();
        scenario.expect_no_violation();
        scenario
    };
    let assigned = |mut scenario: Scenario, blocks: &[&str]| {
        for block in blocks {
            scenario.active(block, "y");
        }
        scenario.checker.check_converged();
        scenario
    };
    assigned(released_one_after_the_other(&[a, b, c]), &[b])
        .expect_violation("before 10.0.0.128/26, which was never used");
    assigned(released_one_after_the_other(&[a, b]), &[a])
        .expect_violation("before 10.0.0.64/26, which was released earlier");
    // Concurrent assignments in any order.
    assigned(released_one_after_the_other(&[a, b, c]), &[b, c]).expect_no_violation();
    assigned(released_one_after_the_other(&[a, b]), &[a, b]).expect_no_violation();
    assigned(released_one_after_the_other(&[a, b]), &[b]).expect_no_violation();
    // For a new leader all free blocks are equal.
    let mut scenario = released_one_after_the_other(&[a, b, c]);
    scenario.checker.reset_leader();
    assigned(scenario, &[a]).expect_no_violation();
}

#[test]
fn maximum_blocks_per_node_are_counted_by_pool() {
    let mut scenario = Scenario::with_grace();
    let mut other = subnet("10.0.0.192/26", "a", SubnetState::Active);
    other.spec.pool = "q".to_owned();
    scenario.observe(&other);
    scenario.active("10.0.0.0/26", "a");
    scenario.active("10.0.0.0/26", "a");
    assert_eq!(scenario.checker.max_blocks(), 1);
    scenario.active("10.0.0.64/26", "a");
    scenario.deleted("10.0.0.64/26", "a");
    scenario.active("10.0.0.128/26", "b");
    assert_eq!(scenario.checker.max_blocks(), 2);
}
