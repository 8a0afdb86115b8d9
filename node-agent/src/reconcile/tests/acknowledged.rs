//! What the operator goes by before it gives a block to another node: the generation that is acknowledged, and how blocks are used.

use super::*;

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
fn netns_a_change_that_the_plugin_could_not_be_told_of_is_not_acknowledged() {
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
fn netns_a_change_is_not_acknowledged_while_pods_addresses_cannot_be_listed() {
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
        node.kernel().heal();
        std::fs::remove_file(attachments).unwrap();
        node.reconcile().await;
        says(&node, 5, &[]);
    });
}
