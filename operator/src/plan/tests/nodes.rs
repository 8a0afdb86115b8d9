//! Nodes that are created, deleted, recreated, and that lose their addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt;
use kube::core::Selector;
use netweft_crds::SubnetState;

use crate::testing::{Cluster, at, cluster, labelled, node, pool};

fn states(cluster: &Cluster) -> Vec<SubnetState> {
    cluster
        .subnets
        .iter()
        .map(|subnet| subnet.spec.state)
        .collect()
}

#[test]
fn block_of_deleted_node_is_orphaned_and_returned() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    let deleted = cluster.nodes.remove(0);
    cluster.networks.remove(0);
    // An expired grace period has no effect before the block is orphaned.
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.step();
    assert_eq!(
        states(&cluster),
        [SubnetState::Orphaned, SubnetState::Active]
    );
    cluster.expired.clear();
    cluster.reconcile();
    // A new node does not get the block.
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-3"), ["10.244.0.128/26"]);
    // The former node gets the block when it returns.
    cluster.nodes.push(deleted);
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-1"), ["10.244.0.0/26"]);
    assert_eq!(states(&cluster), [SubnetState::Active; 3]);
    // The node does not return.
    cluster.nodes.retain(|node| node.name_any() != "worker-1");
    cluster.reconcile();
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.reconcile();
    assert!(cluster.blocks("worker-1").is_empty());
}

#[test]
fn block_of_existing_node_does_not_expire() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.subnets[0].spec.state = SubnetState::Orphaned;
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.reconcile();
    assert_eq!(states(&cluster), [SubnetState::Active]);
}

#[test]
fn node_without_address_gets_no_block_and_condition() {
    let mut cluster = cluster(1);
    cluster.nodes.push(node("no-address", &[]));
    cluster.nodes[0] = at(0, cluster.nodes[0].clone());
    cluster.nodes.push(at(1, node("v6", &["fd00::1"])));
    cluster.reconcile();
    assert!(cluster.blocks("no-address").is_empty() && cluster.blocks("v6").is_empty());
    let message =
        "False NoNodeAddress: status.addresses of the Node has no IPv4 address of type InternalIP";
    assert_eq!(cluster.node_message("no-address"), message);
    assert_eq!(cluster.node_message("v6"), message);
    assert_eq!(
        cluster.node_message("worker-1"),
        "True SubnetsAssigned: 1 block of default-v4"
    );
}

#[test]
fn node_losing_its_address_keeps_last_one() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.nodes[0] = node("worker-1", &[]);
    cluster.reconcile();
    assert_eq!(
        cluster.subnets[0].spec.node_addresses.ipv4,
        Some("10.1.0.1".parse().unwrap())
    );
    assert_eq!(
        cluster.networks[0].spec.addresses.ipv4,
        Some("10.1.0.1".parse().unwrap())
    );
    assert!(
        cluster
            .node_message("worker-1")
            .contains("the last address, 10.1.0.1, stays in use")
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.7"]);
    cluster.reconcile();
    assert_eq!(
        cluster.subnets[0].spec.node_addresses.ipv4,
        Some("10.1.0.7".parse().unwrap())
    );
    assert_eq!(
        cluster.networks[0].spec.addresses.ipv4,
        Some("10.1.0.7".parse().unwrap())
    );
}

#[test]
fn recreated_node_owns_its_node_network_again() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.nodes[0].metadata.uid = Some("another".to_owned());
    cluster.reconcile();
    assert_eq!(cluster.networks[0].owner_references()[0].uid, "another");
}

