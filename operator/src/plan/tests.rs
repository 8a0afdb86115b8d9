use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use netweft_crds::condition::{READY, is_true};
use netweft_crds::{IpFamily, NodeNetwork, SubnetState};
use proptest::prelude::*;

use super::*;
use crate::testing::{
    Cluster, at, cluster, condition, kube_proxy, mode, node, pool, services, vxlan, yaml,
};
use crate::world::{Unreadable, UserKind};

/// Gives the pool up: its deletion has been asked for.
fn delete_pool(cluster: &mut Cluster, name: &str) {
    let pool = cluster
        .pools
        .iter_mut()
        .find(|pool| pool.name_any() == name)
        .unwrap();
    pool.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
}

fn states(cluster: &Cluster) -> Vec<SubnetState> {
    cluster
        .subnets
        .iter()
        .map(|subnet| subnet.spec.state)
        .collect()
}

#[test]
fn a_fresh_cluster_gets_blocks_and_networks_in_one_plan() {
    insta::assert_yaml_snapshot!(shown(&cluster(2).plan()));
}

#[test]
fn statuses_of_a_cluster_at_work() {
    let mut cluster = cluster(3);
    cluster.modes.push(at(0, vxlan("spare", 5)));
    cluster.peers.push(yaml(
        "{metadata: {name: tor}, spec: {peerIP: 10.1.0.254, asNumber: 65001}}",
    ));
    cluster.settle();
    cluster.agents_report(10);
    cluster.networks[1]
        .status
        .as_mut()
        .unwrap()
        .conditions
        .clear();
    cluster.settle();
    let pools = cluster
        .pools
        .iter()
        .map(|pool| serde_json::to_value(&pool.status).unwrap());
    let modes = cluster
        .modes
        .iter()
        .map(|mode| serde_json::to_value(&mode.status).unwrap());
    let peers = cluster
        .peers
        .iter()
        .map(|peer| serde_json::to_value(&peer.status).unwrap());
    let assigned = cluster
        .networks
        .iter()
        .take(1)
        .map(|network| serde_json::to_value(&network.status).unwrap());
    insta::assert_yaml_snapshot!(
        pools
            .chain(modes)
            .chain(peers)
            .chain(assigned)
            .collect::<Vec<_>>()
    );
}

fn shown(plan: &Plan) -> serde_json::Value {
    serde_json::json!({
        "subnets": plan.subnets.create,
        "networks": plan.networks.create,
        "finalizers": plan.finalizers.iter().map(|change| &change.finalizers).collect::<Vec<_>>(),
        "pools": plan.pool_statuses.iter().map(|change| &change.status).collect::<Vec<_>>(),
        "modes": plan.mode_statuses.iter().map(|change| &change.status).collect::<Vec<_>>(),
    })
}

#[test]
fn a_plan_that_is_carried_out_leaves_nothing_to_do() {
    let mut cluster = cluster(3);
    cluster.settle();
    cluster.agents_report(2);
    cluster.settle();
    assert!(cluster.plan().is_empty());
    // Time alone changes nothing.
    cluster.clock += 1000;
    assert!(cluster.plan().is_empty());
}

#[test]
fn the_first_plan_names_only_blocks_it_creates() {
    let plan = cluster(3).plan();
    let created: BTreeSet<_> = plan
        .subnets
        .create
        .iter()
        .map(|subnet| subnet.spec.cidr)
        .collect();
    let named: BTreeSet<_> = plan
        .networks
        .create
        .iter()
        .flat_map(|network| network.spec.subnets.clone())
        .collect();
    assert_eq!((created.len(), &created), (3, &named));
}

#[test]
fn blocks_are_listed_oldest_first() {
    let mut cluster = cluster(1);
    cluster.pools[0] = at(0, pool("zebra", "10.244.0.0/16", ""));
    cluster.settle();
    cluster.pools.push(at(9, pool("ape", "10.9.0.0/16", "")));
    cluster.settle();
    let shown: Vec<_> = cluster.networks[0]
        .spec
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.244.0.0/26", "10.9.0.0/26"]);
}

