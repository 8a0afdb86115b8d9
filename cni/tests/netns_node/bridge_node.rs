//! A node with a bridge, as the agent creates it.

use ipnet::IpNet;
use netweft_cni::block;
use netweft_cni::node::{BridgeConfig, PodInterface, PoolConfig};

use super::netns_node::{Node, pool};

/// The bridge of a node.
pub const BRIDGE: &str = "nw-br0";
pub const BRIDGE_MAC: &str = "02:00:00:00:00:0b";

/// A pool of bridged pods. The tunnel address of each block is its gateway.
pub fn bridged(name: &str, blocks: &[&str]) -> PoolConfig {
    let mut pool = pool(name, blocks);
    let gateway = |block: &IpNet| block::tunnel_address(*block).unwrap();
    let gateways = pool.blocks.iter().map(|block| (*block, gateway(block)));
    let bridge = BridgeConfig {
        link: BRIDGE.parse().unwrap(),
        mac: BRIDGE_MAC.parse().unwrap(),
        gateways: gateways.collect(),
    };
    pool.reserved = bridge.gateways.values().copied().map(IpNet::from).collect();
    pool.pod_interface = PodInterface::Bridge;
    pool.bridge = Some(bridge);
    pool
}

/// A node with a bridge, and these blocks in one pool.
pub fn node_with_bridge(blocks: &[&str]) -> Node {
    let node = Node::new(&[]);
    let ip = |line: String| node.namespace.ip(&line);
    ip(format!(
        "link add {BRIDGE} mtu 1350 address {BRIDGE_MAC} type bridge"
    ));
    ip(format!("link set {BRIDGE} addrgenmode none up"));
    ip(format!("address add fe80::1/64 dev {BRIDGE} nodad"));
    let pool = bridged("default", blocks);
    for (block, gateway) in &pool.bridge.as_ref().unwrap().gateways {
        let length = block.prefix_len();
        ip(format!(
            "address add {gateway}/{length} dev {BRIDGE} nodad noprefixroute"
        ));
        ip(format!(
            "route add {block} dev {BRIDGE} src {gateway} proto 78 metric 20"
        ));
    }
    node.configure(&[pool]);
    node
}

/// [`Node::leftovers`] without the bridge and the routes to its blocks, which belong to the agent.
pub fn leftovers(node: &Node) -> Vec<String> {
    let mut found = node.leftovers();
    let of_agent = [format!(": {BRIDGE}:"), format!("dev {BRIDGE} proto 78")];
    found.retain(|line| !of_agent.iter().any(|text| line.contains(text)));
    found
}
