//! A snapshot of a node, to compare its states.

use std::fs;

use netweft_netstate::model::NetworkState;

use super::lab::Node;

/// All objects of the agent.
#[derive(Debug, PartialEq)]
pub struct NodeSnapshot {
    pub kernel: NetworkState,
    nft: String,
    files: Vec<Option<String>>,
    parameters: Vec<String>,
}

pub fn snapshot(node: &Node) -> NodeSnapshot {
    let mut kernel = node.namespace.state();
    // Neighbour resolution and duplicate address detection change these independently, and MAC addresses of uplinks are random.
    kernel.special_addresses.clear();
    kernel.neighbours.retain(|_, neighbour| neighbour.permanent);
    kernel
        .links
        .retain(|name, _| !["ens7", "far0"].contains(&name.as_str()));
    // Table by table, because nft lists tables in the order of their creation.
    let table = |name| {
        node.namespace
            .command(&format!("nft -s list table inet {name}"))
            .stdout
    };
    let nft = ["netweft", "other"].map(table).concat();
    let read = |name: &str| {
        let found = node.namespace.command(&format!("cat /proc/sys/net/{name}"));
        format!("{name} {}", String::from_utf8(found.stdout).unwrap().trim())
    };
    NodeSnapshot {
        kernel,
        nft: String::from_utf8(nft).unwrap(),
        files: ["run/node.json", "cni/10-netweft.conflist"]
            .map(|file| {
                let text = fs::read_to_string(node.path(file)).ok()?;
                Some(text.replace(&node.path("").display().to_string(), ""))
            })
            .into(),
        parameters: [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/nw-br0/rp_filter",
            "ipv4/conf/ens7/rp_filter",
            "ipv4/conf/nw-vx4096/rp_filter",
            "ipv6/conf/nw-br0/accept_ra",
            "ipv6/conf/nw-vx4096/accept_ra",
            "bridge/bridge-nf-call-iptables",
        ]
        .map(read)
        .into(),
    }
}
