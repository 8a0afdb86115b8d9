//! Arithmetic of blocks: all blocks of a pool, the occupied ones, and the lowest free one.
//!
//! Blocks are numbered from the start of their pool. Sets of blocks are sorted, disjoint ranges of numbers. The cost
//! depends on the number of ranges, not on the size of the pool, and is equal for IPv4 and IPv6.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// First and last member of a range.
type Range = (u128, u128);

/// The blocks of one range of addresses.
#[derive(Clone, Debug)]
pub struct Blocks {
    cidr: IpNet,
    prefix: u8,
    /// Fully reserved blocks as merged ranges of numbers.
    reserved: Vec<Range>,
    /// Reserved or occupied blocks as merged ranges of numbers.
    occupied_blocks: Vec<Range>,
}

impl Blocks {
    /// The blocks of `cidr` with `prefix`. A block is not free if it contains an address of `occupied` or lies
    /// completely in `reserved`.
    pub fn new<'a>(
        cidr: IpNet,
        prefix: u8,
        reserved: &[IpNet],
        occupied: impl IntoIterator<Item = &'a IpNet>,
    ) -> Self {
        let shift = shift(&cidr, prefix);
        // A partly reserved block can still serve its other addresses, so reserved ranges are rounded inwards.
        let ranges = merge(
            reserved
                .iter()
                .filter_map(|net| offsets(&cidr, net))
                .collect(),
        );
        let whole = ranges
            .into_iter()
            .filter_map(|range| whole_blocks(range, shift));
        let reserved = merge(whole.collect());
        // One occupied address makes the block unusable, so occupied ranges are rounded outwards.
        let occupied = occupied
            .into_iter()
            .filter_map(|net| offsets(&cidr, net))
            .map(|(first, last)| (first >> shift, last >> shift));
        let occupied_blocks = merge(reserved.iter().copied().chain(occupied).collect());
        Self {
            cidr,
            prefix,
            reserved,
            occupied_blocks,
        }
    }

    /// Number of assignable blocks, free or not.
    #[must_use]
    pub fn total(&self) -> u128 {
        members_without((0, self.last()), &self.reserved)
    }

    /// Number of free blocks.
    #[must_use]
    pub fn free_count(&self) -> u128 {
        members_without((0, self.last()), &self.occupied_blocks)
    }

    /// The free blocks, lowest first.
    pub fn free(&self) -> impl Iterator<Item = IpNet> + '_ {
        let ends = self
            .occupied_blocks
            .iter()
            .map(|(first, _)| first.checked_sub(1));
        let ends = ends.chain([Some(self.last())]);
        let starts = [Some(0)].into_iter().chain(
            self.occupied_blocks
                .iter()
                .map(|(_, last)| last.checked_add(1)),
        );
        starts
            .zip(ends)
            .filter_map(|(start, end)| Some((start?, end?)))
            .flat_map(|(start, end)| start..=end)
            .filter_map(|number| self.block(number))
    }

    /// Whether `block` is one of these blocks and free.
    #[must_use]
    pub fn is_free(&self, block: &IpNet) -> bool {
        let Some((first, _)) = offsets(&self.cidr, block) else {
            return false;
        };
        let number = first >> shift(&self.cidr, self.prefix);
        let mut occupied_blocks = self.occupied_blocks.iter();
        self.block(number) == Some(*block)
            && !occupied_blocks.any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Number of the last block, counted from zero.
    fn last(&self) -> u128 {
        let (first, last) = span(&self.cidr);
        (last - first) >> shift(&self.cidr, self.prefix)
    }

    fn block(&self, number: u128) -> Option<IpNet> {
        let (first, _) = span(&self.cidr);
        let address = first.checked_add(number.checked_shl(shift(&self.cidr, self.prefix))?)?;
        let address = match self.cidr {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(address).ok()?)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(address)),
        };
        IpNet::new(address, self.prefix).ok()
    }
}

/// Number of addresses of `cidr` outside `reserved`.
#[must_use]
pub fn address_count(cidr: &IpNet, reserved: &[IpNet]) -> u128 {
    let reserved = merge(
        reserved
            .iter()
            .filter_map(|net| offsets(cidr, net))
            .collect(),
    );
    members_without(span(cidr), &reserved)
}

/// Whether two ranges share an address. Prefixes are either nested or disjoint.
#[must_use]
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Number of address bits inside a block.
fn shift(cidr: &IpNet, prefix: u8) -> u32 {
    // 127 keeps `>>` defined for a block of all IPv6 addresses, which no pool may have.
    u32::from(cidr.max_prefix_len().saturating_sub(prefix)).min(127)
}

/// First and last address as numbers.
fn span(net: &IpNet) -> Range {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The part of `net` inside `cidr`, as offsets from the start of `cidr`.
fn offsets(cidr: &IpNet, net: &IpNet) -> Option<Range> {
    let (base, end) = span(cidr);
    let (first, last) = span(net);
    // `overlap` also compares the families, which the numbers do not show.
    overlap(cidr, net).then(|| (first.max(base) - base, last.min(end) - base))
}

/// The blocks that lie completely inside a range of addresses.
fn whole_blocks((first, last): Range, shift: u32) -> Option<Range> {
    let inside = (1 << shift) - 1;
    let first = (first >> shift).checked_add(u128::from(first & inside != 0))?;
    let last = (last >> shift).checked_sub(u128::from(last & inside != inside))?;
    (first <= last).then_some((first, last))
}

/// Sorts the ranges, and merges overlapping and adjacent ones.
fn merge(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

/// Number of members of a range outside the merged ranges in it.
fn members_without((first, last): Range, without: &[Range]) -> u128 {
    let without = without
        .iter()
        .map(|(first, last)| (last - first).saturating_add(1))
        .fold(0, u128::saturating_add);
    // The addition comes last: the number of IPv6 addresses does not fit.
    match (last - first).checked_sub(without) {
        Some(rest) => rest.saturating_add(1),
        None => 0,
    }
}
