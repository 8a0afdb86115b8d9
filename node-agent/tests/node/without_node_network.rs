//! A node whose Node was deleted for so long that its block may be another node's.

use std::fs;

use netweft_cni::node::NodeConfig;

use super::lab::{Namespace, Node, Pod, ROUTED, until};

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
    until("the block not to be handed out", || {
        let offered = NodeConfig::read(&node.path("run")).map_err(|error| error.to_string())?;
        let mut pools = offered.pools.iter();
        let none = pools.all(|pool| pool.blocks.is_empty());
        none.then_some(()).ok_or_else(|| format!("{offered:?}"))
    });
    let space = Namespace::new();
    let added = node.plugin(&[], "ADD", "two", &space.path());
    let refused = Pod::of("two", space, added).err().unwrap();
    assert!(
        refused.contains("\"code\":11") && refused.contains("(no block on this node)"),
        "{refused}"
    );
    assert!(pod.answers(&node.namespace));
    for (name, text) in objects {
        fs::write(node.path("aside"), text).unwrap();
        fs::rename(node.path("aside"), node.path("objects").join(name)).unwrap();
    }
    until("an address", || {
        let space = Namespace::new();
        let added = node.plugin(&[], "ADD", "two", &space.path());
        Pod::of("two", space, added)
    });
}
