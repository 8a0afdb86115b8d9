//! What the book says of a moment at which nothing is under way.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netweft_crds::IpFamily;

use super::rules::{Book, Held};

impl Book {
    /// Nodes that hand out from blocks that are not theirs. The two watches are not in step: ask when all is at rest.
    pub fn foreign(&self) -> Vec<String> {
        let listed = self.networks.iter();
        let listed =
            listed.flat_map(|(node, now)| now.subnets.iter().map(move |block| (node, block)));
        let own = |node: &String, block: &IpNet| {
            let held = self
                .blocks
                .get(block)
                .and_then(|name| self.subnets.get(name));
            held.is_some_and(|held| held.node == *node)
        };
        listed
            .filter(|(node, block)| !own(node, block))
            .map(|(node, block)| format!("{node} uses {block}, which is not its own"))
            .collect()
    }

    /// What is not yet as it should be: each Node that is there has as many blocks of each pool as `wanted` says, all Active,
    /// those among them that it came back for; its NodeNetwork is its own and lists these and no others. Blocks of Nodes that
    /// are gone are Orphaned, or, once all graces are over (`at_last`), gone too.
    pub fn unsettled(&self, wanted: impl Fn(&str) -> usize, at_last: bool) -> Vec<String> {
        let mut own: BTreeMap<&str, Vec<&Held>> = BTreeMap::new();
        for held in self.subnets.values() {
            own.entry(&held.node).or_default().push(held);
        }
        let mut wrong = Vec::new();
        for (name, held) in &own {
            let there = self.nodes.contains_key(*name);
            let waits = |held: &&&Held| held.orphaned.is_none() != there || (at_last && !there);
            let odd = held.iter().filter(waits);
            wrong.extend(odd.map(|held| format!("{held:?} while its Node is there: {there}")));
        }
        for (name, node) in &self.nodes {
            let held = own.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            for pool in self.rules.pools.keys() {
                let count = held.iter().filter(|held| held.pool == *pool).count();
                if count != wanted(name) {
                    wrong.push(format!("{name} has {count} blocks of {pool}"));
                }
            }
            let blocks: BTreeSet<IpNet> = held.iter().map(|held| held.cidr).collect();
            let lacking = node.owed.difference(&blocks);
            wrong.extend(lacking.map(|cidr| format!("{name} came back and lacks {cidr}")));
            let stale = held
                .iter()
                .filter(|held| held.addresses.of(IpFamily::of(node.address)) != Some(node.address));
            wrong.extend(stale.map(|held| format!("{held:?} while {name} has moved")));
            let network = self.networks.get(name);
            let listed = network.map(|network| network.subnets.iter().copied().collect());
            if listed.as_ref() != Some(&blocks) {
                wrong.push(format!("{name} lists {listed:?} and has {blocks:?}"));
            }
            if node.uid.is_none() || network.is_some_and(|network| network.owner != node.uid) {
                wrong.push(format!("the NodeNetwork of {name} is not this Node's"));
            }
        }
        wrong
    }

    /// Whether every Node that is there has been told that it has all it needs.
    pub fn all_assigned(&self) -> bool {
        let mut nodes = self.nodes.keys();
        nodes.all(|node| {
            self.networks
                .get(node)
                .is_some_and(|network| network.assigned)
        })
    }

    /// How many NodeSubnets there are.
    pub fn held(&self) -> usize {
        self.subnets.len()
    }

    /// The most blocks of one pool that a Node had at a time.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A node's NodeSubnets: how many, and how many of them are Orphaned.
    pub fn held_by(&self, node: &str) -> (usize, usize) {
        let own: Vec<_> = self
            .subnets
            .values()
            .filter(|held| held.node == node)
            .collect();
        let orphaned = own.iter().filter(|held| held.orphaned.is_some());
        (own.len(), orphaned.count())
    }
}
