//! A node whose Node was deleted, after the grace period of its block: another node may own the block.

use std::fs;

use netweft_cni::node::NodeConfig;

use super::lab::{Namespace, Node, Pod, ROUTED, wait_for};

#[test]
fn netns_lost_block_allocates_nothing_and_pods_keep_running() {
    let node = Node::ready(ROUTED);
    let pod = node.add("one");
    let objects = ["network.yaml", "subnet-routed-one.yaml"].map(|name| {
        let file = node.path("objects").join(name);
        let text = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        (name, text)
    });
    wait_for("the block to be withdrawn", || {
        let config = NodeConfig::read(&node.path("run")).map_err(|error| error.to_string())?;
        let mut pools = config.pools.iter();
        let is_empty = pools.all(|pool| pool.blocks.is_empty());
        is_empty.then_some(()).ok_or_else(|| format!("{config:?}"))
    });
    let space = Namespace::new();
    let added = node.plugin(&[], "ADD", "two", &space.path());
    let refused = Pod::of("two", space, added).err().unwrap();
    assert!(
        refused.contains("\"code\":11") && refused.contains("(no block on this node)"),
        "{refused}"
    );
    assert!(pod.is_reachable_from(&node.namespace));
    for (name, text) in objects {
        fs::write(node.path("temporary"), text).unwrap();
        fs::rename(node.path("temporary"), node.path("objects").join(name)).unwrap();
    }
    wait_for("an address", || {
        let space = Namespace::new();
        let added = node.plugin(&[], "ADD", "two", &space.path());
        Pod::of("two", space, added)
    });
}
