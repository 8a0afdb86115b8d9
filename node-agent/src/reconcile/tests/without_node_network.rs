//! The blocks of a node whose Node was deleted.

use crate::reconcile::tests::*;

/// The blocks from which the plugin allocates.
fn allocatable(node: &Fixture) -> Vec<String> {
    let config = NodeConfig::read(&node.dir.path().join("run")).unwrap();
    let blocks = config.pools.iter().flat_map(|pool| &pool.blocks);
    blocks.map(ToString::to_string).collect()
}

#[test]
fn netns_lost_block_without_node_network_allocates_nothing() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        let (kernel, own) = (node.kernel().state(), ["10.244.0.0/26"]);
        // The Node is deleted. Its block is kept for the grace period.
        let network = node.objects.network.take();
        assert_eq!(node.reconcile().await, None);
        assert_eq!(allocatable(&node), own);
        // The grace period ends.
        let subnet = node.objects.subnets.remove(0);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(allocatable(&node), Vec::<String>::new());
        assert_eq!(
            node.kernel().state(),
            kernel,
            "the datapath of running pods is unchanged"
        );
        assert!(node.conflist(), "ADD fails with a retryable error");
        // The Node registers again and gets the same block.
        node.objects.network = network;
        node.objects.subnets.push(subnet);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(allocatable(&node), own);
        let drift = status_of(node.dir.path()).drift;
        assert_eq!(drift, None, "no external change");
    });
}

#[test]
fn netns_removal_of_lost_blocks_is_retried() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        let blocker = block_node_json(&node);
        node.objects.network = None;
        node.objects.subnets.remove(0);
        assert!(node.reconcile().await.unwrap() <= RETRY.0);
        assert_eq!(allocatable(&node), ["10.244.0.0/26"]);
        std::fs::remove_dir(blocker).unwrap();
        assert_eq!(node.reconcile().await, None);
        assert_eq!(allocatable(&node), Vec::<String>::new());
    });
}
