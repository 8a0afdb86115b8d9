//! What a node hands out whose Node was deleted.

use crate::reconcile::tests::*;

/// The blocks that the plugin gives addresses of.
fn offered(node: &Fixture) -> Vec<String> {
    let offered = NodeConfig::read(&node.dir.path().join("run")).unwrap();
    let blocks = offered.pools.iter().flat_map(|pool| &pool.blocks);
    blocks.map(ToString::to_string).collect()
}

#[test]
fn netns_lost_block_without_node_network_allocates_nothing() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        let (kernel, own) = (node.kernel().state(), ["10.244.0.0/26"]);
        // The Node is deleted, and for a while its block is kept.
        let network = node.objects.network.take();
        assert_eq!(node.reconcile().await, None);
        assert_eq!(offered(&node), own);
        // The while is over.
        let subnet = node.objects.subnets.remove(0);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(offered(&node), Vec::<String>::new());
        assert_eq!(node.kernel().state(), kernel, "running pods go on");
        assert!(node.conflist(), "ADD answers that it is to be tried later");
        // The Node is back, and happens to get the same block.
        node.objects.network = network;
        node.objects.subnets.push(subnet);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(offered(&node), own);
        let drift = status_of(node.dir.path()).drift;
        assert_eq!(drift, None, "nobody else has changed anything");
    });
}

#[test]
fn netns_removal_of_lost_blocks_is_retried() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        let aside = hinder_node_json(&node);
        node.objects.network = None;
        node.objects.subnets.remove(0);
        assert!(node.reconcile().await.unwrap() <= RETRY.0);
        assert_eq!(offered(&node), ["10.244.0.0/26"]);
        std::fs::remove_dir(aside).unwrap();
        assert_eq!(node.reconcile().await, None);
        assert_eq!(offered(&node), Vec::<String>::new());
    });
}
