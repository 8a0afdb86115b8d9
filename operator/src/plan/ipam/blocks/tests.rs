use proptest::prelude::*;

use crate::plan::ipam::blocks::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn first_free(cidr: &str, prefix: u8, reserved: &[&str], occupied: &[&str]) -> Option<String> {
    let (reserved, occupied) = (nets(reserved), nets(occupied));
    let blocks = Blocks::new(net(cidr), prefix, &reserved, &occupied);
    blocks.free().next().map(|block| block.to_string())
}

#[test]
fn lowest_free_block_is_first() {
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &[]).as_deref(),
        Some("10.0.0.0/26")
    );
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &["10.0.0.0/26"]).as_deref(),
        Some("10.0.0.64/26")
    );
    assert_eq!(
        first_free("fd00::/64", 122, &[], &["fd00::/122"]).as_deref(),
        Some("fd00::40/122")
    );
}

#[test]
fn free_block_fills_gap() {
    let occupied = ["10.0.0.0/26", "10.0.0.128/26", "10.0.0.192/26"];
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &occupied).as_deref(),
        Some("10.0.0.64/26")
    );
}

#[test]
fn occupied_blocks_of_other_sizes_are_skipped() {
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &["10.0.0.70/31"]).as_deref(),
        Some("10.0.0.0/26")
    );
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &["10.0.0.2/31", "10.0.0.70/31"]).as_deref(),
        Some("10.0.0.128/26")
    );
    assert_eq!(first_free("10.0.0.0/24", 26, &[], &["10.0.0.0/8"]), None);
}

#[test]
fn only_wholly_reserved_blocks_are_skipped() {
    assert_eq!(
        first_free("10.0.0.0/24", 26, &["10.0.0.0/26"], &[]).as_deref(),
        Some("10.0.0.64/26")
    );
    assert_eq!(
        first_free("10.0.0.0/24", 26, &["10.0.0.0/27"], &[]).as_deref(),
        Some("10.0.0.0/26")
    );
    let halves = ["10.0.0.0/27", "10.0.0.32/27"];
    assert_eq!(
        first_free("10.0.0.0/24", 26, &halves, &[]).as_deref(),
        Some("10.0.0.64/26")
    );
}

#[test]
fn overlapping_reserved_ranges_are_counted_once() {
    let reserved = nets(&["10.244.0.0/24", "10.244.7.7/32", "10.244.0.7/32"]);
    let blocks = Blocks::new(net("10.244.0.0/16"), 26, &reserved, []);
    assert_eq!(blocks.total(), 1020);
    assert_eq!(blocks.free_count(), 1020);
    assert_eq!(address_count(&net("10.244.0.0/16"), &reserved), 65_279);
}

#[test]
fn fully_reserved_pool_has_no_blocks() {
    let reserved = nets(&["10.0.0.0/25", "10.0.0.128/25"]);
    let blocks = Blocks::new(net("10.0.0.0/24"), 26, &reserved, []);
    assert_eq!(
        (blocks.total(), blocks.free_count(), blocks.free().next()),
        (0, 0, None)
    );
    assert_eq!(address_count(&net("10.0.0.0/24"), &reserved), 0);
}

#[test]
fn largest_and_smallest_pools_do_not_overflow() {
    let all = Blocks::new(
        net("::/0"),
        127,
        &[],
        &nets(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"]),
    );
    assert_eq!(all.total(), 1 << 127);
    assert_eq!(all.free_count(), (1 << 127) - 1);
    assert_eq!(all.free().next(), Some(net("::/127")));
    assert_eq!(address_count(&net("::/0"), &[]), u128::MAX);
    let one = Blocks::new(net("255.255.255.254/31"), 31, &[], []);
    assert_eq!(
        one.free().collect::<Vec<_>>(),
        nets(&["255.255.255.254/31"])
    );
}

#[test]
fn occupied_ranges_of_other_family_are_ignored() {
    assert_eq!(
        first_free("10.0.0.0/24", 26, &[], &["::/0"]).as_deref(),
        Some("10.0.0.0/26")
    );
    assert!(!overlap(&net("0.0.0.0/0"), &net("::/0")));
}

/// Any range in and around 10.0.0.0/24.
fn any_net() -> impl Strategy<Value = IpNet> {
    (0_u32..512, 24_u8..=32).prop_map(|(offset, prefix)| {
        let address = Ipv4Addr::from(0x0a00_0000 - 128 + offset);
        IpNet::new(address.into(), prefix).unwrap().trunc()
    })
}

/// Parts of blocks, so many that some blocks are completely covered.
fn pieces() -> impl Strategy<Value = Vec<IpNet>> {
    let piece = (0_u32..256, 29_u8..=31).prop_map(|(offset, prefix)| {
        let address = Ipv4Addr::from(0x0a00_0000 + offset);
        IpNet::new(address.into(), prefix).unwrap().trunc()
    });
    prop::collection::vec(piece, 0..40)
}

proptest! {
    #[test]
    fn free_blocks_match_exhaustive_address_search(
        reserved in prop_oneof![prop::collection::vec(any_net(), 0..6), pieces()],
        occupied in prop::collection::vec(any_net(), 0..6),
    ) {
        let pool = net("10.0.0.0/24");
        let blocks = Blocks::new(pool, 28, &reserved, &occupied);
        let IpNet::V4(range) = pool else { unreachable!() };
        let possible = |block: &ipnet::Ipv4Net| {
            (u32::from(block.network())..=u32::from(block.broadcast()))
                    .any(|a| !reserved.iter().any(|r| r.contains(&IpAddr::V4(a.into()))))
        };
        let expected: Vec<IpNet> = range
            .subnets(28)
            .unwrap()
            .filter(possible)
            .map(IpNet::V4)
            .filter(|block| !occupied.iter().any(|other| overlap(block, other)))
            .collect();
        prop_assert_eq!(blocks.free().collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(blocks.free_count(), expected.len() as u128);
        prop_assert_eq!(blocks.total(), range.subnets(28).unwrap().filter(possible).count() as u128);
    }
}
