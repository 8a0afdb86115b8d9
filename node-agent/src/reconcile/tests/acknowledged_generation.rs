//! The acknowledged generation and the usage of blocks, on which the operator bases the release of a block.

use crate::reconcile::tests::*;

/// The usage of the fixture's only block without pods.
const FIRST: (&str, i64) = ("10.244.0.0/26", 0);

/// The operator sets the blocks of the node.
fn set_blocks(node: &mut Fixture, blocks: &[&str]) {
    let network = node.objects.network.as_mut().unwrap();
    network.metadata.generation = Some(5);
    network.spec.subnets = blocks.iter().map(|block| block.parse().unwrap()).collect();
}

/// Asserts the acknowledged generation, and the reported blocks with the number of used addresses.
#[track_caller]
fn assert_status(node: &Fixture, generation: i64, blocks: &[(&str, i64)]) {
    let status = status_of(node.dir.path());
    assert_eq!(status.observed_generation, Some(generation));
    let reported = status.subnets.into_iter();
    let reported: Vec<_> = reported
        .map(|usage| (usage.cidr.to_string(), usage.used))
        .collect();
    let expected: Vec<_> = blocks
        .iter()
        .map(|(cidr, used)| ((*cidr).to_owned(), *used))
        .collect();
    assert_eq!(reported, expected);
}

#[test]
fn netns_unwritable_node_config_is_not_acknowledged() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        assert_status(&node, 4, &[FIRST]);
        let blocker = block_node_json(&node);
        set_blocks(&mut node, &[]);
        assert!(node.reconcile().await.is_some());
        assert_status(&node, 4, &[FIRST]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("run/node.json"), "{message}");
        std::fs::remove_dir(blocker).unwrap();
        node.reconcile().await;
        assert_status(&node, 5, &[]);
    });
}

#[test]
fn netns_unlistable_attachments_are_not_acknowledged() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        drop(node.kernel().take_applied());
        set_blocks(&mut node, &[]);
        // After the records have been read, with which a sync starts.
        let attachments = node.dir.path().join("run/attachments");
        let dir = attachments.clone();
        node.kernel().fail_with(move |_| {
            let _ = std::fs::remove_dir(&dir);
            std::fs::write(&dir, "").unwrap();
            None
        });
        assert!(node.reconcile().await.is_some());
        assert!(!node.kernel().take_applied().is_empty());
        assert_status(&node, 4, &[FIRST]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("the attachments in"), "{message}");
        node.kernel().clear_fault();
        std::fs::remove_file(attachments).unwrap();
        node.reconcile().await;
        assert_status(&node, 5, &[]);
    });
}

/// The ADD has read the blocks, holds the lock, and has no record yet.
#[test]
fn netns_block_release_waits_for_add_holding_lock() {
    const SECOND: &str = "10.244.0.128/26";
    in_namespace(async || {
        let mut node = fixture();
        let mut second = node.objects.subnets[0].clone();
        second.spec.cidr = SECOND.parse().unwrap();
        node.objects.subnets.push(second);
        set_blocks(&mut node, &[FIRST.0, SECOND]);
        node.reconcile().await;
        assert_status(&node, 5, &[FIRST, (SECOND, 0)]);
        let store = Store::new(&node.dir.path().join("run"));
        let mut add = store.lock(Duration::ZERO).unwrap();
        set_blocks(&mut node, &[FIRST.0]);
        node.objects.network.as_mut().unwrap().metadata.generation = Some(6);
        assert_eq!(node.reconcile().await, Some(LOCK_RETRY_INTERVAL));
        assert_status(&node, 5, &[FIRST, (SECOND, 0)]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "True");
        assert!(message.contains("run/lock"), "{message}");
        let pod = crate::pods::tests::attachment("one", &["10.244.0.130"]);
        drop(add.reserve(&pod).unwrap());
        drop(add);
        node.reconcile().await;
        assert_status(&node, 6, &[FIRST, (SECOND, 1)]);
    });
}