#[test]
fn the_block_of_a_deleted_node_is_orphaned_kept_and_given_back() {
    let mut cluster = cluster(2);
    cluster.settle();
    let gone = cluster.nodes.remove(0);
    cluster.networks.remove(0);
    // Expired or not: first it is orphaned.
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.step();
    assert_eq!(
        states(&cluster),
        [SubnetState::Orphaned, SubnetState::Active]
    );
    cluster.expired.clear();
    cluster.settle();
    // A new node does not get it.
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.settle();
    assert_eq!(cluster.blocks("worker-3"), ["10.244.0.128/26"]);
    // The old one does, when it returns.
    cluster.nodes.push(gone);
    cluster.settle();
    assert_eq!(cluster.blocks("worker-1"), ["10.244.0.0/26"]);
    assert_eq!(states(&cluster), [SubnetState::Active; 3]);
    // Gone for good.
    cluster.nodes.retain(|node| node.name_any() != "worker-1");
    cluster.settle();
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.settle();
    assert!(cluster.blocks("worker-1").is_empty());
}

#[test]
fn the_block_of_a_node_that_is_there_does_not_expire() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.subnets[0].spec.state = SubnetState::Orphaned;
    cluster.expired.insert("10-244-0-0-26".to_owned());
    cluster.settle();
    assert_eq!(states(&cluster), [SubnetState::Active]);
}

#[test]
fn a_node_without_an_address_gets_no_block_and_is_told() {
    let mut cluster = cluster(1);
    cluster.nodes.push(node("mute", &[]));
    cluster.nodes[0] = at(0, cluster.nodes[0].clone());
    cluster.nodes.push(at(1, node("v6", &["fd00::1"])));
    cluster.settle();
    assert!(cluster.blocks("mute").is_empty() && cluster.blocks("v6").is_empty());
    let said = "False NoNodeAddress: the Node states no IPv4 address of type InternalIP in status.addresses";
    assert_eq!(cluster.node_says("mute"), said);
    assert_eq!(cluster.node_says("v6"), said);
    assert_eq!(
        cluster.node_says("worker-1"),
        "True SubnetsAssigned: 1 subnet of default-v4"
    );
}

#[test]
fn a_node_that_loses_its_address_keeps_the_last_one() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.nodes[0] = node("worker-1", &[]);
    cluster.settle();
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
            .node_says("worker-1")
            .contains("the last one, 10.1.0.1, stays in use")
    );
    cluster.nodes[0] = node("worker-1", &["10.1.0.7"]);
    cluster.settle();
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

#[test]
fn a_recreated_node_owns_its_network_again() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.nodes[0].metadata.uid = Some("another".to_owned());
    cluster.settle();
    assert_eq!(cluster.networks[0].owner_references()[0].uid, "another");
}

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
        "False NoSubnet: no IPPool serves this node"
    );
}

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
        "False NoSubnet: no block is left in small"
    );
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
    let said = "True Disabled: spec.disabled: no new blocks and addresses; 1 block assigned, 1023 blocks free";
    assert_eq!(cluster.pool_says("default-v4"), said);
}

