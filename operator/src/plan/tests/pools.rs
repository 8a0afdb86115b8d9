//! Which nodes a pool serves, and what it says when it cannot.

use crate::testing::{Cluster, at, cluster, kube_proxy, mode, node, pool, services, yaml};

#[test]
fn a_pool_serves_the_nodes_it_selects() {
    let mut cluster = cluster(2);
    cluster.pools[0] = at(
        0,
        pool(
            "p",
            "10.0.0.0/16",
            "nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}",
        ),
    );
    cluster.settle();
    assert!(cluster.blocks("worker-1").is_empty());
    assert_eq!(cluster.blocks("worker-2"), ["10.0.0.0/26"]);
    assert_eq!(
        cluster.node_says("worker-1"),
        format!("False NoSubnet: no IPPool serves this node; {WITHOUT_TUNNEL_ADDRESS}")
    );
    cluster.modes[0] = at(0, mode("default", "{mode: host-gw}"));
    cluster.settle();
    assert_eq!(
        cluster.node_says("worker-1"),
        "False NoSubnet: no IPPool serves this node"
    );
}

const WITHOUT_TUNNEL_ADDRESS: &str = "without an address for tunnels it is answered by pods only where the network between nodes lets their addresses through";

#[test]
fn an_exhausted_pool_names_the_nodes_it_cannot_serve() {
    let mut cluster = cluster(3);
    cluster.pools[0] = at(0, pool("small", "10.0.0.0/25", ""));
    let plan = cluster.plan();
    assert!(plan.pool_statuses[0].news.as_ref().unwrap().warning);
    cluster.settle();
    assert_eq!(
        cluster.pool_says("small"),
        "False Exhausted: no block is left for worker-3; create another IPPool"
    );
    assert_eq!(
        cluster.node_says("worker-3"),
        format!("False NoSubnet: no block is left in small; {WITHOUT_TUNNEL_ADDRESS}")
    );
}

#[test]
fn a_pool_says_so_while_there_is_time_to_make_another() {
    let says = |nodes: usize| {
        let mut cluster = cluster(nodes);
        // Ten blocks.
        let reserved = "reserved: [10.0.2.128/25, 10.0.3.0/24]";
        cluster.pools[0] = at(0, pool("ten", "10.0.0.0/22", reserved));
        let plan = cluster.plan();
        let told = plan.pool_statuses[0].news.clone().unwrap();
        cluster.settle();
        (cluster.pool_says("ten"), told.warning)
    };
    assert_eq!(says(8).0, "True Allocatable: 2 blocks free");
    let few = "only 1 block free: create another IPPool before they are spent";
    assert_eq!(says(9), (format!("True NearlyExhausted: {few}"), true));
}

#[test]
fn a_disabled_pool_keeps_what_it_gave() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.pools[0].spec.disabled = true;
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    cluster.settle();
    assert_eq!(
        (
            cluster.blocks("worker-1").len(),
            cluster.blocks("worker-2").len()
        ),
        (1, 0)
    );
    let said = "True Disabled: spec.disabled: no new blocks and addresses; 1 block assigned, 1023 blocks free; no pod has an address of it, so it can be deleted";
    assert_eq!(cluster.pool_says("default-v4"), said);
}

#[test]
fn a_pool_or_mode_that_becomes_unusable_does_not_touch_running_traffic() {
    let broken: [fn(&mut Cluster); 7] = [
        |cluster| cluster.pools[0].spec.reserved = vec!["ten".to_owned()],
        |cluster| cluster.pools[0].spec.network_mode = "missing".to_owned(),
        |cluster| {
            cluster.modes[0] = mode("default", "{mode: host-gw, nodeAddress: {interface: eth1}}");
        },
        |cluster| cluster.modes.clear(),
        |cluster| cluster.pools.clear(),
        |cluster| cluster.nodes.push(node("inside", &["10.244.7.7"])),
        |cluster| cluster.services = vec![services("kubernetes", "10.244.128.0/20")],
    ];
    for (number, break_it) in broken.into_iter().enumerate() {
        let mut cluster = cluster(2);
        cluster.settle();
        cluster.agents_report(3);
        cluster.settle();
        let (subnets, networks) = (cluster.subnets.clone(), specs(&cluster));
        break_it(&mut cluster);
        cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
        cluster.settle();
        assert_eq!(cluster.subnets, subnets, "{number}");
        assert_eq!(specs(&cluster)[..2], networks, "{number}");
        assert!(
            cluster.networks[2].spec.modes.is_empty() && cluster.blocks("worker-3").is_empty(),
            "nothing is planned from it: {number}"
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
fn a_pool_that_covers_nodes_or_services_says_which() {
    let mut cluster = cluster(2);
    cluster.nodes.push(node("inside", &["10.244.7.7"]));
    cluster.services = vec![services("kubernetes", "10.96.0.0/16")];
    cluster.settle();
    assert_eq!(
        cluster.pool_says("default-v4"),
        "False Overlap: spec.cidr 10.244.0.0/16 covers the address of Node inside (10.244.7.7): no new blocks are \
         assigned; create a pool with a range outside and delete this one"
    );
    cluster.nodes.pop();
    cluster.settle();
    assert!(
        cluster
            .pool_says("default-v4")
            .starts_with("True Allocatable")
    );
    cluster.services.push(services("more", "10.240.0.0/12"));
    cluster.settle();
    assert_eq!(
        cluster.pool_says("default-v4"),
        "False Overlap: spec.cidr 10.244.0.0/16 shares addresses with the Services' range 10.240.0.0/12 (ServiceCIDR more): \
         no new blocks are assigned; create a pool with a range outside and delete this one"
    );
}

#[test]
fn an_external_address_of_a_node_is_not_for_pods_either() {
    let mut cluster = cluster(1);
    let addresses =
        "[{type: InternalIP, address: 10.1.0.9}, {type: ExternalIP, address: 10.244.7.7}]";
    cluster.nodes.push(yaml(&format!(
        "{{metadata: {{name: outside}}, status: {{addresses: {addresses}}}}}"
    )));
    cluster.settle();
    assert!(
        cluster
            .pool_says("default-v4")
            .contains("Node outside (10.244.7.7)")
    );
}

#[test]
fn a_pool_that_kube_proxy_masquerades_is_used_all_the_same() {
    let mut cluster = cluster(1);
    cluster.kube_proxy = Some(kube_proxy("clusterCIDR: 10.0.0.0/16"));
    cluster.settle();
    assert_eq!(cluster.blocks("worker-1"), ["10.244.0.0/26"]);
    assert!(
        cluster.pool_says("default-v4").starts_with(
            "False KubeProxyMismatch: kube-proxy knows pods by clusterCIDR 10.0.0.0/16"
        )
    );
    cluster.kube_proxy = Some(kube_proxy("clusterCIDR: 10.244.0.0/16"));
    cluster.settle();
    assert!(
        cluster
            .pool_says("default-v4")
            .starts_with("True Allocatable")
    );
}
