use proptest::prelude::*;

use super::*;
use crate::blocks::overlap;
use crate::testing;

fn pool(name: &str, cidr: &str, more: &str) -> Pool {
    crate::pool::check(name, &testing::pool(name, cidr, more).spec, false).unwrap()
}

fn nodes(names: &[&str], pools: &[&str]) -> Needs {
    let pools: BTreeSet<String> = pools.iter().map(|pool| (*pool).to_owned()).collect();
    let names = names.iter();
    Needs {
        pools: names
            .map(|name| ((*name).to_owned(), pools.clone()))
            .collect(),
        short: BTreeMap::new(),
    }
}

fn held(blocks: &[(&str, &str, &str)]) -> Current {
    let mut current = Current::default();
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
fn every_node_gets_the_lowest_free_block_of_every_pool() {
    let pools = [
        pool("a", "10.0.0.0/24", ""),
        pool("b", "10.1.0.0/24", "blockSize: 28"),
    ];
    let assignment = assign(
        &pools,
        &nodes(&["n1", "n2"], &["a", "b"]),
        &Current::default(),
    );
    assert_eq!(
        created(&assignment),
        [
            "n1 10.0.0.0/26",
            "n2 10.0.0.64/26",
            "n1 10.1.0.0/28",
            "n2 10.1.0.16/28"
        ]
    );
    assert_eq!(
        assignment.free,
        [("a".to_owned(), 2), ("b".to_owned(), 14)].into()
    );
}

#[test]
fn a_node_keeps_its_block_and_gets_no_second_one() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let current = held(&[("n2", "a", "10.0.0.0/26")]);
    let assignment = assign(&pools, &nodes(&["n1", "n2"], &["a"]), &current);
    assert_eq!(created(&assignment), ["n1 10.0.0.64/26"]);
}

#[test]
fn blocks_of_gone_nodes_other_pools_and_unknown_owners_are_taken() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let mut current = held(&[
        ("gone", "a", "10.0.0.0/26"),
        ("n1", "former", "10.0.0.64/28"),
    ]);
    current.foreign.insert("10.0.0.128/26".parse().unwrap());
    let assignment = assign(&pools, &nodes(&["n1"], &["a"]), &current);
    assert_eq!(created(&assignment), ["n1 10.0.0.192/26"]);
}

#[test]
fn a_pool_without_a_free_block_names_the_nodes_that_lack_one() {
    let pools = [pool("a", "10.0.0.0/25", "")];
    let assignment = assign(
        &pools,
        &nodes(&["n1", "n2", "n3"], &["a"]),
        &Current::default(),
    );
    assert_eq!(created(&assignment), ["n1 10.0.0.0/26", "n2 10.0.0.64/26"]);
    assert_eq!(
        assignment.exhausted,
        [("a".to_owned(), ["n3".to_owned()].into())].into()
    );
    assert_eq!(assignment.free["a"], 0);
}

#[test]
fn a_disabled_pool_gives_nothing_and_is_not_exhausted() {
    let pools = [pool("a", "10.0.0.0/24", "disabled: true")];
    let assignment = assign(&pools, &nodes(&["n1"], &["a"]), &Current::default());
    assert_eq!(
        (created(&assignment).len(), assignment.exhausted.len()),
        (0, 0)
    );
}

#[test]
fn a_pool_gives_nothing_to_nodes_that_may_not_draw_from_it() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let assignment = assign(&pools, &nodes(&["n1"], &["b"]), &Current::default());
    assert!(assignment.create.is_empty());
}

/// Up to three pools, which may overlap, with a few reserved ranges; some blocks that are held already.
fn any_input() -> impl Strategy<Value = (Vec<Pool>, usize, Current)> {
    let reserved = prop::collection::vec((0_u8..=255, 24_u8..=32), 0..4);
    let a_pool = (0_u8..4, 22_u8..=24, 24_u8..=28, reserved, any::<bool>());
    let pools = prop::collection::vec(a_pool, 1..4).prop_map(|pools| {
        let pools = pools.into_iter().enumerate();
        let pools = pools.map(|(n, (third, prefix, block, reserved, open))| {
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
                open,
                ..pool("p", &cidr.to_string(), "blockSize: 30")
            }
        });
        pools.collect::<Vec<_>>()
    });
    let held = prop::collection::vec((0_usize..30, 0_usize..3, any::<u16>(), 24_u8..=30), 0..10);
    (pools, 0_usize..40, held.prop_map(disjoint))
}

