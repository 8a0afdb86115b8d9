//! Checks of a converged cluster.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netweft_crds::IpFamily;

use super::checker::{InvariantChecker, ObservedSubnet};

impl InvariantChecker {
    /// Blocks in NodeNetworks that belong to other nodes. The two watches are not synchronized, so this requires a
    /// converged cluster.
    pub fn blocks_of_other_nodes(&self) -> Vec<String> {
        let listed = self.networks.iter();
        let listed =
            listed.flat_map(|(node, now)| now.subnets.iter().map(move |block| (node, block)));
        let own = |node: &String, block: &IpNet| {
            let subnet = self
                .blocks
                .get(block)
                .and_then(|name| self.subnets.get(name));
            subnet.is_some_and(|subnet| subnet.node == *node)
        };
        listed
            .filter(|(node, block)| !own(node, block))
            .map(|(node, block)| format!("{node} lists {block} of another node"))
            .collect()
    }

    /// Differences from the converged state: each existing Node has `expected_count` blocks of each pool, all Active, including
    /// those that it has returned for. Its NodeNetwork belongs to it and lists exactly these blocks. Blocks of deleted
    /// Nodes are Orphaned, or deleted once all grace periods are over (`after_grace`).
    pub fn differences(
        &self,
        expected_count: impl Fn(&str) -> usize,
        after_grace: bool,
    ) -> Vec<String> {
        let mut own: BTreeMap<&str, Vec<&ObservedSubnet>> = BTreeMap::new();
        for subnet in self.subnets.values() {
            own.entry(&subnet.node).or_default().push(subnet);
        }
        let mut differences = Vec::new();
        for (name, subnets) in &own {
            let exists = self.nodes.contains_key(*name);
            let is_wrong = |subnet: &&&ObservedSubnet| {
                subnet.orphaned.is_none() != exists || (after_grace && !exists)
            };
            let wrong = subnets.iter().filter(is_wrong);
            differences
                .extend(wrong.map(|subnet| format!("{subnet:?} while its Node exists: {exists}")));
        }
        for (name, node) in &self.nodes {
            let subnets = own.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            for pool in self.config.pools.keys() {
                let count = subnets.iter().filter(|subnet| subnet.pool == *pool).count();
                if count != expected_count(name) {
                    differences.push(format!("{name} has {count} blocks of {pool}"));
                }
            }
            let blocks: BTreeSet<IpNet> = subnets.iter().map(|subnet| subnet.cidr).collect();
            let missing = node.expected_blocks.difference(&blocks);
            differences.extend(missing.map(|cidr| format!("{name} has returned and lacks {cidr}")));
            let stale = subnets.iter().filter(|subnet| {
                subnet.addresses.of(IpFamily::of(node.address)) != Some(node.address)
            });
            differences
                .extend(stale.map(|subnet| {
                    format!("{subnet:?} although the address of {name} has changed")
                }));
            let network = self.networks.get(name);
            let listed = network.map(|network| network.subnets.iter().copied().collect());
            if listed.as_ref() != Some(&blocks) {
                differences.push(format!("{name} lists {listed:?} and has {blocks:?}"));
            }
            if node.uid.is_none() || network.is_some_and(|network| network.owner != node.uid) {
                differences.push(format!("the NodeNetwork of {name} belongs to another Node"));
            }
        }
        differences
    }

    /// Whether the condition Assigned of every existing Node is True.
    pub fn all_assigned(&self) -> bool {
        let mut nodes = self.nodes.keys();
        nodes.all(|node| {
            self.networks
                .get(node)
                .is_some_and(|network| network.assigned)
        })
    }

    /// Number of NodeSubnets.
    pub fn subnet_count(&self) -> usize {
        self.subnets.len()
    }

    /// Maximum number of blocks of one pool that a Node had at a time.
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// Number of NodeSubnets of a node, and how many of them are Orphaned.
    pub fn subnets_of(&self, node: &str) -> (usize, usize) {
        let own: Vec<_> = self
            .subnets
            .values()
            .filter(|subnet| subnet.node == node)
            .collect();
        let orphaned = own.iter().filter(|subnet| subnet.orphaned.is_some());
        (own.len(), orphaned.count())
    }
}