#[test]
fn a_pool_or_mode_that_becomes_unusable_does_not_touch_running_traffic() {
    let broken: [fn(&mut Cluster); 7] = [
        |cluster| cluster.pools[0].spec.reserved = vec!["ten".to_owned()],
        |cluster| cluster.pools[0].spec.network_mode = "missing".to_owned(),
        |cluster| cluster.modes[0] = mode("default", "{mode: host-gw}"),
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

#[test]
fn a_peer_counts_the_nodes_it_is_for() {
    let mut cluster = cluster(3);
    cluster.peers.push(yaml(
        "{metadata: {name: tor}, spec: {peerIP: 10.1.0.254, asNumber: 65001, nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}}}",
    ));
    cluster.settle();
    let nodes = cluster.peers[0].status.as_ref().unwrap().nodes.unwrap();
    assert_eq!((nodes.total, nodes.established), (1, 0));
}

#[test]
fn a_mode_that_no_pool_uses_any_more_leaves_the_nodes() {
    let mut cluster = cluster(1);
    cluster.modes.push(at(1, vxlan("next", 5)));
    cluster.settle();
    cluster.pools[0].spec.network_mode = "next".to_owned();
    cluster.settle();
    let names: Vec<_> = cluster.networks[0]
        .spec
        .modes
        .iter()
        .map(|mode| mode.name.as_str())
        .collect();
    assert_eq!(names, ["next"]);
}

#[test]
fn a_pool_is_given_up_in_two_steps_without_going_to_and_fro() {
    let mut cluster = cluster(2);
    cluster.settle();
    cluster.agents_report(3);
    cluster.settle();
    delete_pool(&mut cluster, "default-v4");
    cluster.settle();
    assert_eq!(
        cluster.pool_says("default-v4"),
        "False InUse: being deleted; kept until 2 blocks are without pods: waiting for worker-1, worker-2"
    );
    assert_eq!(
        cluster.networks[0].spec.subnets.len(),
        1,
        "pods have addresses"
    );
    // The pods go, the tunnel addresses stay: the blocks are withdrawn.
    cluster.agents_report(0);
    cluster.settle();
    assert!(
        cluster
            .networks
            .iter()
            .all(|network| network.spec.subnets.is_empty())
    );
    assert_eq!(
        cluster.subnets.len(),
        2,
        "not before the agents have seen that"
    );
    cluster.agents_report(0);
    cluster.settle();
    assert!(cluster.subnets.is_empty() && cluster.pools.is_empty());
}

#[test]
fn a_pod_that_slipped_in_keeps_its_block() {
    let mut cluster = cluster(1);
    cluster.settle();
    delete_pool(&mut cluster, "default-v4");
    cluster.agents_report(0);
    let mut usage = cluster.networks[0].status.as_ref().unwrap().subnets.clone();
    usage[0].used = 1;
    cluster.settle();
    assert!(cluster.networks[0].spec.subnets.is_empty());
    cluster.agents_report(0);
    let status = cluster.networks[0].status.as_mut().unwrap();
    status.subnets = usage;
    status.links.clear();
    cluster.settle();
    assert_eq!(cluster.subnets.len(), 1);
    assert_eq!(cluster.pools.len(), 1);
}

#[test]
fn an_old_acknowledgement_gives_no_block_back() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.agents_report(0);
    delete_pool(&mut cluster, "default-v4");
    cluster.networks[0].metadata.generation = Some(7);
    cluster.settle();
    assert_eq!(cluster.networks[0].spec.subnets.len(), 1);
}

#[test]
fn a_pool_being_deleted_gives_no_new_blocks() {
    let mut cluster = cluster(1);
    cluster.settle();
    delete_pool(&mut cluster, "default-v4");
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    cluster.settle();
    assert!(cluster.blocks("worker-2").is_empty());
}

#[test]
fn a_pool_has_the_finalizer_from_its_first_block_to_its_last() {
    let mut cluster = cluster(0);
    cluster.pools[0].metadata.finalizers = Some(vec!["other/one".to_owned()]);
    cluster.settle();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one"]);
    cluster.nodes.push(node("worker-1", &["10.1.0.1"]));
    cluster.settle();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one", POOL_FINALIZER]);
    cluster.subnets.clear();
    cluster.nodes.clear();
    delete_pool(&mut cluster, "default-v4");
    cluster.settle();
    assert_eq!(cluster.pools[0].finalizers(), ["other/one"]);
}

#[test]
fn a_mode_is_ready_when_every_node_has_acknowledged() {
    let mut cluster = cluster(7);
    cluster.settle();
    let ready =
        |cluster: &Cluster| is_true(&cluster.modes[0].status.as_ref().unwrap().conditions, READY);
    let status = cluster.modes[0].status.clone().unwrap();
    assert_eq!(status.nodes.unwrap().waiting_for.len(), 5);
    assert!(
        status.conditions[0]
            .message
            .ends_with("worker-5 and 2 more"),
        "{}",
        status.conditions[0].message
    );
    cluster.agents_report(0);
    cluster.settle();
    assert!(ready(&cluster));
    // A spec that is newer than its acknowledgement is not carried out yet.
    cluster.modes[0] = vxlan("default", 9);
    cluster.settle();
    assert!(!ready(&cluster));
    cluster.agents_report(0);
    cluster.settle();
    assert!(ready(&cluster));
    cluster.networks[3].status.as_mut().unwrap().conditions =
        vec![condition(READY, "False", "ProgrammingFailed")];
    cluster.settle();
    assert!(!ready(&cluster));
}

#[test]
fn foreign_conditions_are_no_reason_to_write() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.pools[0]
        .status
        .as_mut()
        .unwrap()
        .conditions
        .insert(0, condition("example.org/Foreign", "True", "x"));
    assert!(cluster.plan().is_empty());
}

