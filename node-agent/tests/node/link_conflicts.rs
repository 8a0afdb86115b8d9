//! Tunnels that cannot be created because another link or program uses their VNI or port. The message names it and the remedy.

use std::net::UdpSocket;

use super::lab::{Node, ROUTED};

fn assert_message(node: &mut Node, expected: &str) {
    node.start();
    let message = node.wait_for_reason("ProgrammingFailed");
    assert_eq!(message, expected);
    assert!(!node.path("cni/10-netweft.conflist").exists());
}

const WAY_OUT: &str = "choose another spec.overlay.vxlan.port in the NetworkMode";

#[test]
fn netns_foreign_vxlan_link_on_port_is_reported() {
    let mut node = Node::new(ROUTED);
    node.namespace
        .ip("link add other type vxlan external dstport 4789");
    node.namespace.ip("link set other up");
    assert_message(
        &mut node,
        &format!(
            "link nw-vx4096 is missing: UDP port 4789 is used on this node by link other; {WAY_OUT}, or delete that link if nothing needs it (ip link delete other)"
        ),
    );
    node.namespace.ip("link delete other");
    node.wait_until_ready();
}

#[test]
fn netns_foreign_vxlan_link_with_same_vni_is_reported() {
    for local in ["local 192.0.2.1", ""] {
        let mut node = Node::new(ROUTED);
        node.namespace.ip(&format!(
            "link add other type vxlan id 4096 dstport 4789 {local}"
        ));
        node.namespace.ip("link set other up");
        assert_message(
            &mut node,
            "link nw-vx4096 is missing: VNI 4096 on UDP port 4789 is used on this node by link other; choose another spec.overlay.vxlan.vni or spec.overlay.vxlan.port in the NetworkMode, or delete that link if nothing needs it (ip link delete other)",
        );
        node.namespace.ip("link delete other");
        node.wait_until_ready();
    }
}

#[test]
fn netns_program_listening_on_vxlan_port_is_reported() {
    let mut node = Node::new(ROUTED);
    let socket = node
        .namespace
        .run(|| UdpSocket::bind("0.0.0.0:4789").unwrap());
    let own = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_message(
        &mut node,
        &format!(
            "link nw-vx4096 is missing: UDP port 4789 is used on this node by process {own} ({}); {WAY_OUT}, or end that program",
            name.trim()
        ),
    );
    drop(socket);
    node.wait_until_ready();
}
