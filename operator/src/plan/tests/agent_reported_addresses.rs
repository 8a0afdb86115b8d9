//! Node addresses that agents report, and separate selectors for each family.

use kube::ResourceExt;
use netweft_crds::{IpFamily, NodeAddresses, NodeNetwork};

use crate::testing::{Cluster, at, cluster, mode, node, pool, services};

const REMEDY: &str = "set a unique --node-ip for each kubelet, or select other addresses with spec.nodeAddress of the NetworkMode";

/// Nodes with one kubelet address each, in a mode with this `nodeAddress`. No agent has reported yet.
fn cluster_with_selector(nodes: usize, parameters: &str, node_address: &str) -> Cluster {
    let mut cluster = cluster(nodes);
    let spec = format!("{{{parameters}, nodeAddress: {node_address}}}");
    cluster.modes[0] = at(0, mode("default", &spec));
    cluster.reconcile();
    cluster
}

const VXLAN: &str = "mode: overlay, overlay: {encapsulation: vxlan}";
const MODES: [&str; 5] = [
    VXLAN,
    "mode: overlay, overlay: {encapsulation: ipip}",
    "mode: overlay, overlay: {encapsulation: udp}",
    "mode: host-gw",
    "mode: underlay",
];

fn network<'a>(cluster: &'a Cluster, name: &str) -> &'a NodeNetwork {
    let mut networks = cluster.networks.iter();
    networks.find(|it| it.name_any() == name).unwrap()
}

fn addresses(cluster: &Cluster, name: &str) -> Vec<String> {
    let addresses = network(cluster, name).spec.addresses;
    addresses.iter().map(|it| it.to_string()).collect()
}

/// One InternalIP, and another link for pod traffic.
#[test]
fn address_found_by_agent_is_used_in_every_mode() {
    for (parameters, node_address) in MODES.iter().flat_map(|mode| {
        [
            "{interface: eth1}",
            "{interface: 'eth*'}",
            "{cidr: 192.168.0.0/16}",
            "{reaches: 192.168.9.9}",
            "{ipv4: {interface: eth1}}",
        ]
        .map(|it| (*mode, it))
    }) {
        let case = format!("{parameters} {node_address}");
        let mut cluster = cluster_with_selector(2, parameters, node_address);
        assert!(cluster.blocks("worker-1").is_empty(), "{case}");
        let requested = network(&cluster, "worker-1").spec.address_selectors.clone();
        assert!(requested.unwrap().ipv4.is_some(), "{case}");
        for n in 1..=2 {
            let address = format!("192.168.0.{n}");
            cluster.agent_reports_addresses(&format!("worker-{n}"), &[("eth1", &address)]);
        }
        cluster.reconcile();
        for n in 1..=2 {
            let (name, address) = (format!("worker-{n}"), format!("192.168.0.{n}"));
            assert_eq!(addresses(&cluster, &name), [address.as_str()], "{case}");
            assert_eq!(cluster.blocks(&name).len(), 1, "{case}");
            assert_eq!(
                cluster.node_message(&name),
                "True SubnetsAssigned: 1 block of default-v4",
                "{case}"
            );
        }
        let subnets = cluster.subnets.iter();
        let published: Vec<NodeAddresses> = subnets.map(|it| it.spec.node_addresses).collect();
        let own: Vec<NodeAddresses> = cluster
            .networks
            .iter()
            .map(|it| it.spec.addresses)
            .collect();
        assert_eq!(published, own, "{case}");
        let speakers = cluster
            .networks
            .iter()
            .filter_map(|it| it.spec.bgp.as_ref());
        let sessions: Vec<String> = speakers
            .flat_map(|speaker| &speaker.sessions)
            .map(|session| format!("{}-{}", session.local, session.peer))
            .collect();
        let expected = ["192.168.0.1-192.168.0.2", "192.168.0.2-192.168.0.1"];
        let is_underlay = parameters == "mode: underlay";
        assert_eq!(
            sessions,
            &expected[..if is_underlay { 2 } else { 0 }],
            "{case}"
        );
    }
}

