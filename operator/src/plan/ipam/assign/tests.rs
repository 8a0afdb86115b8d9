use proptest::prelude::*;

use crate::plan::ipam::assign::*;
use crate::plan::ipam::blocks::overlap;
use crate::testing;

fn pool(name: &str, cidr: &str, more: &str) -> Pool {
    crate::plan::validate::ip_pool::check(name, &testing::pool(name, cidr, more).spec, false)
        .unwrap()
}

fn demand(node: &str, pools: &[&str], purpose: Purpose) -> BlockDemand {
    BlockDemand {
        node: node.to_owned(),
        pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
        purpose,
    }
}

/// An initial demand of each node for one of these pools.
fn first(nodes: &[&str], pools: &[&str]) -> Vec<BlockDemand> {
    let nodes = nodes.iter();
    nodes
        .map(|node| demand(node, pools, Purpose::Initial))
        .collect()
}

/// Names of nodes by pool.
fn named(nodes: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    let owned = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect();
    let nodes = nodes.iter();
    nodes
        .map(|(pool, nodes)| ((*pool).to_owned(), owned(nodes)))
        .collect()
}

fn held(blocks: &[(&str, &str, &str)]) -> CurrentBlocks {
    let mut current = CurrentBlocks::default();
    for (node, pool, cidr) in blocks {
        let block = Block {
            pool: (*pool).to_owned(),
            cidr: cidr.parse().unwrap(),
        };
        current
            .held
            .entry((*node).to_owned())
            .or_default()
            .insert(block);
    }
    current
}

fn created(assignment: &Assignment) -> Vec<String> {
    assignment
        .create
        .iter()
        .map(|(node, block)| format!("{node} {}", block.cidr))
        .collect()
}

#[test]
fn demand_gets_lowest_block_of_first_pool_with_space() {
    let pools = [
        pool("a", "10.0.0.0/25", ""),
        pool("b", "10.1.0.0/24", "blockSize: 28"),
    ];
    let demands = first(&["n1", "n2", "n3"], &["a", "b"]);
    let assignment = assign(&pools, &demands, &CurrentBlocks::default());
    assert_eq!(
        created(&assignment),
        ["n1 10.0.0.0/26", "n2 10.0.0.64/26", "n3 10.1.0.0/28"]
    );
    assert_eq!(
        assignment.free,
        [("a".to_owned(), 0), ("b".to_owned(), 15)].into()
    );
    assert!(assignment.exhausted.is_empty());
}

#[test]
fn initial_block_serves_all_demands_for_its_pool() {
    let pools = [pool("a", "10.0.0.0/24", ""), pool("b", "10.1.0.0/24", "")];
    let demands = [
        demand("n1", &["a", "b"], Purpose::Initial),
        demand("n1", &["a"], Purpose::Initial),
        demand("n1", &["b"], Purpose::Initial),
        demand("n2", &["b"], Purpose::Initial),
    ];
    let assignment = assign(&pools, &demands, &CurrentBlocks::default());
    assert_eq!(
        created(&assignment),
        ["n1 10.0.0.0/26", "n1 10.1.0.0/26", "n2 10.1.0.64/26"]
    );
}

#[test]
fn blocks_of_deleted_nodes_and_other_pools_are_not_free() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let mut current = held(&[
        ("deleted", "a", "10.0.0.0/26"),
        ("n1", "former", "10.0.0.64/28"),
    ]);
    current.foreign.insert("10.0.0.128/26".parse().unwrap());
    let assignment = assign(&pools, &first(&["n1"], &["a"]), &current);
    assert_eq!(created(&assignment), ["n1 10.0.0.192/26"]);
}

#[test]
fn exhausted_pools_name_nodes_by_purpose() {
    let pools = [pool("a", "10.0.0.0/26", ""), pool("b", "10.1.0.0/26", "")];
    let demands = [
        demand("n1", &["a"], Purpose::Initial),
        demand("n2", &["b"], Purpose::Initial),
        demand("n3", &["a", "b"], Purpose::Initial),
        demand("n1", &["a"], Purpose::LowCapacity),
        demand("n2", &["b"], Purpose::Spillover),
    ];
    let assignment = assign(&pools, &demands, &CurrentBlocks::default());
    assert_eq!(created(&assignment), ["n1 10.0.0.0/26", "n2 10.1.0.0/26"]);
    assert_eq!(
        assignment.exhausted,
        named(&[("a", &["n3"]), ("b", &["n3"])])
    );
    assert_eq!(assignment.low_capacity, named(&[("a", &["n1"])]));
}

