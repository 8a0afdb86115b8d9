//! Blocks that are given again.

use super::{GRACE, LAG, Scenario, net, subnet};
use crate::ledger::Rules;
use netweft_crds::SubnetState;

#[test]
fn wrong_order_of_block_reuse_is_detected() {
    let [a, b, c] = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"];
    let freed_one_after_the_other = |all: &[&str]| {
        let blocks = all.iter().map(|block| net(block)).collect();
        let mut scenario = Scenario::begin(Rules {
            grace: Some(GRACE),
            blocks: [("p".to_owned(), blocks)].into(),
            ..Rules::default()
        });
        for block in [a, b] {
            scenario.orphaned(block, "x");
        }
        scenario.later(GRACE);
        scenario.gone(b, "x");
        scenario.later(LAG * 2);
        scenario.gone(a, "x");
        scenario.book.at_rest();
        scenario.is_in_order();
        scenario
    };
    let given = |mut scenario: Scenario, blocks: &[&str]| {
        for block in blocks {
            scenario.is(block, "y");
        }
        scenario.book.at_rest();
        scenario
    };
    given(freed_one_after_the_other(&[a, b, c]), &[b])
        .breach("before 10.0.0.128/26, which was never used");
    given(freed_one_after_the_other(&[a, b]), &[a])
        .breach("before 10.0.0.64/26, which was free for longer");
    // Side by side, in any order.
    given(freed_one_after_the_other(&[a, b, c]), &[b, c]).is_in_order();
    given(freed_one_after_the_other(&[a, b]), &[a, b]).is_in_order();
    given(freed_one_after_the_other(&[a, b]), &[b]).is_in_order();
    // To a new leader all are alike.
    let mut scenario = freed_one_after_the_other(&[a, b, c]);
    scenario.book.leads_anew();
    given(scenario, &[a]).is_in_order();
}

#[test]
fn maximum_blocks_per_node_are_counted_by_pool() {
    let mut scenario = Scenario::with_grace();
    let mut other = subnet("10.0.0.192/26", "a", SubnetState::Active);
    other.spec.pool = "q".to_owned();
    scenario.sees(&other);
    scenario.is("10.0.0.0/26", "a");
    scenario.is("10.0.0.0/26", "a");
    assert_eq!(scenario.book.most(), 1);
    scenario.is("10.0.0.64/26", "a");
    scenario.gone("10.0.0.64/26", "a");
    scenario.is("10.0.0.128/26", "b");
    assert_eq!(scenario.book.most(), 2);
}