#[test]
fn news_is_a_change_of_reason_not_of_numbers() {
    let mut cluster = cluster(1);
    let first = cluster.plan();
    let of_pool = first.pool_statuses[0].news.as_ref().unwrap();
    let of_mode = first.mode_statuses[0].news.as_ref().unwrap();
    assert_eq!(
        (of_pool.reason.as_str(), of_pool.warning),
        ("Allocatable", false)
    );
    assert_eq!(
        (of_mode.reason.as_str(), of_mode.warning),
        ("Programming", false)
    );
    cluster.settle();
    cluster.nodes.push(node("worker-2", &["10.1.0.2"]));
    let plan = cluster.plan();
    assert_eq!(
        (plan.pool_statuses.len(), &plan.pool_statuses[0].news),
        (1, &None)
    );
}

#[test]
fn an_unreadable_object_is_told_and_holds_what_it_has() {
    let mut cluster = cluster(1);
    cluster.settle();
    let broken = cluster.pools.remove(0);
    let mut world = cluster.world();
    world.unreadable.push(Unreadable {
        kind: UserKind::Pool,
        metadata: broken.metadata,
        error: "no number".to_owned(),
    });
    let plan = plan(&world);
    assert!(plan.subnets.delete.is_empty() && plan.networks.update.is_empty());
    let ready = &plan.pool_statuses[0].status.conditions[0];
    assert_eq!(
        (ready.reason.as_str(), ready.message.as_str()),
        ("Invalid", "the object cannot be read: no number")
    );
}

#[test]
fn five_thousand_nodes_are_planned_in_no_time() {
    let mut cluster = cluster(5000);
    cluster
        .pools
        .push(at(0, pool("second", "10.128.0.0/12", "")));
    cluster.pools[0] = at(0, pool("first", "10.64.0.0/12", ""));
    let start = Instant::now();
    let plan = cluster.plan();
    assert_eq!(plan.subnets.create.len(), 10_000);
    // Measured at 30 ms; anything quadratic takes many seconds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

/// What can happen to a cluster.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Join(u8),
    Leave(u8),
    Expire,
    NewPool(u8, u8),
    DeletePool(u8),
    Report(bool),
    Readdress(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0_u8..12).prop_map(Happening::Join),
        (0_u8..12).prop_map(Happening::Leave),
        Just(Happening::Expire),
        (0_u8..6, 24_u8..=28).prop_map(|(n, block)| Happening::NewPool(n, block)),
        (0_u8..6).prop_map(Happening::DeletePool),
        any::<bool>().prop_map(Happening::Report),
        (0_u8..12).prop_map(Happening::Readdress),
    ]
}

