//! Node addresses in the status of Nodes, and the address family of tunnels.

use std::time::Duration;

use kube::ResourceExt;
use netweft_crds::IpFamily;

use crate::testing::{Cluster, at, cluster, mode, node, pool};

#[test]
fn mode_cidr_selects_node_address() {
    let mut cluster = cluster(1);
    cluster.modes[0] = mode(
        "default",
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {cidr: 192.168.0.0/16}}",
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "192.168.3.4", "fd00::1"]);
    cluster.reconcile();
    let addresses = cluster.subnets[0].spec.node_addresses;
    assert_eq!(
        (addresses.ipv4, addresses.ipv6),
        ("192.168.3.4".parse().ok(), "fd00::1".parse().ok()),
        "a CIDR selects no address of the other family"
    );
    assert_eq!(cluster.networks[0].spec.addresses, addresses);
}

#[test]
fn mode_ipv6_cidr_selects_ipv6_address_only() {
    let mut cluster = cluster(1);
    cluster.modes[0] = mode(
        "default",
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {cidr: 'fd00::/16'}}",
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "2001:db8::1", "fd00::1"]);
    cluster.reconcile();
    let addresses = cluster.subnets[0].spec.node_addresses;
    assert_eq!(
        (addresses.ipv4, addresses.ipv6),
        ("10.1.0.1".parse().ok(), "fd00::1".parse().ok())
    );
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6]);
}

#[test]
fn ipv6_only_cluster_uses_ipv6_tunnels() {
    let mut cluster = cluster(0);
    cluster.pools[0] = at(0, pool("default-v4", "fd00:10::/64", ""));
    for (n, name) in ["worker-1", "worker-2"].into_iter().enumerate() {
        cluster
            .nodes
            .push(at(n as i64, node(name, &[&format!("2001:db8::{}", n + 1)])));
    }
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-1"), ["fd00:10::/122"]);
    assert_eq!(cluster.blocks("worker-2"), ["fd00:10::40/122"]);
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6, IpFamily::Ipv6]);
    // A younger Node with another family gets no block.
    cluster
        .nodes
        .push(at(9, node("other-family", &["10.1.0.9"])));
    cluster.reconcile();
    let message =
        "False NoNodeAddress: status.addresses of the Node has no IPv6 address of type InternalIP";
    assert_eq!(cluster.node_message("other-family"), message);
    assert!(
        cluster
            .outer_families()
            .iter()
            .all(|family| *family == IpFamily::Ipv6)
    );
    // Nodes without addresses do not change the family.
    for node_without in ["worker-1", "worker-2", "other-family"] {
        let at_age = cluster
            .nodes
            .iter()
            .position(|node| node.name_any() == node_without);
        cluster.nodes[at_age.unwrap()].status = None;
        cluster.reconcile();
        assert_eq!(
            cluster.outer_families(),
            [IpFamily::Ipv6; 3],
            "{node_without} has no address"
        );
    }
}

/// Three Nodes with IPv4, and one with IPv6 that is the second oldest.
fn with_one_ipv6_node() -> Cluster {
    let mut cluster = cluster(0);
    let nodes = [
        ("first", "10.1.0.1"),
        ("other-family", "fd00::2"),
        ("third", "10.1.0.3"),
        ("fourth", "10.1.0.4"),
    ];
    for (second, (name, address)) in (0..).zip(nodes) {
        cluster.nodes.push(at(second, node(name, &[address])));
    }
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 4]);
    cluster
}

/// Deletes a Node and its NodeNetwork.
fn delete_node(cluster: &mut Cluster, name: &str) {
    cluster.nodes.retain(|node| node.name_any() != name);
    let networks = &mut cluster.networks;
    networks.retain(|network| network.name_any() != name);
    cluster.reconcile();
}

#[test]
fn removed_node_does_not_change_outer_family() {
    let mut cluster = with_one_ipv6_node();
    delete_node(&mut cluster, "first");
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 3]);
    let message =
        "False NoNodeAddress: status.addresses of the Node has no IPv4 address of type InternalIP";
    assert_eq!(cluster.node_message("other-family"), message);
    delete_node(&mut cluster, "third");
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 2]);
}

#[test]
fn outer_family_changes_when_no_node_has_address_of_family() {
    let mut cluster = with_one_ipv6_node();
    delete_node(&mut cluster, "first");
    cluster.nodes[1] = at(2, node("third", &["fd00::3"]));
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 3]);
    cluster.nodes[2] = at(3, node("fourth", &["fd00::4"]));
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6; 3]);
}

#[test]
fn ipv6_cidr_changes_outer_family_despite_node_without_match() {
    let mut cluster = cluster(2);
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "fd00::1"]);
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 2]);
    cluster.edit_mode(
        "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 4096}}, nodeAddress: {cidr: 'fd00::/16'}}",
    );
    cluster.reconcile();
    assert_eq!(
        cluster.outer_families(),
        [IpFamily::Ipv4; 2],
        "the agent of worker-2 has not reported"
    );
    cluster.agents_report(0);
    cluster.finish_rollout();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6; 2]);
}

#[test]
fn mixed_outer_families_resolve_to_majority() {
    let mut cluster = cluster(3);
    for (n, old) in (1..).zip(&mut cluster.nodes) {
        let (ipv4, ipv6) = (format!("10.1.0.{n}"), format!("fd00::{n}"));
        *old = node(&format!("worker-{n}"), &[&ipv4, &ipv6]);
    }
    cluster.reconcile();
    cluster.networks[0].spec.modes[0].outer_family = IpFamily::Ipv6;
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 3]);
    for network in &mut cluster.networks[1..] {
        network.spec.modes[0].outer_family = IpFamily::Ipv6;
    }
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6; 3]);
}

