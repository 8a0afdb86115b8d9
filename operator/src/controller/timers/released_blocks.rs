//! [`ReleasedBlocks`]: the blocks whose release this leader has observed.

use std::collections::BTreeSet;

use ipnet::IpNet;

/// Released blocks in the order of their release. The state is in memory: for a new leader all free blocks are equal,
/// and the lowest is assigned first.
#[derive(Debug, Default)]
pub struct ReleasedBlocks {
    assigned: BTreeSet<IpNet>,
    order: Vec<IpNet>,
}

impl ReleasedBlocks {
    /// Clears the state when another operator is the leader.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Records the assigned blocks, and returns the released ones, the longest released first.
    pub fn observe(&mut self, assigned: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
        let assigned: BTreeSet<IpNet> = assigned.collect();
        self.order.retain(|block| !assigned.contains(block));
        self.order.extend(self.assigned.difference(&assigned));
        self.assigned = assigned;
        self.order.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_blocks_are_ordered_by_release_time() {
        let mut released = ReleasedBlocks::default();
        let mut observe = |blocks: &[&str]| -> Vec<String> {
            let blocks = blocks.iter().map(|block| block.parse().unwrap());
            released
                .observe(blocks)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let [a, b, c] = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"];
        assert!(observe(&[a, b, c]).is_empty());
        assert_eq!(observe(&[a, c]), [b]);
        assert_eq!(observe(&[c]), [b, a]);
        assert_eq!(observe(&[c, b]), [a]);
        assert_eq!(observe(&[c]), [a, b]);
    }
}