fn happen(cluster: &mut Cluster, happening: Happening) {
    let named = |n: u8| format!("n{n:02}");
    match happening {
        Happening::Join(n) => {
            if !cluster.nodes.iter().any(|node| node.name_any() == named(n)) {
                cluster
                    .nodes
                    .push(node(&named(n), &[&format!("192.0.2.{n}")]));
            }
        }
        Happening::Leave(n) => cluster.nodes.retain(|node| node.name_any() != named(n)),
        Happening::Expire => {
            let orphaned = cluster
                .subnets
                .iter()
                .filter(|s| s.spec.state == SubnetState::Orphaned);
            cluster.expired = orphaned.map(ResourceExt::name_any).collect();
        }
        Happening::NewPool(n, block) => {
            if !cluster
                .pools
                .iter()
                .any(|pool| pool.name_any() == format!("p{n}"))
            {
                // Some overlap, some are too small.
                let cidr = format!("10.0.{}.0/{}", n / 2, 23 + n);
                let cidr = cidr.parse::<ipnet::IpNet>().unwrap().trunc().to_string();
                cluster.pools.push(at(
                    cluster.clock,
                    pool(&format!("p{n}"), &cidr, &format!("blockSize: {block}")),
                ));
            }
        }
        Happening::DeletePool(n) => {
            let held = cluster
                .pools
                .iter()
                .any(|p| p.name_any() == format!("p{n}") && !p.finalizers().is_empty());
            if held {
                delete_pool(cluster, &format!("p{n}"));
            } else {
                cluster
                    .pools
                    .retain(|pool| pool.name_any() != format!("p{n}"));
            }
        }
        Happening::Report(busy) => cluster.agents_report(i64::from(busy)),
        Happening::Readdress(n) => {
            if let Some(old) = cluster
                .nodes
                .iter_mut()
                .find(|node| node.name_any() == named(n))
            {
                *old = node(&named(n), &[&format!("198.51.100.{n}")]);
            }
        }
    }
    // The garbage collector.
    let nodes: BTreeSet<_> = cluster.nodes.iter().map(ResourceExt::name_any).collect();
    cluster
        .networks
        .retain(|network: &NodeNetwork| nodes.contains(&network.name_any()));
}

proptest! {
    #[test]
    fn whatever_happens_plans_settle_and_take_nothing_from_a_node_that_is_there(
        happenings in prop::collection::vec(happening(), 1..40),
    ) {
        let mut cluster = Cluster { modes: vec![vxlan("default", 1)], ..Cluster::default() };
        for happening in happenings {
            happen(&mut cluster, happening);
            let plan = cluster.plan();
            for gone in &plan.subnets.delete {
                let there = cluster.nodes.iter().any(|node| node.name_any() == gone.spec.node);
                let kept = cluster.pools.iter().any(|pool| {
                    pool.name_any() == gone.spec.pool && pool.metadata.deletion_timestamp.is_none()
                });
                prop_assert!(!(there && kept), "{:?}", gone);
                prop_assert!(there || cluster.expired.contains(&gone.name_any()), "{:?}", gone);
            }
            cluster.settle();
            let blocks: Vec<_> = cluster.subnets.iter().map(|subnet| subnet.spec.cidr).collect();
            for (n, a) in blocks.iter().enumerate() {
                prop_assert!(blocks.iter().skip(n + 1).all(|b| !crate::blocks::overlap(a, b)));
            }
        }
    }

    #[test]
    fn the_order_of_objects_does_not_matter(
        happenings in prop::collection::vec(happening(), 1..20),
        turn in 0_usize..10,
    ) {
        let mut cluster = Cluster { modes: vec![vxlan("default", 1), vxlan("other", 1)], ..Cluster::default() };
        for happening in happenings {
            happen(&mut cluster, happening);
        }
        let mut turned = cluster.clone();
        turned.pools.reverse();
        turned.modes.reverse();
        turned.subnets.reverse();
        turned.networks.reverse();
        let by = turn.min(turned.nodes.len());
        turned.nodes.rotate_left(by);
        prop_assert_eq!(sorted(cluster.plan()), sorted(turned.plan()));
    }
}

/// Statuses are written in no particular order.
fn sorted(mut plan: Plan) -> Plan {
    plan.mode_statuses.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}
