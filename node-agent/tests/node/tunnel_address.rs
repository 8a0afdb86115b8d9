//! The node's own addresses in its blocks, whatever becomes of blocks and pools: no pod loses its address to the node.

use super::lab::{BRIDGED, Node, Pod, Pools, ROUTED, until};

const BLOCKS: [&str; 2] = ["10.244.40.0/30", "10.244.40.4/30"];

/// A node with two blocks and a pod in each. A block of four addresses has room for one pod.
fn node(pools: Pools, kind: &str) -> (Node, [Pod; 2]) {
    let mut node = Node::new(pools);
    node.declare("pool-p.yaml", &pool(kind, ""));
    for (n, block) in BLOCKS.iter().enumerate() {
        let subnet = format!(
            "kind: NodeSubnet\nmetadata: {{name: block-{n}}}\nspec: {{cidr: {block}, pool: p, node: one, nodeAddresses: {{ipv4: 192.0.2.1}}, state: Active}}"
        );
        node.declare(&format!("subnet-p-{n}.yaml"), &subnet);
    }
    give(&node, &BLOCKS);
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

fn give(node: &Node, blocks: &[&str]) {
    let blocks = blocks.join(", ");
    let network = format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: 1}}\nspec: {{addresses: {{ipv4: 192.0.2.1}}, subnets: [{blocks}], modes: [{{name: default, pools: [p], transport: {{vxlan: {{}}}}}}]}}"
    );
    node.declare("network.yaml", &network);
}

fn wait_for_tunnel_address(node: &Node, address: &str) {
    until("the tunnel to have its address", || {
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
    let all_is_well = |when: &str| {
        node.wait_until_clean();
        for pod in &pods {
            assert!(pod.answers(&node.namespace), "node to pod {when}");
            assert!(pod.reaches(&node), "pod to node {when}");
        }
    };
    wait_for_tunnel_address(&node, "10.244.40.1");
    all_is_well("at first");
    // Wide enough for the first pod, and of the second block for nothing but the tunnel address.
    node.declare("pool-p.yaml", &pool(kind, "10.244.40.0/30, 10.244.40.5"));
    node.wait_until_ready();
    all_is_well("with other addresses reserved");
    wait_for_tunnel_address(&node, "10.244.40.1");
    give(&node, &BLOCKS[1..]);
    wait_for_tunnel_address(&node, "10.244.40.5");
    all_is_well("without the first block");
}

#[test]
fn netns_tunnel_addresses_of_routed_pools_stay_with_node() {
    pods_keep_their_addresses(ROUTED, "routed");
}

#[test]
fn netns_tunnel_addresses_of_bridge_pools_stay_with_node() {
    pods_keep_their_addresses(BRIDGED, "bridge");
}
