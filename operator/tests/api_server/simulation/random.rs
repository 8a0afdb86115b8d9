//! [`Random`]: pseudo-random numbers from a seed (SplitMix64).

/// A sequence of pseudo-random numbers.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from(self.next() % limit).unwrap()
    }

    /// Removes up to `count` random elements of `items` and returns them.
    pub fn take<T>(&mut self, items: &mut Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(items.len());
        (0..count)
            .map(|_| items.swap_remove(self.below(items.len())))
            .collect()
    }
}

#[test]
fn same_seed_gives_same_choice_without_repetition() {
    let choice = |seed| {
        let mut items: Vec<usize> = (0..50).collect();
        let mut chosen = Random::from_seed(seed).take(&mut items, 20);
        let order = chosen.clone();
        chosen.append(&mut items);
        chosen.sort_unstable();
        assert_eq!(chosen, (0..50).collect::<Vec<_>>());
        order
    };
    assert_eq!(choice(1), choice(1));
    assert_ne!(choice(1), choice(2));
}
