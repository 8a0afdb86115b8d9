//! A standby mode: its routes have a higher metric than those in use, and the status has the results of its probes.

use super::lab::{FAMILIES, Families, Namespace, Node, ROUTED, network, wait_for};

/// The node uses VXLAN. In generation 2, host-gw is in standby.
fn set_generation(node: &Node, families: Families, generation: i64) {
    let (blocks, names): (&[&str], _) = match families {
        Families::Ipv4 => (&["10.244.0.0/22"], "routed"),
        Families::Ipv6 => (&["fd00:244::/118"], "routed-six"),
        Families::Both => (&["10.244.0.0/22", "fd00:244::/118"], "routed, routed-six"),
    };
    let blocks: Vec<String> = blocks.iter().map(|block| (*block).to_owned()).collect();
    let text = network(ROUTED.of(families), &blocks, &[names.to_owned()]);
    let text = text.replace("generation: 1", &format!("generation: {generation}"));
    let standby =
        format!(", {{name: default, standbyPools: [{names}], transport: {{direct: {{}}}}}}]}}");
    let text = if generation == 2 {
        text.replace("]}", &standby)
    } else {
        text
    };
    node.write_object("network.yaml", &text);
}

/// Node two at the other end of the uplink, with the addresses in its blocks.
fn peer(node: &Node, families: Families) -> Namespace {
    let peer = Namespace::new();
    node.namespace
        .ip(&format!("link set far0 netns {}", peer.path()));
    peer.ip("link set lo up");
    peer.ip("link set far0 addrgenmode none up");
    if families != Families::Ipv6 {
        peer.ip("address add 192.0.2.2/24 dev far0");
        peer.ip("address add 10.244.4.1/32 dev lo");
        peer.ip("route add 10.244.0.0/22 via 192.0.2.1");
    }
    if families != Families::Ipv4 {
        // Sources of neighbour solicitations: the source of the probes is on another link.
        node.namespace.ip("address add fe80::1:1/64 dev ens7 nodad");
        peer.ip("address add fe80::1:2/64 dev far0 nodad");
        peer.ip("address add 2001:db8::2/64 dev far0 nodad");
        peer.ip("address add fd00:244::401/128 dev lo");
        peer.ip("route add fd00:244::/118 via 2001:db8::1");
    }
    peer
}

#[test]
fn netns_standby_mode_is_probed_and_silent_nodes_are_named() {
    for families in FAMILIES {
        let node = Node::ready(ROUTED.of(families));
        let _peer = peer(&node, families);
        assert!(node.status().unwrap().probes.is_empty());
        set_generation(&node, families, 2);
        wait_for("the reply of one node", || {
            let status = node.status()?;
            let found = status.probes.first().ok_or("no probe")?;
            let unreachable = found.unreachable.join(",");
            (found.probed == 2 && unreachable == "three")
                .then_some(())
                .ok_or(format!("{found:?}"))
        });
        let block = match families {
            Families::Ipv6 => "-6 route show fd00:244::400/118",
            Families::Ipv4 | Families::Both => "-4 route show 10.244.4.0/22",
        };
        let routes = node.namespace.ip(block);
        let routes: Vec<&str> = routes.lines().collect();
        assert_eq!(routes.len(), 2, "{routes:?}");
        assert!(routes[0].contains("dev nw-vx4096") && routes[0].contains("metric 20"));
        assert!(routes[1].contains("dev ens7") && routes[1].contains("metric 89"));
        set_generation(&node, families, 3);
        wait_for("the probes to be removed from the status", || {
            let status = node.status()?;
            (status.observed_generation == Some(3) && status.probes.is_empty())
                .then_some(())
                .ok_or(format!("{status:?}"))
        });
        let routes = node.namespace.ip(block);
        assert_eq!(routes.lines().count(), 1, "{routes}");
    }
}
