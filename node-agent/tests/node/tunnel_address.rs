//! The node's own addresses in its blocks while blocks and pools change: no pod loses its address to the node.

use super::lab::{BRIDGED, Node, Pod, Pools, ROUTED, wait_for};

const BLOCKS: [&str; 2] = ["10.244.40.0/30", "10.244.40.4/30"];

/// A node with two blocks and a pod in each. A block of four addresses has room for one pod.
fn node(pools: Pools, kind: &str) -> (Node, [Pod; 2]) {
    let mut node = Node::new(pools);
    node.write_object("pool-p.yaml", &pool(kind, ""));
    for (n, block) in BLOCKS.iter().enumerate() {
        let subnet = format!(
            "kind: NodeSubnet\nmetadata: {{name: block-{n}}}\nspec: {{cidr: {block}, pool: p, node: one, nodeAddresses: {{ipv4: 192.0.2.1}}, state: Active}}"
        );
        node.write_object(&format!("subnet-p-{n}.yaml"), &subnet);
    }
    set_blocks(&node, &BLOCKS);
    node.start();
    node.wait_until_ready();
    let pods = [node.add("one"), node.add("two")];
    (node, pods)
}

fn pool(kind: &str, reserved: &str) -> String {
    format!(
        "kind: IPPool\nmetadata: {{name: p}}\nspec: {{cidr: 10.244.40.0/24, blockSize: 30, podInterface: {kind}, reserved: [{reserved}]}}"
    )
}

fn set_blocks(node: &Node, blocks: &[&str]) {
    let blocks = blocks.join(", ");
    let network = format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: 1}}\nspec: {{addresses: {{ipv4: 192.0.2.1}}, subnets: [{blocks}], modes: [{{name: default, pools: [p], transport: {{vxlan: {{}}}}}}]}}"
    );
    node.write_object("network.yaml", &network);
}

fn wait_for_tunnel_address(node: &Node, address: &str) {
    wait_for("the tunnel address", || {
        let links = node.status()?.links.into_iter();
        let mut tunnels = links.filter(|link| link.name == "nw-vx4096");
        let found = tunnels
            .find_map(|link| link.address)
            .map(|ip| ip.to_string());
        (found.as_deref() == Some(address))
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
}

fn pods_keep_their_addresses(pools: Pools, kind: &str) {
    let (node, pods) = node(pools, kind);
    let assert_connected = |when: &str| {
        node.wait_until_clean();
        for pod in &pods {
            assert!(pod.is_reachable_from(&node.namespace), "node to pod {when}");
            assert!(pod.reaches(&node), "pod to node {when}");
        }
    };
    wait_for_tunnel_address(&node, "10.244.40.1");
    assert_connected("at first");
    // The reserved ranges cover the first block with its pod, and the tunnel address of the second block.
    node.write_object("pool-p.yaml", &pool(kind, "10.244.40.0/30, 10.244.40.5"));
    node.wait_until_ready();
    assert_connected("with other addresses reserved");
    wait_for_tunnel_address(&node, "10.244.40.1");
    set_blocks(&node, &BLOCKS[1..]);
    wait_for_tunnel_address(&node, "10.244.40.5");
    assert_connected("without the first block");
}

#[test]
fn netns_tunnel_addresses_of_routed_pools_stay_with_node() {
    pods_keep_their_addresses(ROUTED, "routed");
}

#[test]
fn netns_tunnel_addresses_of_bridge_pools_stay_with_node() {
    pods_keep_their_addresses(BRIDGED, "bridge");
}
