//! [`ReleasedBlocks`]: which blocks were given back, as this leader has seen it.

use std::collections::BTreeSet;

use ipnet::IpNet;

/// Blocks that were given back, in order. It lives in memory: to a new leader all free blocks are alike, and the lowest goes
/// first.
#[derive(Debug, Default)]
pub struct ReleasedBlocks {
    assigned: BTreeSet<IpNet>,
    order: Vec<IpNet>,
}

impl ReleasedBlocks {
    /// Clears the state when another operator leads.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes note of what is assigned now, and tells what was and is not any more, the longest ago first.
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
        let mut freed = ReleasedBlocks::default();
        let mut observe = |blocks: &[&str]| -> Vec<String> {
            let blocks = blocks.iter().map(|block| block.parse().unwrap());
            freed
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
