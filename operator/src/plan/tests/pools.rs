//! Nodes that a pool serves, and the conditions of IPPools.

use kube::ResourceExt;
use netweft_crds::NodeSubnet;

use crate::testing::{Cluster, at, cluster, kube_proxy, mode, node, pool, services, yaml};

#[test]
fn pool_serves_only_selected_nodes() {
    let mut cluster = cluster(2);
    cluster.pools[0] = at(
        0,
        pool(
            "p",
            "10.0.0.0/16",
            "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}",
        ),
    );
    cluster.reconcile();
    assert!(cluster.blocks("worker-1").is_empty());
    assert_eq!(cluster.blocks("worker-2"), ["10.0.0.0/26"]);
    assert_eq!(
        cluster.node_message("worker-1"),
        format!("False NoSubnet: no IPPool serves this node; {WITHOUT_TUNNEL_ADDRESS}")
    );
    cluster.modes[0] = at(0, mode("default", "{mode: host-gw}"));
    cluster.reconcile();
    assert_eq!(
        cluster.node_message("worker-1"),
        "False NoSubnet: no IPPool serves this node"
    );
}

const WITHOUT_TUNNEL_ADDRESS: &str = "without a tunnel address this node reaches pods on other nodes only if the network between nodes forwards pod addresses";

#[test]
fn exhausted_pool_names_unserved_nodes() {
    let mut cluster = cluster(3);
    cluster.pools[0] = at(0, pool("small", "10.0.0.0/25", ""));
    let plan = cluster.plan();
    assert!(plan.pool_statuses[0].event.as_ref().unwrap().warning);
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("small"),
        "False Exhausted: no block is left for worker-3; create another IPPool"
    );
    assert_eq!(
        cluster.node_message("worker-3"),
        format!("False NoSubnet: no block is left in small; {WITHOUT_TUNNEL_ADDRESS}")
    );
}

#[test]
fn nearly_exhausted_pool_is_reported_early() {
    let message_with = |nodes: usize| {
        let mut cluster = cluster(nodes);
        // A pool of ten blocks.
        let reserved = "reserved: [10.0.2.128/25, 10.0.3.0/24]";
        cluster.pools[0] = at(0, pool("ten", "10.0.0.0/22", reserved));
        let plan = cluster.plan();
        let event = plan.pool_statuses[0].event.clone().unwrap();
        cluster.reconcile();
        (cluster.pool_message("ten"), event.warning)
    };
    assert_eq!(message_with(8).0, "True Allocatable: 2 blocks free");
    let few = "only 1 block free: create another IPPool before the pool is exhausted";
    assert_eq!(
        message_with(9),
        (format!("True NearlyExhausted: {few}"), true)
    );
}

#[test]
fn disabled_pool_keeps_assigned_blocks() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.pools[0].spec.disabled = true;
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    cluster.reconcile();
    assert_eq!(
        (
            cluster.blocks("worker-1").len(),
            cluster.blocks("worker-2").len()
        ),
        (1, 0)
    );
    let message = "True Disabled: spec.disabled: no new blocks and addresses; 1 block assigned, 1023 blocks free; no pod has an address of this pool, so the pool can be deleted";
    assert_eq!(cluster.pool_message("default-v4"), message);
}

#[test]
fn invalidated_pool_or_mode_keeps_running_traffic() {
    let edits: [fn(&mut Cluster); 6] = [
        |cluster| cluster.pools[0].spec.reserved = vec!["ten".to_owned()],
        |cluster| cluster.pools[0].spec.network_mode = "missing".to_owned(),
        |cluster| {
            cluster.modes[0] = mode("default", "{mode: host-gw, nodeAddress: {}}");
        },
        |cluster| cluster.modes.clear(),
        |cluster| cluster.pools.clear(),
        |cluster| cluster.services = vec![services("kubernetes", "10.244.128.0/20")],
    ];
    for (number, invalidate) in edits.into_iter().enumerate() {
        let mut cluster = cluster(2);
        cluster.reconcile();
        cluster.agents_report(3);
        cluster.reconcile();
        let (subnets, networks) = (cluster.subnets.clone(), specs(&cluster));
        invalidate(&mut cluster);
        cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
        cluster.reconcile();
        assert_eq!(cluster.subnets, subnets, "{number}");
        assert_eq!(specs(&cluster)[..2], networks, "{number}");
        assert!(
            cluster.networks[2].spec.modes.is_empty() && cluster.blocks("worker-3").is_empty(),
            "an invalid object assigns nothing: {number}"
        );
    }
}

