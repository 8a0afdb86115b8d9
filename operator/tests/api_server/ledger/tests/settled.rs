//! Nodes that have what they should, or not.

use std::time::Duration;

use super::{GRACE, Scenario, net};

#[test]
fn lost_block_of_node_returned_in_grace_is_detected() {
    let back_after = |away: Duration| {
        let mut scenario = Scenario::with_grace();
        scenario.comes("a");
        scenario.is("10.0.0.0/26", "a");
        scenario.goes("a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.later(away);
        scenario.comes("a");
        scenario
    };
    let mut scenario = back_after(GRACE / 2);
    scenario.later(GRACE);
    scenario.gone("10.0.0.0/26", "a");
    scenario.breach("which had come back for it in time");
    let mut scenario = back_after(GRACE);
    scenario.gone("10.0.0.0/26", "a");
    scenario.is_in_order();

    // Another block is no substitute.
    let mut scenario = back_after(GRACE / 2);
    scenario.gone("10.0.0.0/26", "a");
    scenario.is("10.0.0.64/26", "a");
    scenario.lists("a", &["10.0.0.64/26"]);
    assert_eq!(scenario.unsettled(), ["a came back and lacks 10.0.0.0/26"]);
}

#[test]
fn foreign_block_in_node_network_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.is("10.0.0.0/26", "a");
    scenario.lists("a", &["10.0.0.0/26"]);
    assert_eq!(scenario.book.foreign(), [""; 0]);
    scenario.lists("b", &["10.0.0.0/26", "10.0.0.64/26"]);
    assert_eq!(scenario.book.foreign().len(), 2);
}

#[test]
fn inconsistent_blocks_of_node_are_not_settled() {
    let settled = || {
        let mut scenario = Scenario::with_grace();
        scenario.comes("a");
        scenario.is("10.0.0.0/26", "a");
        scenario.lists("a", &["10.0.0.0/26"]);
        assert_eq!(scenario.unsettled(), [""; 0]);
        scenario
    };
    let unsettling: [fn(&mut Scenario); 7] = [
        |scenario| scenario.comes("b"),
        |scenario| scenario.is("10.0.0.64/26", "a"),
        |scenario| scenario.orphaned("10.0.0.0/26", "a"),
        |scenario| scenario.is("10.0.0.64/26", "b"),
        |scenario| scenario.lists("a", &[]),
        |scenario| scenario.book.node_is("a", Some("another".to_owned())),
        |scenario| scenario.book.node_moves("a", net("192.0.2.2/32").addr()),
    ];
    for unsettle in unsettling {
        let mut scenario = settled();
        unsettle(&mut scenario);
        assert!(!scenario.unsettled().is_empty());
    }
    // What waits for its grace is not what is left at last.
    let mut scenario = settled();
    scenario.orphaned("10.0.0.64/26", "b");
    assert_eq!(scenario.unsettled(), [""; 0]);
    assert_eq!(scenario.book.unsettled(|_| 1, true).len(), 1);
}
