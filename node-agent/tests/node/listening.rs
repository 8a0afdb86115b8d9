//! What routers tell a node over links that netweft has nothing to do with.

use std::fs;

use super::lab::{Families, Node, ROUTED, until};

fn path(link: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/accept_ra")
}

fn accept_ra(node: &Node, link: &str) -> String {
    let found = node.namespace.run(|| fs::read_to_string(path(link)));
    found.unwrap().trim().to_owned()
}

#[test]
fn netns_links_of_others_go_on_listening_to_routers_and_those_that_come_later_do_too() {
    let mut node = Node::new(ROUTED.of(Families::Both));
    node.namespace.ip("link add deaf0 type bridge");
    for (link, value) in [("far0", "1"), ("deaf0", "0"), ("lo", "1")] {
        let written = node.namespace.run(|| fs::write(path(link), value));
        written.unwrap();
    }
    node.start();
    node.wait_until_ready();
    let links = ["far0", "deaf0", "lo"].map(|link| accept_ra(&node, link));
    assert_eq!(links, ["2", "0", "1"]);
    node.namespace.ip("link add late0 type bridge");
    until("a link that came later to listen", || {
        let found = accept_ra(&node, "late0");
        (found == "2").then_some(()).ok_or(found)
    });
}
