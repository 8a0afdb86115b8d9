//! A node that has been taken over reports anything: the plan for all other nodes stays as it is.

use std::collections::BTreeSet;

use kube::ResourceExt;
use netweft_crds::{BlockRequest, BlockUsage, DrainingPod, NodeNetworkStatus, OtherNetwork};
use proptest::prelude::*;
use serde::Serialize;

use crate::plan::model::cluster_state::{Changes, Plan, StatusChange};
use crate::testing::{Cluster, at, cluster, pool};

/// The node that reports anything.
const HOSTILE: &str = "worker-1";
/// Largest object that the operator writes, in bytes.
const MAX_OBJECT: usize = 256 * 1024;

/// As long as the schema allows.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9./?=&-]{0,253}",
        Just("x".repeat(253)),
        Just("../secrets?watch=1".to_owned())
    ]
}

fn count() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), Just(i64::MAX), Just(i64::MIN), 0_i64..70]
}

/// Blocks of this node, of other nodes, and of no node.
fn usage() -> impl Strategy<Value = BlockUsage> {
    let block = (0_u8..4, 0_u8..4).prop_map(|(a, b)| format!("10.244.{a}.{}/26", b * 64));
    (block, count(), count()).prop_map(|(block, used, free)| BlockUsage {
        cidr: block.parse().unwrap(),
        used,
        free,
    })
}

fn status() -> impl Strategy<Value = NodeNetworkStatus> {
    let usage = prop::collection::vec(usage(), 0..8);
    let pods = prop::collection::vec((text(), text()), 0..80);
    let requests = prop::collection::vec(prop::collection::vec(text(), 0..4), 0..70);
    let networks = prop::collection::vec(text(), 0..20);
    let generation = prop_oneof![Just(None), Just(Some(1)), any::<i64>().prop_map(Some)];
    let numbers = (
        generation,
        any::<Option<u32>>(),
        any::<Option<u32>>(),
        prop::option::of(count()),
    );
    (numbers, usage, pods, requests, networks).prop_map(
        |((observed_generation, mtu, link_mtu, pods), subnets, draining, requests, networks)| {
            let draining = draining.into_iter().map(|(namespace, name)| DrainingPod {
                pool: "default-v4".to_owned(),
                namespace,
                name,
            });
            let requests = requests.into_iter().map(|pools| BlockRequest { pools });
            let networks = networks.into_iter().map(|pool| OtherNetwork {
                cidr: "10.244.0.0/16".parse().unwrap(),
                pool,
                interface: None,
            });
            NodeNetworkStatus {
                observed_generation,
                mtu,
                link_mtu,
                pods,
                subnets,
                draining_pods: draining.collect(),
                block_requests: requests.collect(),
                other_networks: networks.collect(),
                ..NodeNetworkStatus::default()
            }
        },
    )
}

/// Names of the objects of other nodes that a plan changes.
fn others(plan: &Plan) -> BTreeSet<String> {
    let subnets = [
        &plan.subnets.create,
        &plan.subnets.update,
        &plan.subnets.delete,
    ];
    let subnets = subnets.into_iter().flatten();
    let subnets = subnets.map(|subnet| (subnet.spec.node.clone(), subnet.name_any()));
    let networks = [
        &plan.networks.create,
        &plan.networks.update,
        &plan.networks.delete,
    ];
    let networks = networks.into_iter().flatten();
    let networks = networks.map(|network| (network.name_any(), network.name_any()));
    let assigned = plan
        .assigned
        .iter()
        .map(|change| (change.name.clone(), change.name.clone()));
    let all = subnets.chain(networks).chain(assigned);
    all.filter(|(node, _)| node != HOSTILE)
        .map(|(_, name)| name)
        .collect()
}

fn largest_object(plan: &Plan) -> usize {
    fn of<K: Serialize>(changes: &Changes<K>) -> usize {
        let written = changes.create.iter().chain(&changes.update);
        let sizes = written.map(|object| serde_json::to_vec(object).unwrap().len());
        sizes.max().unwrap_or_default()
    }
    fn of_statuses<S: Serialize>(changes: &[StatusChange<S>]) -> usize {
        let sizes = changes
            .iter()
            .map(|change| serde_json::to_vec(&change.status).unwrap().len());
        sizes.max().unwrap_or_default()
    }
    let sizes = [
        of(&plan.subnets),
        of(&plan.networks),
        of_statuses(&plan.pool_statuses),
        of_statuses(&plan.mode_statuses),
        of_statuses(&plan.assigned),
    ];
    sizes.into_iter().max().unwrap_or_default()
}

fn settled() -> Cluster {
    let mut cluster = cluster(3);
    cluster.reconcile();
    cluster.agents_report(0);
    cluster.reconcile();
    cluster
}

fn report(cluster: &mut Cluster, status: &NodeNetworkStatus) {
    let mut networks = cluster.networks.iter_mut();
    let network = networks
        .find(|network| network.name_any() == HOSTILE)
        .unwrap();
    network.status = Some(status.clone());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_status_of_one_node_leaves_plan_of_others_unchanged(
        statuses in prop::collection::vec(status(), 1..6),
        pods in any::<Option<u64>>(),
    ) {
        let mut cluster = settled();
        let capacity = pods.map(|pods| serde_json::json!({ "allocatable": { "pods": pods.to_string() } }));
        if let Some(capacity) = capacity {
            let mut nodes = cluster.nodes.iter_mut();
            let node = nodes.find(|node| node.name_any() == HOSTILE).unwrap();
            let status = node.status.get_or_insert_default();
            status.allocatable = serde_json::from_value(capacity["allocatable"].clone()).unwrap();
        }
        for status in statuses {
            report(&mut cluster, &status);
            let plan = cluster.step();
            prop_assert_eq!(others(&plan), BTreeSet::new());
            prop_assert!(largest_object(&plan) < MAX_OBJECT);
        }
    }
}

/// The agent of the node reports that all blocks are full, in some rounds.
fn report_full_blocks(cluster: &mut Cluster, rounds: usize) {
    for _ in 0..rounds {
        let network = cluster
            .networks
            .iter()
            .find(|network| network.name_any() == HOSTILE);
        let network = network.unwrap();
        let full = network.spec.subnets.iter().map(|cidr| BlockUsage {
            cidr: *cidr,
            used: 61,
            free: 0,
        });
        let status = NodeNetworkStatus {
            observed_generation: network.metadata.generation,
            subnets: full.collect(),
            ..NodeNetworkStatus::default()
        };
        report(cluster, &status);
        cluster.step();
    }
}

#[test]
fn node_that_always_reports_full_blocks_gets_limited_blocks() {
    let mut cluster = settled();
    report_full_blocks(&mut cluster, 200);
    // Two addresses for each of 110 pods, and the last block.
    assert_eq!(cluster.blocks(HOSTILE).len(), 5);
    assert!(
        cluster
            .node_message(HOSTILE)
            .contains("enough addresses for 110 pods")
    );
    assert_eq!(cluster.blocks("worker-2").len(), 1);
}

#[test]
fn blocks_of_disabled_pool_do_not_limit_blocks_of_its_successor() {
    let mut cluster = settled();
    report_full_blocks(&mut cluster, 20);
    cluster.pools[0].spec.disabled = true;
    cluster
        .pools
        .push(at(1, pool("successor", "10.99.0.0/16", "")));
    report_full_blocks(&mut cluster, 20);
    assert_eq!(cluster.blocks(HOSTILE).len(), 10);
}
