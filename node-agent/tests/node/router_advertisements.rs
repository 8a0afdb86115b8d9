//! Router advertisements on links without a node address.

use std::fs;

use super::lab::{Families, Node, ROUTED};

fn path(link: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/accept_ra")
}

fn accept_ra(node: &Node, link: &str) -> String {
    let found = node.namespace.run(|| fs::read_to_string(path(link)));
    found.unwrap().trim().to_owned()
}

#[test]
fn netns_accept_ra_is_kept_only_on_link_with_ra_route() {
    let mut node = Node::new(ROUTED.of(Families::Both));
    for name in ["guests0", "disabled0"] {
        node.namespace.ip(&format!("link add {name} type bridge"));
    }
    for (link, value) in [
        ("far0", "1"),
        ("disabled0", "0"),
        ("guests0", "1"),
        ("lo", "1"),
    ] {
        let written = node.namespace.run(|| fs::write(path(link), value));
        written.unwrap();
    }
    // The node's own address is on the other end of the veth pair.
    node.namespace.ip("-6 route add default dev far0 proto ra");
    node.start();
    node.wait_until_ready();
    let links = ["far0", "disabled0", "guests0", "lo"].map(|link| accept_ra(&node, link));
    assert_eq!(links, ["2", "0", "1", "1"]);
}
