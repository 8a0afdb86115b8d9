//! Pools whose CIDR another pod network uses.

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec};
use kube::ResourceExt;

use crate::testing::{Cluster, at, cluster, node, pool};

/// Sets the podCIDR and the condition Ready of a Node.
fn node_with(mut node: Node, pod_cidr: &str, ready: Option<&str>) -> Node {
    node.spec = Some(NodeSpec {
        pod_cidr: Some(pod_cidr.to_owned()),
        pod_cidrs: Some(vec![pod_cidr.to_owned()]),
        ..NodeSpec::default()
    });
    let condition = ready.map(|status| NodeCondition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        ..NodeCondition::default()
    });
    node.status.as_mut().unwrap().conditions = Some(condition.into_iter().collect());
    node
}

/// A cluster with podCIDRs inside the pool's CIDR, as created by `kubeadm init --pod-network-cidr`.
fn cluster_with_pod_cidrs(ready: [Option<&str>; 2]) -> Cluster {
    let mut cluster = cluster(2);
    for ((n, old), ready) in (0..).zip(&mut cluster.nodes).zip(ready) {
        *old = node_with(old.clone(), &format!("10.244.{n}.0/24"), ready);
    }
    cluster
}

#[test]
fn pod_cidrs_used_by_other_network_stall_pool() {
    let mut cluster = cluster_with_pod_cidrs([Some("True"), Some("False")]);
    cluster.reconcile();
    assert!(cluster.subnets.is_empty());
    let message = "False Overlap: spec.cidr 10.244.0.0/16 shares addresses with spec.podCIDRs of Node worker-1 (10.244.0.0/24), which had a pod \
                network before netweft: no new blocks are assigned; create a pool with a range outside and delete this one, or set \
                operator.ignoreNodePodCIDRs to true in the chart's values if no other network uses these addresses";
    assert_eq!(cluster.pool_message("default-v4"), message);
    // The verdict stays if a node gets a block of another pool, and if a Node restarts.
    cluster.pools.push(at(1, pool("second", "10.9.0.0/16", "")));
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-1"), ["10.9.0.0/26"]);
    assert_eq!(cluster.pool_message("default-v4"), message);
    cluster.nodes[0] = node_with(cluster.nodes[0].clone(), "10.244.0.0/24", Some("Unknown"));
    cluster.nodes[1] = node_with(cluster.nodes[1].clone(), "10.244.1.0/24", Some("Unknown"));
    cluster.reconcile();
    assert!(
        cluster
            .pool_message("default-v4")
            .starts_with("False Overlap")
    );
    cluster.ignore_pod_cidrs = true;
    cluster.reconcile();
    cluster.assert_pool_allocatable("default-v4");
}

#[test]
fn unused_pod_cidrs_do_not_stall_pool() {
    for ready in [
        [None; 2],
        [Some("False"); 2],
        [Some("False"), Some("Unknown")],
    ] {
        let mut cluster = cluster_with_pod_cidrs(ready);
        cluster.reconcile();
        assert_eq!(cluster.blocks("worker-2"), ["10.244.0.64/26"], "{ready:?}");
        // The nodes become Ready because of netweft.
        for node in &mut cluster.nodes {
            *node = node_with(node.clone(), "10.244.0.0/24", Some("True"));
        }
        cluster.reconcile();
        cluster.assert_pool_allocatable("default-v4");
    }
}

#[test]
fn single_node_with_other_network_does_not_stall_pool() {
    let mut cluster = cluster_with_pod_cidrs([Some("False"); 2]);
    cluster.reconcile();
    let other = node_with(node("other", &["10.1.0.9"]), "10.244.0.0/24", Some("True"));
    cluster.nodes.push(other);
    cluster.reconcile();
    assert_eq!(cluster.blocks("other"), ["10.244.1.0/26"]);
    cluster.assert_pool_allocatable("default-v4");
}

/// The agent of a node reports another network.
fn report_network(cluster: &mut Cluster, node: &str, cidr: &str) {
    let network = cluster.networks.iter_mut();
    let mut network = network.filter(|it| it.name_any() == node);
    let status = netweft_crds::NodeNetworkStatus {
        other_networks: vec![netweft_crds::OtherNetwork {
            cidr: cidr.parse().unwrap(),
            pool: "default-v4".into(),
            interface: Some("cni0".into()),
        }],
        ..Default::default()
    };
    network.next().unwrap().status = Some(status);
}

#[test]
fn reported_routes_of_other_network_stall_pool() {
    let mut cluster = cluster(2);
    cluster.step();
    for (node, cidr) in [("worker-2", "10.244.1.0/24"), ("worker-1", "10.244.0.0/24")] {
        report_network(&mut cluster, node, cidr);
    }
    cluster.step();
    assert_eq!(
        cluster.pool_message("default-v4"),
        "False Overlap: spec.cidr 10.244.0.0/16 shares addresses with another pod network: 10.244.0.0/24 on link cni0 of Node worker-1, \
         10.244.1.0/24 on link cni0 of Node worker-2: no new blocks are assigned; create a pool with a range outside and delete this one, \
         or set agent.ignoreOtherNetworks to true in the chart's values if no pod uses these addresses"
    );
    let blocks = cluster.subnets.len();
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.step();
    assert_eq!(cluster.subnets.len(), blocks, "the new node gets no block");
    // The other network is removed.
    cluster.agents_report(0);
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-3").len(), 1);
}

/// The report of one node cannot stall a pool that other nodes use.
#[test]
fn report_of_one_node_does_not_stall_used_pool() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster.agents_report(1);
    report_network(&mut cluster, "worker-2", "10.244.0.0/16");
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.step();
    cluster.assert_pool_allocatable("default-v4");
    assert_eq!(cluster.blocks("worker-3").len(), 1);
}