/// Up to three pools, possibly overlapping, with a few reserved ranges and some assigned blocks.
fn any_input() -> impl Strategy<Value = (Vec<Pool>, CurrentBlocks)> {
    let reserved = prop::collection::vec((0_u8..=255, 24_u8..=32), 0..4);
    let a_pool = (0_u8..4, 22_u8..=24, 24_u8..=28, reserved);
    let pools = prop::collection::vec(a_pool, 1..4).prop_map(|pools| {
        let pools = pools.into_iter().enumerate();
        let pools = pools.map(|(n, (third, prefix, block, reserved))| {
            let cidr: IpNet = format!("10.0.{third}.0/{prefix}").parse().unwrap();
            let cidr = cidr.trunc();
            let ranges = reserved
                .into_iter()
                .map(|(last, prefix)| format!("10.0.{third}.{last}/{prefix}"));
            let ranges = ranges.map(|range| range.parse::<IpNet>().unwrap().trunc());
            Pool {
                name: format!("p{n}"),
                block_prefix: block.max(cidr.prefix_len()),
                reserved: ranges.collect(),
                ..pool("p", &cidr.to_string(), "blockSize: 30")
            }
        });
        pools.collect::<Vec<_>>()
    });
    let held = prop::collection::vec((0_usize..30, 0_usize..3, any::<u16>(), 24_u8..=30), 0..10);
    (pools, held.prop_map(disjoint))
}

/// Blocks as the API contains them: disjoint.
fn disjoint(blocks: Vec<(usize, usize, u16, u8)>) -> CurrentBlocks {
    let mut current = CurrentBlocks::default();
    let mut seen: Vec<IpNet> = Vec::new();
    for (node, pool, low_capacity, prefix) in blocks {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + u32::from(low_capacity) % 1024);
        let cidr = IpNet::new(address.into(), prefix).unwrap().trunc();
        if seen.iter().any(|other| overlap(other, &cidr)) {
            continue;
        }
        seen.push(cidr);
        let block = Block {
            pool: format!("p{pool}"),
            cidr,
        };
        current
            .held
            .entry(format!("n{node:02}"))
            .or_default()
            .insert(block);
    }
    current
}

/// Demands of up to thirty nodes for some of the pools.
fn any_demands() -> impl Strategy<Value = Vec<BlockDemand>> {
    let purpose = prop::sample::select(vec![
        Purpose::Initial,
        Purpose::LowCapacity,
        Purpose::Spillover,
    ]);
    let pools = prop::sample::subsequence(vec!["p0", "p1", "p2"], 1..=3);
    let one = (0_usize..30, pools, purpose)
        .prop_map(|(node, pools, purpose)| demand(&format!("n{node:02}"), &pools, purpose));
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn assigned_blocks_never_overlap((pools, current) in any_input(), demands in any_demands()) {
        let assignment = assign(&pools, &demands, &current);
        let mut blocks: Vec<IpNet> = current.held.values().flatten().map(|block| block.cidr).collect();
        blocks.extend(assignment.create.iter().map(|(_, block)| block.cidr));
        for (n, a) in blocks.iter().enumerate() {
            for b in blocks.iter().skip(n + 1) {
                prop_assert!(!overlap(a, b), "{} {}", a, b);
            }
        }
    }

    #[test]
    fn new_block_is_in_demanded_pool_and_not_reserved((pools, current) in any_input(), demands in any_demands()) {
        let assignment = assign(&pools, &demands, &current);
        for (node, block) in &assignment.create {
            let pool = pools.iter().find(|pool| pool.name == block.pool).unwrap();
            prop_assert!(pool.cidr.contains(&block.cidr));
            prop_assert_eq!(block.cidr.prefix_len(), pool.block_prefix);
            prop_assert!(!pool.reserved.iter().any(|range| range.contains(&block.cidr)));
            prop_assert!(demands.iter().any(|demand| demand.node == *node && demand.pools.contains(&block.pool)));
        }
    }

    #[test]
    fn unmet_demand_names_node_unless_for_spare_capacity((pools, current) in any_input(), demands in any_demands()) {
        let assignment = assign(&pools, &demands, &current);
        let got = |demand: &BlockDemand| {
            let own = assignment.create.iter().filter(|(node, _)| *node == demand.node);
            own.filter(|(_, block)| demand.pools.contains(&block.pool)).count()
        };
        let is_named = |unserved: &BTreeMap<String, BTreeSet<String>>, demand: &BlockDemand| {
            demand.pools.iter().all(|pool| unserved.get(pool).is_some_and(|nodes| nodes.contains(&demand.node)))
        };
        for demand in &demands {
            match demand.purpose {
                Purpose::Initial => prop_assert!(got(demand) > 0 || is_named(&assignment.exhausted, demand)),
                Purpose::LowCapacity => prop_assert!(got(demand) > 0 || is_named(&assignment.low_capacity, demand)),
                Purpose::Spillover => {}
            }
        }
        prop_assert!(assignment.create.len() <= demands.len());
    }
}

#[test]
fn released_blocks_are_reused_last_and_oldest_first() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let current = CurrentBlocks {
        released: ["10.0.0.64/26", "10.0.0.0/26", "10.0.0.0/28", "10.9.0.0/26"]
            .map(|block| block.parse().unwrap())
            .into(),
        ..held(&[("n1", "a", "10.0.0.192/26")])
    };
    let assignment = assign(&pools, &first(&["n2", "n3", "n4", "n5"], &["a"]), &current);
    assert_eq!(
        created(&assignment),
        ["n2 10.0.0.128/26", "n3 10.0.0.64/26", "n4 10.0.0.0/26"]
    );
    assert_eq!(
        assignment.exhausted["a"],
        ["n5".to_owned()].into(),
        "no block is assigned twice"
    );
}
