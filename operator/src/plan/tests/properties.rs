//! What holds whatever happens to a cluster.

use std::collections::BTreeSet;

use kube::ResourceExt;
use netweft_crds::{NodeNetwork, SubnetState};
use proptest::prelude::*;

use crate::plan::ipam::node_subnets::pod_count;
use crate::plan::ipam::utilization::Utilization;
use crate::plan::model::cluster_state::Plan;
use crate::plan::tests::delete_pool;
use crate::testing::{Cluster, at, node, pool, vxlan};

/// What can happen to a cluster.
#[derive(Clone, Copy, Debug)]
enum Happening {
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

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0_u8..12).prop_map(Happening::Join),
        (0_u8..12).prop_map(Happening::Leave),
        Just(Happening::Expire),
        (0_u8..6, 24_u8..=28).prop_map(|(n, block)| Happening::NewPool(n, block)),
        (0_u8..6).prop_map(Happening::DeletePool),
        any::<bool>().prop_map(Happening::Report),
        (0_u8..62).prop_map(Happening::Fill),
        Just(Happening::Surplus),
        (0_u8..12).prop_map(Happening::Readdress),
    ]
}

fn growth_of(cluster: &Cluster) -> Utilization {
    let cluster_state = cluster.cluster_state();
    Utilization::observe(&cluster_state.subnets, &cluster_state.networks)
}

fn happen(cluster: &mut Cluster, happening: Happening) {
    // What is known to be otherwise is forgotten, as a leader does.
    let utilization = growth_of(cluster);
    let other = cluster.subnets.iter();
    let other = other.filter(|subnet| utilization.is_surplus(subnet) == Some(false));
    let other: BTreeSet<String> = other.map(ResourceExt::name_any).collect();
    cluster.surplus.retain(|name| !other.contains(name));
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
        Happening::NewPool(n, block) => new_pool(cluster, n, block),
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
        Happening::Fill(pods) => cluster.agents_report(i64::from(pods)),
        Happening::Surplus => cluster.surplus = utilization.surplus,
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

fn new_pool(cluster: &mut Cluster, n: u8, block: u8) {
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

proptest! {
    #[test]
    fn plans_converge_and_keep_blocks_of_existing_nodes(
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
                if there && kept {
                    prop_assert!(cluster.surplus.contains(&gone.name_any()), "{:?}", gone);
                    let node = &gone.spec.node;
                    let network = cluster.networks.iter().find(|network| network.name_any() == *node);
                    prop_assert_eq!(pod_count(gone, network.unwrap()), Some(0));
                    let others = cluster.subnets.iter().filter(|subnet| {
                        (&subnet.spec.node, &subnet.spec.pool) == (node, &gone.spec.pool)
                    });
                    prop_assert!(others.count() > 1, "the first is never given back: {:?}", gone);
                }
                prop_assert!(there || cluster.expired.contains(&gone.name_any()), "{:?}", gone);
            }
            cluster.settle();
            let blocks: Vec<_> = cluster.subnets.iter().map(|subnet| subnet.spec.cidr).collect();
            for (n, a) in blocks.iter().enumerate() {
                prop_assert!(blocks.iter().skip(n + 1).all(|b| !crate::plan::ipam::blocks::overlap(a, b)));
            }
        }
    }

    #[test]
    fn object_order_does_not_affect_plan(
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
