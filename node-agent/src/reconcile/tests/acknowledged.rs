//! What the operator goes by before it gives a block to another node: the generation that is acknowledged, and how blocks are used.

use crate::reconcile::tests::*;

/// What is said of the fixture's only block while it has no pod.
const FIRST: (&str, i64) = ("10.244.0.0/26", 0);

/// The operator takes all blocks but these from the node.
fn leave(node: &mut Fixture, blocks: &[&str]) {
    let network = node.objects.network.as_mut().unwrap();
    network.metadata.generation = Some(5);
    network.spec.subnets = blocks.iter().map(|block| block.parse().unwrap()).collect();
}

/// The generation that the node says it carries out, and the blocks it tells of, with the number of pods in each.
#[track_caller]
fn says(node: &Fixture, generation: i64, blocks: &[(&str, i64)]) {
    let status = status_of(node.dir.path());
    assert_eq!(status.observed_generation, Some(generation));
    let told = status.subnets.into_iter();
    let told: Vec<_> = told
        .map(|usage| (usage.cidr.to_string(), usage.used))
        .collect();
    let expected: Vec<_> = blocks
        .iter()
        .map(|(cidr, used)| ((*cidr).to_owned(), *used))
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn netns_unwritable_node_config_is_not_acknowledged() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        says(&node, 4, &[FIRST]);
        let aside = hinder_node_json(&node);
        leave(&mut node, &[]);
        assert!(node.reconcile().await.is_some());
        says(&node, 4, &[FIRST]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("run/node.json"), "{message}");
        std::fs::remove_dir(aside).unwrap();
        node.reconcile().await;
        says(&node, 5, &[]);
    });
}

#[test]
fn netns_unlistable_attachments_are_not_acknowledged() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        drop(node.kernel().take_applied());
        leave(&mut node, &[]);
        // After the look at the records with which a sync begins.
        let attachments = node.dir.path().join("run/attachments");
        let place = attachments.clone();
        node.kernel().fail_with(move |_| {
            let _ = std::fs::remove_dir(&place);
            std::fs::write(&place, "").unwrap();
            None
        });
        assert!(node.reconcile().await.is_some());
        assert!(!node.kernel().take_applied().is_empty());
        says(&node, 4, &[FIRST]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("the attachments in"), "{message}");
        node.kernel().clear_fault();
        std::fs::remove_file(attachments).unwrap();
        node.reconcile().await;
        says(&node, 5, &[]);
    });
}

/// It has read what it may choose from, holds the lock, and has no record yet.
#[test]
fn netns_block_release_waits_for_add_holding_lock() {
    const SECOND: &str = "10.244.0.128/26";
    in_namespace(async || {
        let mut node = fixture();
        let mut second = node.objects.subnets[0].clone();
        second.spec.cidr = SECOND.parse().unwrap();
        node.objects.subnets.push(second);
        leave(&mut node, &[FIRST.0, SECOND]);
        node.reconcile().await;
        says(&node, 5, &[FIRST, (SECOND, 0)]);
        let store = Store::new(&node.dir.path().join("run"));
        let mut add = store.lock(Duration::ZERO).unwrap();
        leave(&mut node, &[FIRST.0]);
        node.objects.network.as_mut().unwrap().metadata.generation = Some(6);
        assert_eq!(node.reconcile().await, Some(LOCK_RETRY_INTERVAL));
        says(&node, 5, &[FIRST, (SECOND, 0)]);
        let (ready, message) = node.ready();
        assert_eq!(ready, "True");
        assert!(message.contains("run/lock"), "{message}");
        let pod = crate::pods::tests::attachment("one", &["10.244.0.130"]);
        drop(add.reserve(&pod).unwrap());
        drop(add);
        node.reconcile().await;
        says(&node, 6, &[FIRST, (SECOND, 1)]);
    });
}
