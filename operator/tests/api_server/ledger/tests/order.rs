//! Blocks that are given again.

use super::{GRACE, LAG, Story, net, subnet};
use crate::ledger::Rules;
use netweft_crds::SubnetState;

#[test]
fn freed_blocks_that_go_before_unused_ones_or_before_others_that_were_free_for_longer_are_found() {
    let [a, b, c] = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"];
    let freed_one_after_the_other = |all: &[&str]| {
        let blocks = all.iter().map(|block| net(block)).collect();
        let mut story = Story::begin(Rules {
            grace: Some(GRACE),
            blocks: [("p".to_owned(), blocks)].into(),
            ..Rules::default()
        });
        for block in [a, b] {
            story.orphaned(block, "x");
        }
        story.later(GRACE);
        story.gone(b, "x");
        story.later(LAG * 2);
        story.gone(a, "x");
        story.book.at_rest();
        story.is_in_order();
        story
    };
    let given = |mut story: Story, blocks: &[&str]| {
        for block in blocks {
            story.is(block, "y");
        }
        story.book.at_rest();
        story
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
    let mut story = freed_one_after_the_other(&[a, b, c]);
    story.book.leads_anew();
    given(story, &[a]).is_in_order();
}

#[test]
fn the_most_blocks_that_a_node_had_at_a_time_are_counted_by_pool() {
    let mut story = Story::with_grace();
    let mut other = subnet("10.0.0.192/26", "a", SubnetState::Active);
    other.spec.pool = "q".to_owned();
    story.sees(&other);
    story.is("10.0.0.0/26", "a");
    story.is("10.0.0.0/26", "a");
    assert_eq!(story.book.most(), 1);
    story.is("10.0.0.64/26", "a");
    story.gone("10.0.0.64/26", "a");
    story.is("10.0.0.128/26", "b");
    assert_eq!(story.book.most(), 2);
}
