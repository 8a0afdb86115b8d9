//! The MTU follows the links of the routes between nodes.

use super::lab::{Node, ROUTED, wait_for};

fn mtu(node: &Node, link: &str) -> String {
    let line = node.namespace.ip(&format!("link show {link}"));
    let mut expected = line.split_whitespace().skip_while(|word| *word != "mtu");
    expected.nth(1).unwrap_or_default().to_owned()
}

/// Routing on the host: the node's address is on a dummy link, and the other nodes are behind the uplinks.
#[test]
fn netns_mtu_follows_route_to_peers_with_address_on_dummy() {
    let mut node = Node::new(ROUTED);
    for line in [
        "link add dummy0 type bridge",
        "link set dummy0 up",
        "address delete 192.0.2.1/24 dev ens7",
        "address add 203.0.113.1/24 dev ens7",
        "address add 192.0.2.1/32 dev dummy0",
        "route add 192.0.2.2/32 via 203.0.113.2",
        "route add 192.0.2.3/32 via 203.0.113.3",
    ] {
        node.namespace.ip(line);
    }
    node.start();
    node.wait_until_ready();
    assert_eq!(mtu(&node, "dummy0"), "1500");
    assert_eq!(mtu(&node, "nw-vx4096"), "1350");
    assert_eq!(node.status().unwrap().link_mtu, Some(1400));
}

/// Policy routing: a rule selects another link than table `main`.
#[test]
fn netns_mtu_follows_link_chosen_by_routing_rules() {
    let mut node = Node::new(ROUTED);
    for line in [
        "link add ens8 type bridge",
        "link set ens8 up mtu 1300",
        "route add default dev ens8 table 100",
        "rule add to 192.0.2.0/24 lookup 100",
    ] {
        node.namespace.ip(line);
    }
    node.start();
    node.wait_until_ready();
    assert_eq!(mtu(&node, "nw-vx4096"), "1250");
    assert_eq!(node.status().unwrap().link_mtu, Some(1300));
}

#[test]
fn netns_mtu_above_link_mtu_is_reported_and_node_is_ready() {
    let mut node = Node::new(ROUTED);
    let network = super::lab::network(ROUTED, &["10.244.0.0/22".into()], &["routed".into()]);
    let with_mtu = |mtu: u32| network.replace("outerFamily:", &format!("mtu: {mtu}, outerFamily:"));
    node.write_object("network.yaml", &with_mtu(1450));
    node.start();
    let expected = "spec.mtu 1450 of NetworkMode default is too large for link ens7: the MTU of the link is 1400, and 50 are for the encapsulation, so larger packets are fragmented, or lost where fragments are dropped; set spec.mtu to 1350 or less, or leave it out";
    wait_for("the note about the MTU", || {
        let message = node.is_ready()?;
        message
            .ends_with(&format!("; but {expected}"))
            .then_some(())
            .ok_or(message)
    });
    assert!(node.add("one").is_reachable_from(&node.namespace));
    node.write_object("network.yaml", &with_mtu(1350));
    wait_for("the note to disappear", || {
        let message = node.is_ready()?;
        (!message.contains("spec.mtu")).then_some(()).ok_or(message)
    });
}
