//! Converged and not converged nodes.

use std::time::Duration;

use super::{GRACE, Scenario, net};

#[test]
fn lost_block_of_node_returned_in_grace_is_detected() {
    let returned_after = |away: Duration| {
        let mut scenario = Scenario::with_grace();
        scenario.node_created("a");
        scenario.active("10.0.0.0/26", "a");
        scenario.node_deleted("a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.advance(away);
        scenario.node_created("a");
        scenario
    };
    let mut scenario = returned_after(GRACE / 2);
    scenario.advance(GRACE);
    scenario.deleted("10.0.0.0/26", "a");
    scenario.expect_violation("although its Node has returned in time");
    let mut scenario = returned_after(GRACE);
    scenario.deleted("10.0.0.0/26", "a");
    scenario.expect_no_violation();

    // Another block does not replace the lost one.
    let mut scenario = returned_after(GRACE / 2);
    scenario.deleted("10.0.0.0/26", "a");
    scenario.active("10.0.0.64/26", "a");
    scenario.lists("a", &["10.0.0.64/26"]);
    assert_eq!(
        scenario.differences(),
        ["a has returned and lacks 10.0.0.0/26"]
    );
}

#[test]
fn foreign_block_in_node_network_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.active("10.0.0.0/26", "a");
    scenario.lists("a", &["10.0.0.0/26"]);
    assert_eq!(scenario.checker.blocks_of_other_nodes(), [""; 0]);
    scenario.lists("b", &["10.0.0.0/26", "10.0.0.64/26"]);
    assert_eq!(scenario.checker.blocks_of_other_nodes().len(), 2);
}

#[test]
fn inconsistent_blocks_of_node_are_detected() {
    let converged = || {
        let mut scenario = Scenario::with_grace();
        scenario.node_created("a");
        scenario.active("10.0.0.0/26", "a");
        scenario.lists("a", &["10.0.0.0/26"]);
        assert_eq!(scenario.differences(), [""; 0]);
        scenario
    };
    let edits: [fn(&mut Scenario); 7] = [
        |scenario| scenario.node_created("b"),
        |scenario| scenario.active("10.0.0.64/26", "a"),
        |scenario| scenario.orphaned("10.0.0.0/26", "a"),
        |scenario| scenario.active("10.0.0.64/26", "b"),
        |scenario| scenario.lists("a", &[]),
        |scenario| {
            scenario
                .checker
                .set_node_uid("a", Some("another".to_owned()));
        },
        |scenario| {
            scenario
                .checker
                .set_node_address("a", net("192.0.2.2/32").addr());
        },
    ];
    for edit in edits {
        let mut scenario = converged();
        edit(&mut scenario);
        assert!(!scenario.differences().is_empty());
    }
    // An orphaned block is correct only during its grace period.
    let mut scenario = converged();
    scenario.orphaned("10.0.0.64/26", "b");
    assert_eq!(scenario.differences(), [""; 0]);
    assert_eq!(scenario.checker.differences(|_| 1, true).len(), 1);
}