fn specs(cluster: &Cluster) -> Vec<netweft_crds::NodeNetworkSpec> {
    cluster
        .networks
        .iter()
        .map(|network| network.spec.clone())
        .collect()
}

#[test]
fn pool_overlapping_nodes_or_services_names_them() {
    let mut cluster = cluster(0);
    cluster.nodes = ["10.244.7.7", "10.244.7.8", "10.1.0.3"]
        .map(|address| node(&format!("at-{address}"), &[address]))
        .into();
    cluster.services = vec![services("kubernetes", "10.96.0.0/16")];
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("default-v4"),
        "False Overlap: spec.cidr 10.244.0.0/16 contains the address of Node at-10.244.7.7 (10.244.7.7), \
         Node at-10.244.7.8 (10.244.7.8): no new blocks are assigned; create a pool with a range outside and delete this one"
    );
    cluster.nodes.remove(0);
    cluster.reconcile();
    cluster.assert_pool_allocatable("default-v4");
    cluster.services.push(services("more", "10.240.0.0/12"));
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("default-v4"),
        "False Overlap: spec.cidr 10.244.0.0/16 overlaps the Service range 10.240.0.0/12 (ServiceCIDR more): \
         no new blocks are assigned; create a pool with a range outside and delete this one"
    );
}

#[test]
fn pool_covering_used_node_address_is_overlap() {
    let mut cluster = cluster(3);
    cluster.reconcile();
    cluster
        .pools
        .push(at(9, pool("over", "10.1.0.0/30", "blockSize: 30")));
    cluster.nodes.push(node("worker-4", &["10.2.0.1"]));
    cluster.nodes.push(node("worker-5", &["10.2.0.2"]));
    cluster.nodes.push(node("worker-6", &["10.2.0.3"]));
    cluster.nodes.push(node("worker-7", &["10.1.0.0"]));
    cluster.reconcile();
    let message = cluster.pool_message("over");
    assert!(
        message.starts_with(
            "False Overlap: spec.cidr 10.1.0.0/30 contains the address of Node worker-1 (10.1.0.1)"
        ),
        "{message}"
    );
    for node in ["worker-1", "worker-7"] {
        assert_eq!(
            cluster.node_message(node),
            "True SubnetsAssigned: 1 block of default-v4"
        );
    }
}

#[test]
fn node_address_inside_pool_affects_only_that_node() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    // The address is in the block that would be assigned next.
    cluster.nodes.push(node("inside", &["10.244.0.130"]));
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.reconcile();
    assert!(cluster.blocks("inside").is_empty());
    assert_eq!(cluster.blocks("worker-3"), ["10.244.0.192/26"]);
    assert_eq!(
        cluster.pool_message("default-v4"),
        "True Allocatable: 1020 blocks free; node addresses inside spec.cidr, whose blocks are not assigned: Node inside (10.244.0.130); correct the node addresses"
    );
    assert_eq!(
        cluster.node_message("inside"),
        format!(
            "False NoNodeAddress: status.addresses of the Node has no usable IPv4 address of type InternalIP: 10.244.0.130 is inside spec.cidr of IPPool default-v4; {ADDRESS_REMEDY}"
        )
    );
}

const ADDRESS_REMEDY: &str = "set a unique --node-ip for each kubelet, or select other addresses with spec.nodeAddress of the NetworkMode";

#[test]
fn external_ip_inside_pool_is_not_assigned_to_pods() {
    let mut cluster = cluster(2);
    let addresses =
        "[{type: InternalIP, address: 10.1.0.9}, {type: ExternalIP, address: 10.244.0.7}]";
    cluster.nodes.push(yaml(&format!(
        "{{metadata: {{name: outside, uid: o}}, status: {{addresses: {addresses}}}}}"
    )));
    cluster.reconcile();
    assert_eq!(cluster.blocks("outside"), ["10.244.0.64/26"]);
    assert!(
        cluster
            .pool_message("default-v4")
            .contains("Node outside (10.244.0.7)")
    );
}

/// Four blocks, all of deleted Nodes.
fn with_only_orphans() -> Cluster {
    let mut cluster = cluster(4);
    cluster.pools[0] = at(0, pool("default-v4", "10.244.0.0/24", "blockSize: 26"));
    cluster.reconcile();
    cluster.nodes = (5..=8)
        .map(|n| node(&format!("worker-{n}"), &[&format!("10.1.0.{n}")]))
        .collect();
    cluster.networks.clear();
    cluster.reconcile();
    cluster
}

