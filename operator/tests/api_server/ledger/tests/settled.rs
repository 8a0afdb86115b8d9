//! Nodes that have what they should, or not.

use std::time::Duration;

use super::{GRACE, Story, net};

#[test]
fn a_node_that_comes_back_in_time_has_its_blocks_or_that_is_found() {
    let back_after = |away: Duration| {
        let mut story = Story::with_grace();
        story.comes("a");
        story.is("10.0.0.0/26", "a");
        story.goes("a");
        story.orphaned("10.0.0.0/26", "a");
        story.later(away);
        story.comes("a");
        story
    };
    let mut story = back_after(GRACE / 2);
    story.later(GRACE);
    story.gone("10.0.0.0/26", "a");
    story.breach("which had come back for it in time");
    let mut story = back_after(GRACE);
    story.gone("10.0.0.0/26", "a");
    story.is_in_order();

    // Another block is no substitute.
    let mut story = back_after(GRACE / 2);
    story.gone("10.0.0.0/26", "a");
    story.is("10.0.0.64/26", "a");
    story.lists("a", &["10.0.0.64/26"]);
    assert_eq!(story.unsettled(), ["a came back and lacks 10.0.0.0/26"]);
}

#[test]
fn a_node_that_lists_a_block_of_another_or_of_nobody_is_found() {
    let mut story = Story::with_grace();
    story.is("10.0.0.0/26", "a");
    story.lists("a", &["10.0.0.0/26"]);
    assert_eq!(story.book.foreign(), [""; 0]);
    story.lists("b", &["10.0.0.0/26", "10.0.0.64/26"]);
    assert_eq!(story.book.foreign().len(), 2);
}

#[test]
fn nothing_is_settled_while_a_node_has_too_few_or_too_many_or_others_blocks_or_old_words() {
    let settled = || {
        let mut story = Story::with_grace();
        story.comes("a");
        story.is("10.0.0.0/26", "a");
        story.lists("a", &["10.0.0.0/26"]);
        assert_eq!(story.unsettled(), [""; 0]);
        story
    };
    let unsettling: [fn(&mut Story); 7] = [
        |story| story.comes("b"),
        |story| story.is("10.0.0.64/26", "a"),
        |story| story.orphaned("10.0.0.0/26", "a"),
        |story| story.is("10.0.0.64/26", "b"),
        |story| story.lists("a", &[]),
        |story| story.book.node_is("a", Some("another".to_owned())),
        |story| story.book.node_moves("a", net("192.0.2.2/32").addr()),
    ];
    for unsettle in unsettling {
        let mut story = settled();
        unsettle(&mut story);
        assert!(!story.unsettled().is_empty());
    }
    // What waits for its grace is not what is left at last.
    let mut story = settled();
    story.orphaned("10.0.0.64/26", "b");
    assert_eq!(story.unsettled(), [""; 0]);
    assert_eq!(story.book.unsettled(|_| 1, true).len(), 1);
}