/// Blocks as they can stand in the API: none inside another.
fn disjoint(blocks: Vec<(usize, usize, u16, u8)>) -> Current {
    let mut current = Current::default();
    let mut seen: Vec<IpNet> = Vec::new();
    for (node, pool, low, prefix) in blocks {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + u32::from(low) % 1024);
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

proptest! {
    #[test]
    fn no_two_blocks_share_an_address((pools, count, current) in any_input()) {
        let names: Vec<_> = (0..count).map(|n| format!("n{n:02}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let assignment = assign(&pools, &nodes(&names, &["p0", "p1", "p2"]), &current);
        let mut blocks: Vec<IpNet> = current.held.values().flatten().map(|block| block.cidr).collect();
        blocks.extend(assignment.create.iter().map(|(_, block)| block.cidr));
        for (n, a) in blocks.iter().enumerate() {
            for b in blocks.iter().skip(n + 1) {
                prop_assert!(!overlap(a, b), "{} {}", a, b);
            }
        }
    }

    #[test]
    fn a_new_block_is_in_its_pool_and_not_reserved((pools, count, current) in any_input()) {
        let names: Vec<_> = (0..count).map(|n| format!("n{n:02}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let assignment = assign(&pools, &nodes(&names, &["p0", "p1", "p2"]), &current);
        for (_, block) in &assignment.create {
            let pool = pools.iter().find(|pool| pool.name == block.pool).unwrap();
            prop_assert!(pool.open);
            prop_assert!(pool.cidr.contains(&block.cidr));
            prop_assert_eq!(block.cidr.prefix_len(), pool.block_prefix);
            prop_assert!(!pool.reserved.iter().any(|range| range.contains(&block.cidr)));
        }
    }

    #[test]
    fn every_node_has_a_block_of_every_open_pool_or_is_named((pools, count, current) in any_input()) {
        let names: Vec<_> = (0..count).map(|n| format!("n{n:02}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let assignment = assign(&pools, &nodes(&names, &["p0", "p1", "p2"]), &current);
        for pool in pools.iter().filter(|pool| pool.open) {
            for name in &names {
                let had = holds(&current, name, &pool.name);
                let got = assignment.create.iter().filter(|(n, b)| n == name && b.pool == pool.name).count();
                let lacks = assignment.exhausted.get(&pool.name).is_some_and(|nodes| nodes.contains(*name));
                prop_assert_eq!(usize::from(had) + got + usize::from(lacks), 1);
            }
        }
    }
}

#[test]
fn nodes_without_a_block_come_before_those_that_run_short() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let current = held(&[("n1", "a", "10.0.0.0/26"), ("n3", "a", "10.0.0.64/26")]);
    let mut needs = nodes(&["n1", "n2", "n3"], &["a"]);
    let short = ["n1", "n3"].map(str::to_owned);
    needs.short = [("a".to_owned(), short.into())].into();
    let assignment = assign(&pools, &needs, &current);
    assert_eq!(
        created(&assignment),
        ["n2 10.0.0.128/26", "n1 10.0.0.192/26"]
    );
    assert!(assignment.exhausted.is_empty());
    assert_eq!(
        assignment.scarce,
        [("a".to_owned(), ["n3".to_owned()].into())].into()
    );
}

#[test]
fn who_runs_short_of_a_pool_that_is_closed_to_it_gets_nothing() {
    let short = |needs: Needs| Needs {
        short: [("a".to_owned(), ["n1".to_owned()].into())].into(),
        ..needs
    };
    let current = held(&[("n1", "a", "10.0.0.0/26")]);
    for (more, allowed) in [("disabled: true", "a"), ("", "b")] {
        let pools = [pool("a", "10.0.0.0/24", more)];
        let assignment = assign(&pools, &short(nodes(&["n1"], &[allowed])), &current);
        assert!(assignment.create.is_empty() && assignment.scarce.is_empty());
    }
}

#[test]
fn the_block_that_was_given_back_the_longest_ago_comes_last_but_for_later_ones() {
    let pools = [pool("a", "10.0.0.0/24", "")];
    let current = Current {
        freed: ["10.0.0.64/26", "10.0.0.0/26", "10.0.0.0/28", "10.9.0.0/26"]
            .map(|block| block.parse().unwrap())
            .into(),
        ..held(&[("n1", "a", "10.0.0.192/26")])
    };
    let assignment = assign(&pools, &nodes(&["n2", "n3", "n4", "n5"], &["a"]), &current);
    assert_eq!(
        created(&assignment),
        ["n2 10.0.0.128/26", "n3 10.0.0.64/26", "n4 10.0.0.0/26"]
    );
    assert_eq!(
        assignment.exhausted["a"],
        ["n5".to_owned()].into(),
        "none is given twice"
    );
}