#[test]
fn internal_ip_selector_is_not_sent_to_agent() {
    let mut cluster = cluster_with_selector(1, VXLAN, "{from: internal-ip}");
    assert_eq!(network(&cluster, "worker-1").spec.address_selectors, None);
    // A report without a request is ignored.
    cluster.nodes[0] = node("worker-1", &[]);
    cluster.agent_reports_addresses("worker-1", &[("eth1", "192.168.0.1")]);
    cluster.reconcile();
    assert_eq!(
        addresses(&cluster, "worker-1"),
        ["10.1.0.1"],
        "the last address stays"
    );
}

#[test]
fn address_report_counts_only_for_current_selector() {
    let mut cluster = cluster_with_selector(1, VXLAN, "{interface: eth1}");
    cluster.agent_reports_addresses("worker-1", &[("eth10", "192.168.0.1")]);
    cluster.reconcile();
    assert!(cluster.blocks("worker-1").is_empty());
    let spec = format!("{{{VXLAN}, nodeAddress: {{reaches: 192.168.9.9}}}}");
    cluster.edit_mode(&spec);
    cluster.reconcile();
    assert!(
        cluster
            .node_message("worker-1")
            .contains("has not reported yet"),
        "{}",
        cluster.node_message("worker-1")
    );
    assert!(cluster.blocks("worker-1").is_empty());
    cluster.agent_reports_addresses("worker-1", &[("eth10", "192.168.0.1")]);
    cluster.reconcile();
    assert_eq!(addresses(&cluster, "worker-1"), ["192.168.0.1"]);
    // After an edit of the destination the previous report does not count, but the address stays in use.
    cluster.edit_mode(&spec.replace("192.168.9.9", "172.16.0.9"));
    cluster.reconcile();
    assert!(
        cluster
            .node_message("worker-1")
            .ends_with("; the last address, 192.168.0.1, stays in use")
    );
    assert_eq!(addresses(&cluster, "worker-1"), ["192.168.0.1"]);
}

