//! Properties that hold after any sequence of changes of a cluster.

use std::collections::BTreeSet;

use kube::ResourceExt;
use netweft_crds::{NodeNetwork, SubnetState};
use proptest::prelude::*;

use crate::plan::ipam::node_subnets::pod_count;
use crate::plan::ipam::utilization::Utilization;
use crate::plan::model::cluster_state::Plan;
use crate::plan::tests::delete_pool;
use crate::testing::{Cluster, at, node, pool, vxlan};

/// A change of a cluster.
#[derive(Clone, Copy, Debug)]
enum Change {
    Join(u8),
    Leave(u8),
    Expire,
    NewPool(u8, u8),
    DeletePool(u8),
    Report(bool),
    Fill(u8),
    Surplus,
    Readdress(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0_u8..12).prop_map(Change::Join),
        (0_u8..12).prop_map(Change::Leave),
        Just(Change::Expire),
        (0_u8..6, 24_u8..=28).prop_map(|(n, block)| Change::NewPool(n, block)),
        (0_u8..6).prop_map(Change::DeletePool),
        any::<bool>().prop_map(Change::Report),
        (0_u8..62).prop_map(Change::Fill),
        Just(Change::Surplus),
        (0_u8..12).prop_map(Change::Readdress),
    ]
}

fn utilization_of(cluster: &Cluster) -> Utilization {
    let cluster_state = cluster.cluster_state();
    Utilization::observe(&cluster_state.subnets, &cluster_state.networks)
}

fn apply_change(cluster: &mut Cluster, change: Change) {
    // Blocks that are not surplus any more leave the set, as with the leader's timers.
    let utilization = utilization_of(cluster);
    let other = cluster.subnets.iter();
    let other = other.filter(|subnet| utilization.is_surplus(subnet) == Some(false));
    let other: BTreeSet<String> = other.map(ResourceExt::name_any).collect();
    cluster.surplus.retain(|name| !other.contains(name));
    let node_name = |n: u8| format!("n{n:02}");
    match change {
        Change::Join(n) => {
            if !cluster
                .nodes
                .iter()
                .any(|node| node.name_any() == node_name(n))
            {
                cluster
                    .nodes
                    .push(node(&node_name(n), &[&format!("192.0.2.{n}")]));
            }
        }
        Change::Leave(n) => cluster.nodes.retain(|node| node.name_any() != node_name(n)),
        Change::Expire => {
            let orphaned = cluster
                .subnets
                .iter()
                .filter(|s| s.spec.state == SubnetState::Orphaned);
            cluster.expired = orphaned.map(ResourceExt::name_any).collect();
        }
        Change::NewPool(n, block) => new_pool(cluster, n, block),
        Change::DeletePool(n) => {
            let in_use = cluster
                .pools
                .iter()
                .any(|p| p.name_any() == format!("p{n}") && !p.finalizers().is_empty());
            if in_use {
                delete_pool(cluster, &format!("p{n}"));
            } else {
                cluster
                    .pools
                    .retain(|pool| pool.name_any() != format!("p{n}"));
            }
        }
        Change::Report(busy) => cluster.agents_report(i64::from(busy)),
        Change::Fill(pods) => cluster.agents_report(i64::from(pods)),
        Change::Surplus => cluster.surplus = utilization.surplus,
        Change::Readdress(n) => {
            if let Some(old) = cluster
                .nodes
                .iter_mut()
                .find(|node| node.name_any() == node_name(n))
            {
                *old = node(&node_name(n), &[&format!("198.51.100.{n}")]);
            }
        }
    }
    // Garbage collection of NodeNetworks.
    let nodes: BTreeSet<_> = cluster.nodes.iter().map(ResourceExt::name_any).collect();
    cluster
        .networks
        .retain(|network: &NodeNetwork| nodes.contains(&network.name_any()));
}

fn new_pool(cluster: &mut Cluster, n: u8, block: u8) {
    if !cluster
        .pools
        .iter()
        .any(|pool| pool.name_any() == format!("p{n}"))
    {
        // Some CIDRs overlap, some are too small.
        let cidr = format!("10.0.{}.0/{}", n / 2, 23 + n);
        let cidr = cidr.parse::<ipnet::IpNet>().unwrap().trunc().to_string();
        cluster.pools.push(at(
            cluster.clock,
            pool(&format!("p{n}"), &cidr, &format!("blockSize: {block}")),
        ));
    }
}

proptest! {
    #[test]
    fn plans_converge_and_keep_blocks_of_existing_nodes(
        changes in prop::collection::vec(change(), 1..40),
    ) {
        let mut cluster = Cluster { modes: vec![vxlan("default", 1)], ..Cluster::default() };
        for change in changes {
            apply_change(&mut cluster, change);
            let plan = cluster.plan();
            for deleted in &plan.subnets.delete {
                let exists = cluster.nodes.iter().any(|node| node.name_any() == deleted.spec.node);
                let kept = cluster.pools.iter().any(|pool| {
                    pool.name_any() == deleted.spec.pool && pool.metadata.deletion_timestamp.is_none()
                });
                if exists && kept {
                    prop_assert!(cluster.surplus.contains(&deleted.name_any()), "{:?}", deleted);
                    let node = &deleted.spec.node;
                    let network = cluster.networks.iter().find(|network| network.name_any() == *node);
                    prop_assert_eq!(pod_count(deleted, network.unwrap()), Some(0));
                    let others = cluster.subnets.iter().filter(|subnet| {
                        (&subnet.spec.node, &subnet.spec.pool) == (node, &deleted.spec.pool)
                    });
                    prop_assert!(others.count() > 1, "the first block is never released: {:?}", deleted);
                }
                prop_assert!(exists || cluster.expired.contains(&deleted.name_any()), "{:?}", deleted);
            }
            cluster.reconcile();
            let blocks: Vec<_> = cluster.subnets.iter().map(|subnet| subnet.spec.cidr).collect();
            for (n, a) in blocks.iter().enumerate() {
                prop_assert!(blocks.iter().skip(n + 1).all(|b| !crate::plan::ipam::blocks::overlap(a, b)));
            }
        }
    }

    #[test]
    fn object_order_does_not_affect_plan(
        changes in prop::collection::vec(change(), 1..20),
        rotation in 0_usize..10,
    ) {
        let mut cluster = Cluster { modes: vec![vxlan("default", 1), vxlan("other", 1)], ..Cluster::default() };
        for change in changes {
            apply_change(&mut cluster, change);
        }
        let mut reordered = cluster.clone();
        reordered.pools.reverse();
        reordered.modes.reverse();
        reordered.subnets.reverse();
        reordered.networks.reverse();
        let by = rotation.min(reordered.nodes.len());
        reordered.nodes.rotate_left(by);
        prop_assert_eq!(sorted(cluster.plan()), sorted(reordered.plan()));
    }
}

/// The order of the status writes is not defined.
fn sorted(mut plan: Plan) -> Plan {
    plan.mode_statuses.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}