#[test]
fn link_mtu_of_node_changes_only_its_own_subnets() {
    let mut cluster = cluster(3);
    cluster.reconcile();
    let published = |cluster: &Cluster| {
        let subnets = cluster.subnets.iter();
        let published = subnets.map(|subnet| (subnet.spec.node.clone(), subnet.spec.link_mtu));
        published
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect::<Vec<_>>()
    };
    let report = |cluster: &mut Cluster, mtus: [Option<u32>; 3]| {
        for (network, mtu) in cluster.networks.iter_mut().zip(mtus) {
            network.status.get_or_insert_default().link_mtu = mtu;
        }
        cluster.reconcile();
    };
    assert_eq!(published(&cluster), [None; 3]);
    report(&mut cluster, [Some(1500), Some(1400), Some(1500)]);
    let honest = [Some(1500), Some(1400), Some(1500)];
    assert_eq!(published(&cluster), honest);
    // Without a report the last value stays.
    report(&mut cluster, [Some(1500), None, Some(1500)]);
    assert_eq!(published(&cluster), honest);
    for (reported, mtu) in [(u32::MAX, 65535), (0, 68)] {
        report(&mut cluster, [Some(reported), Some(1400), Some(1500)]);
        assert_eq!(published(&cluster), [Some(mtu), Some(1400), Some(1500)]);
    }
}

fn linux() -> Selector {
    [("os", "linux")].into_iter().collect()
}

fn mode_message(cluster: &Cluster) -> String {
    let status = cluster.modes[0].status.as_ref().unwrap();
    let ready = status.conditions.iter().find(|it| it.type_ == "Ready");
    ready.unwrap().message.clone()
}

#[test]
fn node_outside_agent_selector_gets_no_block_and_is_named() {
    let mut cluster = cluster(0);
    cluster.agent_nodes = linux();
    cluster.nodes = vec![
        labelled("worker-1", &["10.1.0.1"], "os", "linux"),
        // Neither the address nor the age of this Node counts.
        at(0, labelled("windows", &["fd00::1"], "os", "windows")),
    ];
    cluster.reconcile();
    cluster.agents_report(0);
    cluster.reconcile();
    assert_eq!(cluster.networks.len(), 1);
    assert!(cluster.blocks("windows").is_empty());
    assert_eq!(
        mode_message(&cluster),
        "1 of 1 node programmed; agent.nodeSelector excludes windows, so no agent runs there"
    );
}

#[test]
fn node_leaving_agent_selector_keeps_its_blocks() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster.agents_report(1);
    cluster.reconcile();
    let (subnets, networks) = (cluster.subnets.clone(), cluster.networks.len());
    cluster.agent_nodes = linux();
    cluster.reconcile();
    assert_eq!(
        (cluster.subnets, cluster.networks.len()),
        (subnets, networks)
    );
}

#[test]
fn node_network_without_blocks_and_agent_is_deleted() {
    let mut cluster = cluster(1);
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    assert_eq!(cluster.networks.len(), 1);
    cluster.agent_nodes = linux();
    cluster.reconcile();
    assert_eq!(cluster.networks.len(), 0);
}

#[test]
fn node_without_agent_report_gets_no_block() {
    let mut cluster = cluster(1);
    let pools = std::mem::take(&mut cluster.pools);
    cluster.reconcile();
    cluster.unacknowledged = [("worker-1".to_owned(), Duration::from_secs(600))].into();
    cluster.pools = pools;
    cluster.pools.push(at(1, pool("v6", "fd00:10::/64", "")));
    cluster.reconcile();
    assert!(cluster.blocks("worker-1").is_empty());
    let message = cluster.node_message("worker-1");
    assert!(message.starts_with("False NoSubnet: no agent has ever reported from this node, so the node gets no block; if no agent should run here, exclude the node with agent.nodeSelector in the values of the Helm chart"), "{message}");
    // The agent has reported, even if an old generation.
    cluster.agents_report(0);
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-1").len(), 2);
}

#[test]
fn nodes_beyond_limit_of_peers_without_blocks_are_reported() {
    let mut cluster = cluster(0);
    let nodes = (0..258).map(|n| {
        at(
            n,
            node(
                &format!("worker-{n:03}"),
                &[&format!("192.0.{}.{}", n / 250, n % 250 + 1)],
            ),
        )
    });
    cluster.nodes = nodes.collect();
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    let accepted = |name: usize| cluster.networks[name].spec.peers_without_blocks.len();
    assert_eq!((accepted(0), accepted(257)), (256, 256));
    let dropped = "other nodes drop encapsulated packets of this node";
    assert!(!cluster.node_message("worker-255").contains(dropped));
    assert!(cluster.node_message("worker-256").contains(dropped));
    assert!(cluster.node_message("worker-257").contains(dropped));
}