#[test]
fn address_in_use_precedes_kubelet_and_agent_addresses() {
    let mut cluster = cluster_with_selector(1, VXLAN, "{cidr: 192.168.0.0/16}");
    cluster.agent_reports_addresses(
        "worker-1",
        &[("eth1", "192.168.0.7"), ("eth2", "192.168.0.8")],
    );
    cluster.reconcile();
    assert_eq!(addresses(&cluster, "worker-1"), ["192.168.0.7"]);
    cluster.agent_reports_addresses(
        "worker-1",
        &[("eth2", "192.168.0.8"), ("eth1", "192.168.0.7")],
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.1", "192.168.0.9"]);
    cluster.reconcile();
    assert_eq!(
        addresses(&cluster, "worker-1"),
        ["192.168.0.7"],
        "the address is in use"
    );
    cluster.agent_reports_addresses("worker-1", &[("eth2", "192.168.0.8")]);
    cluster.reconcile();
    assert_eq!(addresses(&cluster, "worker-1"), ["192.168.0.9"]);
}

#[test]
fn invalid_address_report_affects_only_its_node() {
    for (invalid, why) in [
        ("127.0.0.1", "is not an address that other nodes can reach"),
        (
            "169.254.1.1",
            "is not an address that other nodes can reach",
        ),
        ("224.0.0.5", "is not an address that other nodes can reach"),
        ("10.244.7.7", "is inside spec.cidr of IPPool default-v4"),
        (
            "10.96.0.1",
            "is inside the Service range 10.96.0.0/12 (ServiceCIDR kubernetes)",
        ),
        ("10.1.0.2", "is in status.addresses of Node worker-2"),
        ("192.168.0.2", "is the address of Node worker-2"),
    ] {
        let mut cluster = cluster_with_selector(2, VXLAN, "{interface: eth1}");
        cluster
            .services
            .push(services("kubernetes", "10.96.0.0/12"));
        cluster.agent_reports_addresses("worker-2", &[("eth1", "192.168.0.2")]);
        cluster.reconcile();
        cluster.agent_reports_addresses("worker-1", &[("eth1", invalid)]);
        cluster.reconcile();
        assert_eq!(
            cluster.node_message("worker-1"),
            format!(
                "False NoNodeAddress: spec.nodeAddress {{interface: eth1}} selects no usable IPv4 address of this node: {invalid} {why}; {REMEDY}"
            )
        );
        assert!(cluster.blocks("worker-1").is_empty(), "{invalid}");
        assert!(
            cluster
                .node_message("worker-2")
                .starts_with("True SubnetsAssigned: 1 block"),
            "{invalid}"
        );
        assert!(
            cluster
                .pool_message("default-v4")
                .starts_with("True Allocatable"),
            "{invalid}: {}",
            cluster.pool_message("default-v4")
        );
        // Another address is used.
        cluster.agent_reports_addresses("worker-1", &[("eth1", invalid), ("eth1", "192.168.0.1")]);
        cluster.reconcile();
        assert_eq!(
            addresses(&cluster, "worker-1"),
            ["192.168.0.1"],
            "{invalid}"
        );
    }
}

#[test]
fn address_in_use_stated_by_other_node_is_refused() {
    let mut cluster = cluster_with_selector(2, VXLAN, "{interface: eth1}");
    for n in 1..=2 {
        let address = format!("192.168.0.{n}");
        cluster.agent_reports_addresses(&format!("worker-{n}"), &[("eth1", &address)]);
    }
    cluster.reconcile();
    cluster.nodes[1] = node("worker-2", &["10.1.0.2", "192.168.0.1"]);
    cluster.reconcile();
    assert_eq!(
        cluster.node_message("worker-1"),
        format!(
            "False NoNodeAddress: spec.nodeAddress {{interface: eth1}} selects no usable IPv4 address of this node: 192.168.0.1 is in status.addresses of Node worker-2; {REMEDY}; the last address, 192.168.0.1, stays in use"
        )
    );
    // Another address is used at once, and only by this node.
    cluster.agent_reports_addresses(
        "worker-1",
        &[("eth1", "192.168.0.1"), ("eth1", "192.168.0.7")],
    );
    cluster.reconcile();
    assert_eq!(addresses(&cluster, "worker-1"), ["192.168.0.7"]);
    assert_eq!(addresses(&cluster, "worker-2"), ["192.168.0.2"]);
}

#[test]
fn at_most_sixteen_reported_addresses_are_read() {
    let mut cluster = cluster_with_selector(1, VXLAN, "{interface: eth1}");
    let many: Vec<String> = (1..=16).map(|n| format!("10.244.0.{n}")).collect();
    let mut found: Vec<(&str, &str)> = many.iter().map(|it| ("eth1", it.as_str())).collect();
    found.push(("eth1", "192.168.0.1"));
    cluster.agent_reports_addresses("worker-1", &found);
    cluster.reconcile();
    assert!(cluster.blocks("worker-1").is_empty());
}

#[test]
fn cidr_of_one_family_leaves_other_family_to_kubelet() {
    for (parameters, node_address) in MODES
        .iter()
        .flat_map(|mode| ["{cidr: 10.0.0.0/8}", "{ipv4: {cidr: 10.0.0.0/8}}"].map(|it| (*mode, it)))
    {
        if parameters.contains("ipip") {
            continue;
        }
        let mut cluster = cluster_with_selector(0, parameters, node_address);
        cluster
            .pools
            .push(at(0, pool("default-v6", "fd00:10:244::/64", "")));
        for n in 1..=2 {
            let (ipv4, ipv6) = (format!("10.1.0.{n}"), format!("fd00::{n}"));
            cluster
                .nodes
                .push(node(&format!("worker-{n}"), &[&ipv4, &ipv6]));
        }
        cluster.reconcile();
        let case = format!("{parameters} {node_address}");
        assert_eq!(
            addresses(&cluster, "worker-1"),
            ["10.1.0.1", "fd00::1"],
            "{case}"
        );
        assert_eq!(
            cluster.node_message("worker-1"),
            "True SubnetsAssigned: 2 blocks of default-v4, default-v6",
            "{case}"
        );
    }
}

#[test]
fn family_without_address_is_reported_with_selector() {
    let mut cluster = cluster_with_selector(
        2,
        "mode: host-gw",
        "{ipv4: {from: internal-ip}, ipv6: {interface: 'ens*'}}",
    );
    cluster
        .pools
        .push(at(0, pool("default-v6", "fd00:10:244::/64", "")));
    cluster.reconcile();
    let why = |cluster: &Cluster| {
        let message = cluster.node_message("worker-1");
        let expected = "True SubnetsAssigned: 1 block of default-v4; no block of default-v6: packets to it need an IPv6 address of the node: ";
        message
            .strip_prefix(expected)
            .unwrap_or(&message)
            .to_owned()
    };
    assert_eq!(
        why(&cluster),
        "spec.nodeAddress {interface: ens*} selects IPv6 addresses, which the agent of this node has not reported yet; if this persists, see the log of the agent"
    );
    cluster.agent_reports_addresses("worker-1", &[]);
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("default-v6"),
        "False NoNodeAddress: no block is assigned: NetworkMode default needs an IPv6 address of each node, and spec.nodeAddress of the NetworkMode selects none on any Node of this pool; see the condition Assigned of the NodeNetworks"
    );
    assert_eq!(
        why(&cluster),
        "spec.nodeAddress {interface: ens*} matches no link of this node that is up and has a global IPv6 address outside all IPPools, neither temporary, deprecated nor tentative; compare `ip address` on the node, and correct spec.nodeAddress of the NetworkMode or the addresses of the node"
    );
}

