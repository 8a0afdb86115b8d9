//! Which of a node's addresses tunnels run between.

use kube::ResourceExt;
use netweft_crds::IpFamily;

use crate::testing::{at, cluster, mode, node, pool};

#[test]
fn the_mode_chooses_among_a_nodes_addresses() {
    let mut cluster = cluster(1);
    cluster.modes[0] = mode(
        "default",
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {cidr: 192.168.0.0/16}}",
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "192.168.3.4", "fd00::1"]);
    cluster.settle();
    let addresses = cluster.subnets[0].spec.node_addresses;
    assert_eq!(
        (addresses.ipv4, addresses.ipv6),
        (Some("192.168.3.4".parse().unwrap()), None)
    );
    assert_eq!(cluster.networks[0].spec.addresses, addresses);
}

#[test]
fn a_range_of_ipv6_chooses_addresses_of_ipv6() {
    let mut cluster = cluster(1);
    cluster.modes[0] = mode(
        "default",
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {cidr: 'fd00::/16'}}",
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "2001:db8::1", "fd00::1"]);
    cluster.settle();
    let addresses = cluster.subnets[0].spec.node_addresses;
    assert_eq!(
        (addresses.ipv4, addresses.ipv6),
        (None, Some("fd00::1".parse().unwrap()))
    );
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6]);
}

#[test]
fn a_cluster_without_ipv4_has_its_tunnels_over_ipv6() {
    let mut cluster = cluster(0);
    cluster.pools[0] = at(0, pool("default-v4", "fd00:10::/64", ""));
    for (n, name) in ["worker-1", "worker-2"].into_iter().enumerate() {
        cluster
            .nodes
            .push(at(n as i64, node(name, &[&format!("2001:db8::{}", n + 1)])));
    }
    cluster.settle();
    assert_eq!(cluster.blocks("worker-1"), ["fd00:10::/122"]);
    assert_eq!(cluster.blocks("worker-2"), ["fd00:10::40/122"]);
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6, IpFamily::Ipv6]);
    // A younger Node of the other kind is the odd one.
    cluster.nodes.push(at(9, node("odd", &["10.1.0.9"])));
    cluster.settle();
    let said = "False NoNodeAddress: the Node states no IPv6 address of type InternalIP in status.addresses";
    assert_eq!(cluster.node_says("odd"), said);
    assert!(
        cluster
            .outer_families()
            .iter()
            .all(|family| *family == IpFamily::Ipv6)
    );
    // Nodes that have gone silent change nothing.
    for node_without in ["worker-1", "worker-2", "odd"] {
        let at_age = cluster
            .nodes
            .iter()
            .position(|node| node.name_any() == node_without);
        cluster.nodes[at_age.unwrap()].status = None;
    }
    cluster.settle();
    assert!(
        cluster
            .outer_families()
            .iter()
            .all(|family| *family == IpFamily::Ipv6)
    );
}

#[test]
fn two_pools_give_a_node_a_block_of_each_family() {
    let mut cluster = cluster(2);
    cluster.nodes[0] = at(0, node("worker-1", &["10.1.0.1", "2001:db8::1"]));
    cluster
        .pools
        .push(at(1, pool("default-v6", "fd00:10::/64", "")));
    cluster.settle();
    assert_eq!(
        cluster.blocks("worker-1"),
        ["10.244.0.0/26", "fd00:10::/122"]
    );
    assert_eq!(
        cluster.blocks("worker-2"),
        ["10.244.0.64/26", "fd00:10::40/122"]
    );
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4, IpFamily::Ipv4]);
    let usage = cluster.pools[1].status.as_ref().unwrap().usage.unwrap();
    assert_eq!((usage.blocks.total, usage.blocks.used), (1 << 58, 2));
    assert_eq!(usage.addresses.total, i64::MAX);
}