#[test]
fn pools_of_both_families_give_block_of_each_family() {
    let mut cluster = cluster(2);
    cluster.nodes[0] = at(0, node("worker-1", &["10.1.0.1", "2001:db8::1"]));
    cluster
        .pools
        .push(at(1, pool("default-v6", "fd00:10::/64", "")));
    cluster.reconcile();
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

#[test]
fn used_node_address_is_kept_in_any_order() {
    let mut cluster = cluster(2);
    cluster.nodes[0] = node(
        "worker-1",
        &["10.1.0.1", "192.168.3.4", "fd00::1", "fd00::2"],
    );
    cluster.reconcile();
    let before = (cluster.networks.clone(), cluster.subnets.clone());
    cluster.nodes[0] = node(
        "worker-1",
        &["fd00::2", "192.168.3.4", "fd00::1", "10.1.0.1"],
    );
    assert!(cluster.plan().is_empty());
    // The order counts when the address in use is not reported any more, or not selected.
    cluster.nodes[0] = node("worker-1", &["172.16.0.1", "192.168.3.4"]);
    cluster.reconcile();
    assert_ne!(
        (&cluster.networks, &cluster.subnets),
        (&before.0, &before.1)
    );
    let addresses = |cluster: &Cluster| cluster.networks[0].spec.addresses;
    assert_eq!(
        addresses(&cluster).ipv4,
        Some("172.16.0.1".parse().unwrap())
    );
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 4096}}, nodeAddress: {cidr: 192.168.0.0/16}}");
    cluster.reconcile();
    assert_eq!(
        addresses(&cluster).ipv4,
        Some("192.168.3.4".parse().unwrap())
    );
}

const REMEDY: &str = "set a unique --node-ip for each kubelet, or select other addresses with spec.nodeAddress of the NetworkMode";

#[test]
fn duplicate_node_address_is_reported_and_used_by_one_node() {
    for spec in [
        "{mode: overlay, overlay: {encapsulation: vxlan}}",
        "{mode: host-gw}",
        "{mode: underlay}",
    ] {
        let mut cluster = cluster(0);
        cluster.modes[0] = at(0, mode("default", spec));
        cluster.nodes = vec![
            at(5, node("a", &["10.0.2.15"])),
            at(3, node("b", &["10.0.2.15"])),
            at(4, node("c", &["10.0.2.16"])),
        ];
        cluster.reconcile();
        assert_eq!(
            cluster.node_message("a"),
            format!(
                "False NoNodeAddress: status.addresses of the Node has no usable IPv4 address of type InternalIP: 10.0.2.15 is the address of Node b; {REMEDY}"
            )
        );
        assert_eq!(
            cluster.node_message("b"),
            format!(
                "True SubnetsAssigned: 1 block of default-v4; the same address is reported by Node a (10.0.2.15), which cannot use it; {REMEDY}"
            )
        );
        assert_eq!(
            cluster.node_message("c"),
            "True SubnetsAssigned: 1 block of default-v4"
        );
        assert!(cluster.blocks("a").is_empty());
        cluster.assert_pool_allocatable("default-v4");
        // The node has a second address.
        cluster.nodes[0] = node("a", &["10.0.2.15", "10.1.0.1"]);
        cluster.reconcile();
        assert_eq!(
            cluster
                .networks
                .iter()
                .find(|it| it.name_any() == "a")
                .unwrap()
                .spec
                .addresses
                .ipv4,
            Some("10.1.0.1".parse().unwrap())
        );
        assert!(
            cluster
                .node_message("a")
                .starts_with("True SubnetsAssigned")
        );
    }
}

#[test]
fn node_keeps_address_claimed_by_other_node() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    let before = cluster.clone();
    cluster.nodes.push(at(0, node("a", &["10.1.0.1"])));
    cluster.reconcile();
    assert_eq!(cluster.subnets, before.subnets);
    assert_eq!(cluster.networks[0].spec, before.networks[0].spec);
    // The owner of the address is deleted.
    delete_node(&mut cluster, "worker-1");
    assert!(
        cluster
            .node_message("a")
            .starts_with("True SubnetsAssigned")
    );
}

#[test]
fn renamed_node_gets_address_of_not_ready_node() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster
        .not_ready
        .insert("worker-1".to_owned(), Duration::ZERO);
    cluster.nodes.push(node("renamed", &["10.1.0.1"]));
    cluster.reconcile();
    assert!(cluster.node_message("renamed").starts_with("True SubnetsAssigned: 1 block of default-v4; the same address is reported by Node worker-1 (10.1.0.1)"), "{}", cluster.node_message("renamed"));
    assert_eq!(cluster.blocks("worker-1").len(), 1);
    // The node keeps the address when the old Node is Ready again.
    cluster.not_ready.clear();
    cluster.reconcile();
    assert!(cluster.node_message("renamed").starts_with("True"));
    assert!(
        cluster
            .node_message("worker-1")
            .starts_with("False NoNodeAddress")
    );
}

#[test]
fn unusable_node_address_is_ignored() {
    for unusable in [
        "127.0.0.1",
        "169.254.7.7",
        "fe80::1",
        "::1",
        "0.0.0.0",
        "ff02::1",
    ] {
        let mut cluster = cluster(1);
        cluster.nodes[0] = node("worker-1", &[unusable, "10.1.0.1"]);
        cluster.reconcile();
        let addresses: Vec<String> = cluster.networks[0]
            .spec
            .addresses
            .iter()
            .map(|it| it.to_string())
            .collect();
        assert_eq!(addresses, ["10.1.0.1"], "{unusable}");
    }
}