#[test]
fn unmatched_address_selector_is_explained() {
    for (node_address, expected) in [
        (
            "{interface: eth1}",
            "spec.nodeAddress {interface: eth1} matches no link of this node that is up and has a global IPv4 address outside all IPPools; compare `ip address` on the node, and correct",
        ),
        (
            "{cidr: 192.168.0.0/16}",
            "spec.nodeAddress {cidr: 192.168.0.0/16} selects no address of this node: status.addresses of the Node (kubelet's own addresses) has none inside 192.168.0.0/16, and no link of this node that is up has a global one outside all IPPools; compare `ip address` on the node, and correct",
        ),
        (
            "{reaches: 192.168.9.9}",
            "spec.nodeAddress {reaches: 192.168.9.9} selects no address of this node: its kernel does not send to 192.168.9.9 from a global IPv4 address outside all IPPools; compare `ip route get 192.168.9.9` on the node, and correct",
        ),
    ] {
        let mut cluster = cluster_with_selector(1, VXLAN, node_address);
        assert_eq!(
            cluster.node_message("worker-1"),
            format!(
                "False NoNodeAddress: spec.nodeAddress {node_address} selects IPv4 addresses, which the agent of this node has not reported yet; if this persists, see the log of the agent"
            )
        );
        cluster.agent_reports_addresses("worker-1", &[]);
        cluster.reconcile();
        let remedy = "spec.nodeAddress of the NetworkMode or the addresses of the node";
        assert_eq!(
            cluster.node_message("worker-1"),
            format!("False NoNodeAddress: {expected} {remedy}")
        );
    }
}

#[test]
fn outer_family_follows_selector_after_all_agent_reports() {
    let mut cluster = cluster_with_selector(3, VXLAN, "{from: internal-ip}");
    cluster.agents_report(0);
    cluster.edit_mode(&format!(
        "{{{VXLAN}, nodeAddress: {{ipv6: {{interface: eth1}}}}}}"
    ));
    cluster.reconcile();
    cluster.agent_reports_addresses("worker-1", &[("eth1", "fd00::1")]);
    cluster.agent_reports_addresses("worker-2", &[("eth1", "fd00::2")]);
    cluster.reconcile();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv4; 3]);
    cluster.agent_reports_addresses("worker-3", &[("eth1", "fd00::3")]);
    cluster.finish_rollout();
    assert_eq!(cluster.outer_families(), [IpFamily::Ipv6; 3]);
}

#[test]
fn invalid_mode_keeps_address_selectors() {
    let mut cluster = cluster_with_selector(1, VXLAN, "{interface: eth1}");
    cluster.agent_reports_addresses("worker-1", &[("eth1", "192.168.0.1")]);
    cluster.reconcile();
    let before = network(&cluster, "worker-1").spec.clone();
    cluster.edit_mode("{mode: host-gw, nodeAddress: {}}");
    cluster.reconcile();
    assert_eq!(network(&cluster, "worker-1").spec, before);
}