#[test]
fn exhausted_pool_counts_blocks_of_deleted_nodes() {
    assert_eq!(
        with_only_orphans().pool_message("default-v4"),
        "False Exhausted: no block is left for worker-5, worker-6, worker-7, worker-8; 4 blocks of deleted Nodes about to be \
         reclaimed; create another IPPool"
    );
}

#[test]
fn orphaned_blocks_are_reclaimed_oldest_first_if_exhausted() {
    let mut cluster = with_only_orphans();
    cluster.reclaimable = ["10-244-0-128-26", "10-244-0-0-26"]
        .map(str::to_owned)
        .into();
    let others = cluster.nodes.split_off(1);
    let plan = cluster.step();
    assert_eq!(
        plan.subnets.delete[0].spec.cidr.to_string(),
        "10.244.0.128/26"
    );
    assert_eq!(plan.subnets.delete.len(), 1);
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-5"), ["10.244.0.128/26"]);
    cluster.nodes.extend(others);
    cluster.reconcile();
    let assigned: Vec<_> = (5..=8)
        .flat_map(|n| cluster.blocks(&format!("worker-{n}")))
        .collect();
    assert_eq!(assigned.len(), 2);
    assert!(
        cluster
            .pool_message("default-v4")
            .starts_with("False Exhausted: no block is left for worker-7, worker-8; 2 blocks of")
    );
    // If an expired block is released anyway, no other block is reclaimed.
    cluster.reclaimable = ["10-244-0-64-26", "10-244-0-192-26"]
        .map(str::to_owned)
        .into();
    cluster.expired = ["10-244-0-64-26".to_owned()].into();
    cluster.nodes.pop();
    cluster.networks.pop();
    let plan = cluster.step();
    assert_eq!(plan.subnets.delete.len(), 1, "{:?}", plan.subnets.delete);
}

#[test]
fn orphaned_block_is_kept_while_node_or_free_block_exists() {
    let mut cluster = with_only_orphans();
    cluster.reclaimable = cluster.subnets.iter().map(ResourceExt::name_any).collect();
    cluster.nodes.push(node("worker-1", &["10.1.0.1"]));
    let plan = cluster.step();
    let own = |it: &NodeSubnet| it.spec.node == "worker-1";
    assert_eq!(
        (
            plan.subnets.delete.iter().filter(|it| own(it)).count(),
            plan.subnets.delete.len()
        ),
        (0, 3)
    );
    let mut roomy = with_only_orphans();
    roomy.pools.push(at(1, pool("more", "10.9.0.0/16", "")));
    roomy.reclaimable = roomy.subnets.iter().map(ResourceExt::name_any).collect();
    assert!(roomy.step().subnets.delete.is_empty());
}

#[test]
fn pool_outside_kube_proxy_cluster_cidr_is_used() {
    let mut cluster = cluster(1);
    cluster.kube_proxy = Some(kube_proxy("clusterCIDR: 10.0.0.0/16"));
    cluster.reconcile();
    assert_eq!(cluster.blocks("worker-1"), ["10.244.0.0/26"]);
    assert!(cluster.pool_message("default-v4").starts_with(
        "False KubeProxyMismatch: kube-proxy detects pods by clusterCIDR 10.0.0.0/16"
    ));
    cluster.kube_proxy = Some(kube_proxy("clusterCIDR: 10.244.0.0/16"));
    cluster.reconcile();
    cluster.assert_pool_allocatable("default-v4");
}

#[test]
fn kube_proxy_without_cluster_cidr_is_mentioned() {
    let mut cluster = cluster(1);
    cluster.kube_proxy = Some(kube_proxy("clusterCIDR: ''"));
    cluster.reconcile();
    let message = cluster.pool_message("default-v4");
    assert!(
        message.starts_with("True Allocatable")
            && message
                .contains("kube-proxy has no IPv4 clusterCIDR to detect pods of 10.244.0.0/16"),
        "{message}"
    );
    assert_eq!(cluster.blocks("worker-1"), ["10.244.0.0/26"]);
}

#[test]
fn missing_kube_proxy_config_map_is_mentioned() {
    let mut cluster = cluster(1);
    cluster.kube_proxy = None;
    cluster.reconcile();
    assert_eq!(
        cluster.pool_message("default-v4"),
        "True Allocatable: 1023 blocks free; whether kube-proxy detects pods of this pool is unknown, because ConfigMap kube-system/kube-proxy does not exist: if kube-proxy runs, its clusterCIDR must contain 10.244.0.0/16, or its detectLocalMode must be InterfaceNamePrefix with nw"
    );
}
