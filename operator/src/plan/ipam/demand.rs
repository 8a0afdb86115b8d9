//! Who wants a block, and of which pools.
//!
//! A node has one block of each family before any pod asks: of the pools for every namespace, or of any if there are none such. It
//! is what makes the first pod start at once, and holds the address that the node sends from into tunnels. Of every other pool
//! a node gets its first block when a pod that needs it has been turned away (`NodeNetwork.status.requests`): a pool for a few
//! pods does not spend a block on each node. A node on which no agent has ever spoken gets no further block once that has been so for
//! as long as a change waits for a node. Whoever has blocks and runs short of addresses gets more (`growth`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use netweft_crds::IpFamily;

use crate::plan::ipam::utilization::Growth;
use crate::plan::model::index::View;
use crate::plan::validate::ip_pool::Pool;

/// A block that a node is to get, of any of some pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The node.
    pub node: String,
    /// The pools it can be of, all of them open to this node.
    pub pools: BTreeSet<String>,
    /// What it is for.
    pub purpose: Purpose,
}

/// What a block is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The node has none of these pools; one of any of them is enough.
    First,
    /// Addresses run short, and pods will have none if there is no block.
    More,
    /// Addresses of one pool run short, and another serves the same pods.
    Spare,
}

/// What all nodes want, the most urgent first.
#[must_use]
pub fn wants(view: &View<'_>, growth: &Growth) -> Vec<Want> {
    let nodes = view.nodes.iter();
    let mut wants: Vec<Want> = nodes
        .flat_map(|(name, node)| Wanting::new(view, name, node, growth).all())
        .collect();
    // Stable: a node's own block comes before one for a pod that may do with it.
    wants.sort_by_key(|want| want.purpose);
    wants
}

/// One node, and the pools it may draw from.
struct Wanting<'a> {
    view: &'a View<'a>,
    node: &'a str,
    open: Vec<&'a Pool>,
    held: BTreeSet<&'a str>,
    short: BTreeSet<&'a str>,
}

impl<'a> Wanting<'a> {
    fn new(view: &'a View<'a>, name: &'a str, node: &'a Node, growth: &'a Growth) -> Self {
        let held = view.subnets.get(name).into_iter().flatten();
        let short = growth.short.iter();
        Self {
            view,
            node: name,
            open: open_pools(view, node),
            held: held.map(|subnet| subnet.spec.pool.as_str()).collect(),
            short: short
                .filter(|(_, nodes)| nodes.contains(name))
                .map(|(pool, _)| pool.as_str())
                .collect(),
        }
    }

    fn all(&self) -> Vec<Want> {
        let families = [IpFamily::Ipv4, IpFamily::Ipv6].into_iter();
        let mut wants: Vec<Want> = families.flat_map(|family| self.home(family)).collect();
        wants.extend(self.requested());
        let special = self.open.iter().filter(|pool| !pool.for_all_namespaces);
        let short = special.filter(|pool| self.runs_short(pool));
        wants.extend(short.map(|pool| self.want(&[*pool], Purpose::More)));
        wants
    }

    /// Of the pools that serve every pod.
    fn home(&self, family: IpFamily) -> Vec<Want> {
        let of_family = |pool: &&&Pool| pool.family() == family;
        let all: Vec<&Pool> = self.open.iter().filter(of_family).copied().collect();
        let general: Vec<&Pool> = all
            .iter()
            .filter(|pool| pool.for_all_namespaces)
            .copied()
            .collect();
        let held: Vec<&Pool> = general
            .iter()
            .filter(|pool| self.held.contains(pool.name.as_str()))
            .copied()
            .collect();
        if held.is_empty() {
            return self.first(family, if general.is_empty() { &all } else { &general });
        }
        if held.iter().all(|pool| self.runs_short(pool)) {
            return vec![self.want(&general, Purpose::More)];
        }
        let short = held.into_iter().filter(|pool| self.runs_short(pool));
        short
            .map(|pool| self.want(&[pool], Purpose::Spare))
            .collect()
    }

    fn first(&self, family: IpFamily, pools: &[&Pool]) -> Vec<Want> {
        let special = pools.iter().all(|pool| !pool.for_all_namespaces);
        if pools.is_empty() || special && self.holds_any(family) {
            return Vec::new();
        }
        vec![self.want(pools, Purpose::First)]
    }

    /// Whether the node has any block of the family, and so an address for tunnels.
    fn holds_any(&self, family: IpFamily) -> bool {
        let held = self.view.subnets.get(self.node).into_iter().flatten();
        let mut families = held.map(|subnet| IpFamily::of(subnet.spec.cidr.addr()));
        families.any(|held| held == family)
    }

    /// For pods that found no block of any pool they may have.
    fn requested(&self) -> Vec<Want> {
        let status = self.view.networks.get(self.node);
        let status = status.and_then(|network| network.status.as_ref());
        let requests = status.into_iter().flat_map(|status| &status.requests);
        let wants = requests.filter_map(|request| {
            let asked = |pool: &&&Pool| request.pools.contains(&pool.name);
            let pools: Vec<&Pool> = self.open.iter().filter(asked).copied().collect();
            let served = pools
                .iter()
                .any(|pool| self.held.contains(pool.name.as_str()));
            (!served && !pools.is_empty()).then(|| self.want(&pools, Purpose::First))
        });
        wants.collect()
    }

    fn runs_short(&self, pool: &Pool) -> bool {
        self.short.contains(pool.name.as_str())
    }

    fn want(&self, pools: &[&Pool], purpose: Purpose) -> Want {
        Want {
            node: self.node.to_owned(),
            pools: pools.iter().map(|pool| pool.name.clone()).collect(),
            purpose,
        }
    }
}

/// The pools of which the node can be given blocks now.
fn open_pools<'a>(view: &'a View<'a>, node: &'a Node) -> Vec<&'a Pool> {
    let pools = view.pools_of(node).filter(|pool| pool.open);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let reachable = pools.filter(|pool| {
        view.mode_of(&pool.name).is_some_and(|mode| {
            !view.lacks_agent(name, mode) && view.addresses(node, mode, pool.family()).is_some()
        })
    });
    reachable.collect()
}
