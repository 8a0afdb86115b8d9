//! [`Book`]: the rules of the ledger, with no clock and no client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube::ResourceExt;
use netweft_crds::{NodeAddresses, NodeNetwork, NodeSubnet, SubnetState};

use super::reuse::Reuse;
use super::words::{Change, Network, Rules};

/// Everything that was seen and told.
pub struct Book {
    pub(super) rules: Rules,
    /// NodeSubnets by name.
    pub(super) subnets: BTreeMap<String, Held>,
    /// Their names by block, for what lies beside each other.
    pub(super) blocks: BTreeMap<IpNet, String>,
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) nodes: BTreeMap<String, Present>,
    pub(super) left: BTreeMap<String, Left>,
    pub(super) reuse: Reuse,
    pub(super) given: usize,
    pub(super) most: usize,
    pub(super) breaches: Vec<String>,
}

/// A NodeSubnet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) uid: Option<String>,
    pub(super) cidr: IpNet,
    pub(super) pool: String,
    pub(super) node: String,
    /// Where the others send packets for it.
    pub(super) addresses: NodeAddresses,
    pub(super) orphaned: Option<Instant>,
}

/// A Node that is there.
pub(super) struct Present {
    pub(super) address: IpAddr,
    pub(super) uid: Option<String>,
    /// Pods by block.
    pub(super) uses: BTreeMap<IpNet, i64>,
    /// Blocks that it had before it went, and came back for in time.
    pub(super) owed: BTreeSet<IpNet>,
}

/// A Node that is gone.
pub(super) struct Left {
    at: Instant,
    blocks: BTreeSet<IpNet>,
}

impl Book {
    /// An empty book.
    pub fn new(rules: Rules) -> Self {
        Self {
            reuse: Reuse::new(&rules),
            rules,
            subnets: BTreeMap::new(),
            blocks: BTreeMap::new(),
            networks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            left: BTreeMap::new(),
            given: 0,
            most: 0,
            breaches: Vec::new(),
        }
    }

    /// What must not have happened.
    pub fn breaches(&self) -> &[String] {
        &self.breaches
    }

    /// How often a block was given to a node.
    pub fn given(&self) -> usize {
        self.given
    }

    /// NodeNetworks by name.
    pub fn networks(&self) -> &BTreeMap<String, Network> {
        &self.networks
    }

    /// A Node is about to be created.
    pub fn node_comes(&mut self, name: &str, address: IpAddr, at: Instant) {
        let in_time = |left: &Left| {
            let grace = self.rules.grace.unwrap_or(Duration::MAX);
            at.saturating_duration_since(left.at) < grace
        };
        let left = self.left.remove(name).filter(in_time);
        let present = Present {
            address,
            uid: None,
            uses: BTreeMap::new(),
            owed: left.map(|left| left.blocks).unwrap_or_default(),
        };
        self.nodes.insert(name.to_owned(), present);
    }

