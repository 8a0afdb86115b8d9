//! A node with one InternalIP and a second NIC for the traffic of pods. Kubelet does not report the second address.

use netweft_crds::names::vtep_mac;

use super::lab::{Namespace, Node, ROUTED, wait_for};

/// The MAC address of a node's VXLAN endpoint.
fn mac(node: &str) -> String {
    let bytes = vtep_mac(node).map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

/// A node that is connected to node two by its second NIC only.
fn with_second_nic() -> (Node, Namespace) {
    let (node, two) = (Node::new(ROUTED), Namespace::new());
    let far = two.path();
    node.namespace.ip(&format!(
        "link add nic1 mtu 1400 type veth peer name nic2 mtu 1400 netns {far}"
    ));
    node.namespace.ip("link set nic1 up");
    node.namespace.ip("address add 198.51.100.1/24 dev nic1");
    two.ip("link set lo up");
    two.ip("link set nic2 up");
    two.ip("address add 198.51.100.2/24 dev nic2");
    // A pod of node two.
    two.ip("address add 10.244.4.9/32 dev lo");
    let subnet = "kind: NodeSubnet\nmetadata: {name: routed-two}\nspec: {cidr: 10.244.4.0/22, pool: routed, node: two, nodeAddresses: {ipv4: 198.51.100.2}, state: Active}";
    node.write_object("subnet-routed-two.yaml", subnet);
    std::fs::remove_file(node.path("objects/subnet-routed-three.yaml")).unwrap();
    (node, two)
}

/// The operator requests address candidates with these selectors.
fn request_candidates(node: &Node, generation: i64, selectors: &str) {
    node.write_object(
        "network.yaml",
        &format!(
            "kind: NodeNetwork\nmetadata: {{name: one, generation: {generation}}}\nspec: {{addressSelectors: {selectors}}}"
        ),
    );
}

/// The operator selects an address.
fn select_address(node: &Node, generation: i64, address: &str, transport: &str) {
    node.write_object(
        "network.yaml",
        &format!(
            "kind: NodeNetwork\nmetadata: {{name: one, generation: {generation}}}\nspec: {{addresses: {{ipv4: {address}}}, addressSelectors: {{ipv4: {{interface: 'nic*'}}}}, subnets: [10.244.0.0/22], modes: [{{name: default, pools: [routed], transport: {{{transport}: {{}}}}, outerFamily: ipv4}}]}}"
        ),
    );
}

fn wait_until_reported(node: &Node, generation: i64, expected: &[(&str, &str)]) {
    wait_for(&format!("{expected:?} to be reported"), || {
        let status = node.status()?;
        let found = status.addresses.iter();
        let found: Vec<_> = found
            .map(|found| (found.interface.clone(), found.address.to_string()))
            .collect();
        let reported: Vec<_> = found
            .iter()
            .map(|(link, address)| (link.as_str(), address.as_str()))
            .collect();
        let acknowledged = status.observed_generation == Some(generation);
        (reported == expected && acknowledged)
            .then_some(())
            .ok_or(format!("{status:?}\n{}", node.log()))
    });
}

#[test]
fn netns_node_without_block_reports_selected_addresses() {
    let (mut node, _two) = with_second_nic();
    request_candidates(&node, 1, "{ipv4: {interface: 'nic*'}}");
    node.start();
    let second = ("nic1", "198.51.100.1");
    wait_until_reported(&node, 1, &[second]);
    for (generation, selectors, expected) in [
        (2, "{ipv4: {cidr: 198.51.0.0/16}}", &[second][..]),
        (3, "{ipv4: {interface: ens7}}", &[("ens7", "192.0.2.1")]),
        (4, "{ipv4: {reaches: 198.51.100.200}}", &[second]),
        // There is no route.
        (5, "{ipv4: {reaches: 203.0.113.1}}", &[]),
        (6, "{ipv6: {interface: nic1}}", &[]),
    ] {
        request_candidates(&node, generation, selectors);
        wait_until_reported(&node, generation, expected);
    }
    // A rule selects another route than table `main`.
    request_candidates(&node, 7, "{ipv4: {reaches: 203.0.113.1}}");
    for line in [
        "route add 203.0.113.0/24 via 192.0.2.9 dev ens7",
        "route add 203.0.113.0/24 via 198.51.100.2 dev nic1 table 100",
        "rule add to 203.0.113.0/24 lookup 100",
    ] {
        node.namespace.ip(line);
    }
    node.trigger_reconcile();
    wait_until_reported(&node, 7, &[second]);
}

#[test]
fn netns_replaced_node_address_is_reported() {
    let (mut node, _two) = with_second_nic();
    select_address(&node, 1, "198.51.100.1", "vxlan");
    node.start();
    node.wait_until_ready();
    wait_until_reported(&node, 1, &[("nic1", "198.51.100.1")]);
    node.namespace.ip("address del 198.51.100.1/24 dev nic1");
    node.namespace.ip("address add 198.51.100.7/24 dev nic1");
    wait_until_reported(&node, 1, &[("nic1", "198.51.100.7")]);
    let message = node.wait_for_reason("ProgrammingFailed");
    assert!(
        message.contains(
            "no link of this node has the node address 198.51.100.1; compare `ip address`"
        ) && message.contains("an address behind 1:1 NAT"),
        "{message}"
    );
}

#[test]
fn netns_remote_pods_are_reached_over_second_nic() {
    let one = mac("one");
    let far_vxlan = [
        format!(
            "link add vx type vxlan id 4096 dstport 4789 local 198.51.100.2 nolearning\n\
             link set vx address {} up\n\
             neighbour add 10.244.0.0 lladdr {one} dev vx nud permanent\n\
             route add 10.244.0.0/22 via 10.244.0.0 dev vx onlink src 10.244.4.9",
            mac("two")
        ),
        format!("fdb append {one} dev vx dst 198.51.100.1"),
    ];
    let far_direct = [
        "route add 10.244.0.0/22 via 198.51.100.1".to_owned(),
        String::new(),
    ];
    for (transport, [lines, fdb]) in [("vxlan", far_vxlan), ("direct", far_direct)] {
        let (mut node, two) = with_second_nic();
        select_address(&node, 1, "198.51.100.1", transport);
        node.start();
        node.wait_until_ready();
        lines.lines().for_each(|line| drop(two.ip(line)));
        if !fdb.is_empty() {
            let added = two.command(&format!("bridge {fdb}"));
            assert!(added.status.success(), "{added:?}");
        }
        let pod = node.add("one");
        assert!(pod.space.pings("10.244.4.9"), "{transport}");
        assert!(pod.is_reachable_from(&two), "{transport}");
        // No route of netweft uses the first NIC.
        let routes = node.namespace.ip("route show dev ens7 proto 78");
        assert_eq!(routes, "", "{transport}");
    }
}

/// The configuration of the relay has the address of the second NIC.
#[test]
fn netns_relay_config_has_address_of_second_nic() {
    let (mut node, _two) = with_second_nic();
    select_address(&node, 1, "198.51.100.1", "udp");
    node.start();
    wait_for("the configuration of the relay", || {
        let text = std::fs::read_to_string(node.path("run/udp.json"));
        let text = text.map_err(|error| error.to_string())?;
        let has_addresses = text.contains("198.51.100.1")
            && text.contains("198.51.100.2")
            && !text.contains("192.0.2.1\"");
        has_addresses.then_some(()).ok_or(text)
    });
}