    /// It has been, with this UID.
    pub fn node_is(&mut self, name: &str, uid: Option<String>) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.uid = uid;
        }
    }

    /// A Node is about to state another address.
    pub fn node_moves(&mut self, name: &str, address: IpAddr) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.address = address;
        }
    }

    /// A Node is about to be deleted.
    pub fn node_goes(&mut self, name: &str, at: Instant) {
        self.nodes.remove(name);
        let own = self.subnets.values().filter(|held| held.node == name);
        let blocks = own.map(|held| held.cidr).collect();
        self.left.insert(name.to_owned(), Left { at, blocks });
    }

    /// UID of a Node that is there; within: `None` while it is being created.
    pub fn uid_of(&self, node: &str) -> Option<Option<&str>> {
        self.nodes.get(node).map(|node| node.uid.as_deref())
    }

    /// A node's pods have so many addresses of a block, as its agent is about to say.
    pub fn uses(&mut self, node: &str, cidr: IpNet, pods: i64) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.uses.insert(cidr, pods);
        }
    }

    /// Another leader begins.
    pub fn leads_anew(&mut self) {
        self.reuse.leads_anew();
    }

    /// All is as it should be ([`Self::unsettled`]): who came back has what it came for.
    pub fn at_rest(&mut self) {
        self.breaches.extend(self.reuse.at_rest());
        for node in self.nodes.values_mut() {
            node.owed.clear();
        }
    }

    /// Blocks of a pool that the leader takes for never used, and those that it has seen freed.
    pub fn free(&self, pool: &str) -> (usize, usize) {
        self.reuse.free(pool)
    }

    /// Something may have happened that nobody has seen.
    pub fn blind(&mut self, kind: &str) {
        let breach = format!("the watch of {kind} began anew: not every event was seen");
        self.breaches.push(breach);
    }

    /// A NodeSubnet changed.
    pub fn subnet(&mut self, change: &Change<'_, NodeSubnet>, at: Instant) {
        match change {
            Change::Is(subnet) => self.is(subnet, at),
            Change::Gone(subnet) => self.gone(subnet, at),
        }
    }

    fn is(&mut self, subnet: &NodeSubnet, at: Instant) {
        let mut new = Held {
            uid: subnet.uid(),
            cidr: subnet.spec.cidr,
            pool: subnet.spec.pool.clone(),
            node: subnet.spec.node.clone(),
            addresses: subnet.spec.node_addresses,
            orphaned: (subnet.spec.state == SubnetState::Orphaned).then_some(at),
        };
        let name = subnet.name_any();
        match self.subnets.get(&name) {
            None => {
                self.is_where_it_may(&new);
                self.given += 1;
                self.reuse.given(&new.pool, new.cidr);
            }
            Some(old) => {
                new.orphaned = new.orphaned.and(old.orphaned.or(new.orphaned));
                let fixed = |held: &Held| Held {
                    addresses: NodeAddresses::default(),
                    orphaned: None,
                    ..held.clone()
                };
                if fixed(old) != fixed(&new) {
                    let breach = format!("{name} was {old:?} and is {new:?}");
                    self.breaches.push(breach);
                }
            }
        }
        self.blocks.insert(new.cidr, name.clone());
        let own = self.subnets.values();
        let own = own.filter(|held| held.node == new.node && held.pool == new.pool);
        let others = own.filter(|held| held.cidr != new.cidr);
        self.most = self.most.max(others.count() + 1);
        self.subnets.insert(name, new);
    }

    /// Blocks that are disjoint and in order can only share addresses with their neighbours.
    fn is_where_it_may(&mut self, new: &Held) {
        let before = self.blocks.range(..=new.cidr).next_back();
        let after = self.blocks.range(new.cidr..).next();
        for (cidr, name) in before.into_iter().chain(after) {
            if cidr.contains(&new.cidr) || new.cidr.contains(cidr) {
                let owner = self.subnets.get(name).map_or("nobody", |held| &held.node);
                let breach = format!(
                    "{} of {} shares addresses with {cidr} of {owner}",
                    new.cidr, new.node
                );
                self.breaches.push(breach);
                break;
            }
        }
        let pool = self.rules.pools.get(&new.pool);
        if !pool.is_some_and(|pool| pool.contains(&new.cidr)) {
            let breach = format!("{} does not lie in its pool {}", new.cidr, new.pool);
            self.breaches.push(breach);
        }
    }

    fn gone(&mut self, subnet: &NodeSubnet, at: Instant) {
        let Some(held) = self.subnets.remove(&subnet.name_any()) else {
            return;
        };
        self.blocks.remove(&held.cidr);
        self.reuse.freed(&held.pool, held.cidr, at);
        if let Some(why) = self.why_not(&held, at) {
            let breach = format!("{} was taken from {}{why}", held.cidr, held.node);
            self.breaches.push(breach);
        }
    }

    /// What speaks against the deletion of a block; `None`: it was in order.
    fn why_not(&self, held: &Held, at: Instant) -> Option<String> {
        let Some(grace) = self.rules.grace else {
            return Some(String::new());
        };
        let node = self.nodes.get(&held.node);
        if node.is_some_and(|node| node.owed.contains(&held.cidr)) {
            return Some(", which had come back for it in time".to_owned());
        }
        if let Some(since) = held.orphaned {
            let kept = at.saturating_duration_since(since);
            return (kept + self.rules.lag < grace)
                .then(|| format!(", {kept:?} after it was orphaned"));
        }
        match node {
            Some(node) if node.uses.get(&held.cidr).is_some_and(|pods| *pods > 0) => {
                Some(", which has pods in it".to_owned())
            }
            Some(_) if self.lists(&held.node, &held.cidr) => {
                Some(", which may hand out from it".to_owned())
            }
            Some(_) => None,
            // It was on its way out when the Node went.
            None => {
                let left = self.left.get(&held.node);
                let just = left
                    .is_some_and(|left| at.saturating_duration_since(left.at) <= self.rules.lag);
                (!just).then(|| ", which is gone, without a grace".to_owned())
            }
        }
    }

    fn lists(&self, node: &str, cidr: &IpNet) -> bool {
        let network = self.networks.get(node);
        network.is_some_and(|network| network.subnets.contains(cidr))
    }

    /// A NodeNetwork changed.
    pub fn network(&mut self, change: &Change<'_, NodeNetwork>, _at: Instant) {
        let (name, now) = match change {
            Change::Is(network) => (network.name_any(), Some(Network::of(network))),
            Change::Gone(network) => (network.name_any(), None),
        };
        let before = self.networks.remove(&name).unwrap_or_default();
        let lost = before.subnets.iter().filter(|cidr| {
            let kept = now.as_ref().is_some_and(|now| now.subnets.contains(cidr));
            !kept && self.may_not_lose(&name, cidr, now.is_some())
        });
        let lost = lost.map(|cidr| format!("{name} may no longer use {cidr}"));
        self.breaches.extend(lost.collect::<Vec<_>>());
        if let Some(now) = now {
            self.networks.insert(name, now);
        }
    }

    /// Where things are taken back, a NodeNetwork goes with its Node; one that stays loses no block in which there are pods.
    fn may_not_lose(&self, node: &str, cidr: &IpNet, stays: bool) -> bool {
        let node = self.nodes.get(node);
        let pods = node.and_then(|node| node.uses.get(cidr)).copied();
        self.rules.grace.is_none() || (stays && pods.unwrap_or_default() > 0)
    }
}
