//! [`ClusterIndex`]: the cluster_state, checked and indexed; what the steps of a plan look things up in.

use netweft_crds::condition::{READY, is_true};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::core::SelectorExt;
use kube::{Resource, ResourceExt};
use netweft_crds::{AddressSelectors, IPPool, IpFamily, NodeAddresses, NodeNetwork, NodeSubnet};

use crate::plan::model::cluster_state::ClusterState;
use crate::plan::validate;
use crate::plan::validate::ip_pool::Pool;
use crate::plan::validate::kube_proxy::KubeProxy;
use crate::plan::validate::network_mode::Mode;
use crate::plan::validate::node_address::{Choice, Choices};
use crate::plan::validate::{Modes, Pools, oldest_first};

/// The cluster, checked and indexed.
#[derive(Debug)]
pub struct ClusterIndex<'a> {
    /// What it was made from.
    pub cluster_state: &'a ClusterState<'a>,
    /// Modes by name.
    pub modes: Modes,
    /// Pools by name.
    pub pools: Pools,
    /// Pools as they are written, by name.
    pub pool_objects: BTreeMap<&'a str, &'a IPPool>,
    /// Nodes that are netweft's, by name: those on which the agent is to run, and those that have a block.
    pub nodes: BTreeMap<&'a str, &'a Node>,
    /// Names of the other Nodes.
    pub without_agent: BTreeSet<&'a str>,
    /// NodeNetworks by name.
    pub networks: BTreeMap<&'a str, &'a NodeNetwork>,
    /// NodeSubnets by node, oldest first.
    pub subnets: BTreeMap<&'a str, Vec<&'a NodeSubnet>>,
    /// Pools that can be used or have blocks, by name.
    pub pools_in_use: BTreeSet<&'a str>,
    /// How kube-proxy tells pods' packets.
    pub kube_proxy: KubeProxy,
    /// How the addresses of nodes are chosen; `None` if no mode can be used.
    pub selectors: Option<AddressSelectors>,
    choices: Choices<'a>,
    outer_families: BTreeMap<String, IpFamily>,
}

impl<'a> ClusterIndex<'a> {
    /// Checks and indexes `cluster_state`.
    #[must_use]
    pub fn new(cluster_state: &'a ClusterState<'a>) -> Self {
        let modes = validate::modes(cluster_state);
        let pools = validate::pools(cluster_state, &modes);
        let mut subnets: BTreeMap<&str, Vec<&NodeSubnet>> = BTreeMap::new();
        for subnet in oldest_first(&cluster_state.subnets) {
            subnets.entry(&subnet.spec.node).or_default().push(subnet);
        }
        let networks = by_name(&cluster_state.networks);
        let (nodes, without_agent) = split(cluster_state, &subnets);
        // All modes that can be used choose alike (`validate`).
        let selectors = modes.values().flatten().next();
        let selectors = selectors.map(|mode| mode.address.clone());
        let choices = selectors
            .as_ref()
            .map(|selectors| Choices::new(cluster_state, &nodes, &networks, selectors));
        let choices = choices.unwrap_or_default();
        let families = Families {
            nodes: &nodes,
            choices: &choices,
            networks: &networks,
            cluster_state,
        };
        let outer_families = families.of_modes(&modes);
        let pool_objects = by_name(&cluster_state.pools);
        let held = cluster_state
            .subnets
            .iter()
            .map(|subnet| subnet.spec.pool.as_str());
        let usable = pool_objects.keys().copied();
        let usable = usable.filter(|name| pools.usable(name).is_some());
        Self {
            pools_in_use: held.chain(usable).collect(),
            cluster_state,
            selectors,
            choices,
            outer_families,
            modes,
            pools,
            pool_objects,
            nodes,
            without_agent,
            networks,
            subnets,
            kube_proxy: cluster_state
                .kube_proxy
                .map(KubeProxy::of)
                .unwrap_or_default(),
        }
    }

    /// The mode of a pool, if both can be used.
    #[must_use]
    pub fn mode_of(&self, pool: &str) -> Option<&Mode> {
        let pool = self.pools.usable(pool)?;
        self.modes.get(&pool.mode)?.as_ref().ok()
    }

    /// The modes that pools use, if both can be used.
    #[must_use]
    pub fn used_modes(&self) -> BTreeMap<&str, &Mode> {
        let pools = self.pools.all_usable();
        let modes = pools.filter_map(|pool| self.mode_of(&pool.name));
        modes.map(|mode| (mode.name.as_str(), mode)).collect()
    }

    /// Family of the addresses between which a mode's tunnels run.
    #[must_use]
    pub fn outer_family(&self, mode: &Mode) -> IpFamily {
        let found = self.outer_families.get(&mode.name);
        found.copied().unwrap_or_default()
    }

    /// The addresses that were chosen for a node.
    #[must_use]
    pub fn choice(&self, node: &str) -> Option<&Choice> {
        self.choices.of(node)
    }

    /// Whether the agent of a node has looked for the addresses that a mode selects.
    #[must_use]
    pub fn has_reported(&self, node: &str, mode: &Mode) -> bool {
        has_reported(self.networks.get(node).copied(), &mode.address)
    }

    /// Where the others send packets for `node` by `mode` to pods of family `inner`; `None` if the node has no address of
    /// the family it takes.
    #[must_use]
    pub fn addresses(&self, node: &Node, mode: &Mode, inner: IpFamily) -> Option<NodeAddresses> {
        let addresses = self.choice(node.metadata.name.as_deref()?)?.addresses;
        let family = mode.node_family(inner, self.outer_family(mode));
        addresses.of(family).map(|_| addresses)
    }

    /// Whether `node` states an address that pods of any family can be reached at by `mode`.
    #[must_use]
    pub fn any_addresses(&self, node: &Node, mode: &Mode) -> Option<NodeAddresses> {
        let of_family = |family| self.addresses(node, mode, family);
        of_family(IpFamily::Ipv4).or_else(|| of_family(IpFamily::Ipv6))
    }

    /// The addresses that `node` speaks from; if it states none, the last known ones that no other node uses: they may carry traffic.
    #[must_use]
    pub fn own_addresses(&self, node: &Node) -> NodeAddresses {
        let mut modes = self.used_modes().into_values();
        let stated = modes.find_map(|mode| self.any_addresses(node, mode));
        let last = || {
            let name = node.metadata.name.as_deref()?;
            let network = self.networks.get(name)?;
            Some(self.choices.not_of_others(name, network.spec.addresses))
        };
        stated.or_else(last).unwrap_or_default()
    }

    /// The pools that can be used and are for this node, whether or not it can be given a block now.
    pub fn pools_of<'v>(&'v self, node: &'v Node) -> impl Iterator<Item = &'v Pool> {
        let pools = self.pools.all_usable();
        pools.filter(|pool| pool.nodes.matches(node.labels()))
    }

    /// Why a change of `mode` does not wait for `node`, if it does not.
    #[must_use]
    pub fn absence(&self, node: &str, mode: &Mode) -> Option<Absence> {
        let deadline: Duration = mode.rollout.progress_deadline.into();
        let is_over = |time: Option<&Duration>| time.is_some_and(|time| *time >= deadline);
        if is_over(self.cluster_state.not_ready.get(node)) {
            return Some(Absence::NotReady);
        }
        is_over(self.cluster_state.silent.get(node)).then_some(Absence::Silent)
    }

    /// Whether an agent of `node` has ever acknowledged anything.
    #[must_use]
    pub fn has_spoken(&self, node: &str) -> bool {
        let network = self.networks.get(node);
        let status = network.and_then(|network| network.status.as_ref());
        status.is_some_and(|status| status.observed_generation.is_some())
    }

    /// Whether the node most likely has no agent: none has ever spoken, for as long as a change of `mode` waits for one.
    #[must_use]
    pub fn lacks_agent(&self, node: &str, mode: &Mode) -> bool {
        let silent = self.cluster_state.silent.get(node);
        let silent = silent.is_some_and(|time| *time >= mode.rollout.progress_deadline.into());
        silent && !self.has_spoken(node)
    }

    /// Whether the pool is being deleted, or is not there any more.
    #[must_use]
    pub fn pool_is_going(&self, name: &str) -> bool {
        match self.pool_objects.get(name) {
            Some(pool) => pool.meta().deletion_timestamp.is_some(),
            // One that exists but cannot be read is known by name only, and is not going.
            None => !self.pools.by_name.contains_key(name),
        }
    }
}

/// Why a node is not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Its Node has not been Ready for too long.
    NotReady,
    /// Its agent has not acknowledged the NodeNetwork for too long, or there is no agent.
    Silent,
}

/// The Nodes that are netweft's, and the names of the others. A Node with a block stays netweft's whatever its labels: its pods may
/// have addresses of the block.
fn split<'a>(
    cluster_state: &ClusterState<'a>,
    subnets: &BTreeMap<&str, Vec<&NodeSubnet>>,
) -> (BTreeMap<&'a str, &'a Node>, BTreeSet<&'a str>) {
    let mut nodes = by_name(&cluster_state.nodes);
    let mut others = BTreeSet::new();
    nodes.retain(|name, node| {
        let ours = cluster_state.agent_nodes.matches(node.labels()) || subnets.contains_key(name);
        if !ours {
            others.insert(*name);
        }
        ours
    });
    (nodes, others)
}

fn by_name<'a, K: Resource>(objects: &[&'a K]) -> BTreeMap<&'a str, &'a K> {
    let named = objects.iter().copied();
    named
        .filter_map(|object| Some((object.meta().name.as_deref()?, object)))
        .collect()
}

/// What the families of tunnels are chosen by.
struct Families<'v, 'a> {
    nodes: &'v BTreeMap<&'a str, &'a Node>,
    choices: &'v Choices<'a>,
    networks: &'v BTreeMap<&'a str, &'a NodeNetwork>,
    cluster_state: &'v ClusterState<'a>,
}

impl Families<'_, '_> {
    /// The family of each mode's tunnels, as far as there is one.
    fn of_modes(&self, modes: &Modes) -> BTreeMap<String, IpFamily> {
        let nodes: Vec<&Node> = self.nodes.values().copied().collect();
        let nodes = oldest_first(&nodes);
        let modes = modes.values().flatten();
        modes
            .filter_map(|mode| Some((mode.name.clone(), self.of_mode(mode, &nodes)?)))
            .collect()
    }

    /// That of the addresses which the mode selects, if it selects those of one family only. Else the family in use, as long as a
    /// Node has an address of it: a link has tunnels of one family, so that all nodes change at once (`change`), and a Node that goes
    /// must not make them. Else IPv4 where the oldest Node that has an address has one of it, else IPv6: so one odd Node does not
    /// choose for the whole cluster. While no Node has any, it stays what it was.
    fn of_mode(&self, mode: &Mode, nodes: &[&Node]) -> Option<IpFamily> {
        if !mode.carries(IpFamily::Ipv6) {
            return Some(IpFamily::Ipv4);
        }
        let in_use = families_in_use(mode, self.networks);
        let selected = mode.address.only_family();
        let selected = selected.filter(|family| self.can_be_taken(mode, *family, &in_use));
        let has = |node: &Node, family| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let addresses = last_addresses(name, &mode.address, self.choices, self.networks);
            addresses.of(family).is_some()
        };
        let still = || {
            let mut still = in_use.iter().copied();
            still.find(|family| nodes.iter().any(|node| has(node, *family)))
        };
        let by_age = || {
            let mut chosen = nodes.iter().filter_map(|node| {
                let choice = self.choices.of(node.metadata.name.as_deref()?)?;
                choice.addresses.iter().next()
            });
            chosen.next().map(IpFamily::of)
        };
        selected
            .or_else(still)
            .or_else(by_age)
            .or(in_use.first().copied())
    }

    /// Whether tunnels can run between addresses of a family that a mode selects: a Node has one, and, where tunnels have another
    /// family so far, no agent is still to report its own. A change before that would cut such nodes off.
    fn can_be_taken(&self, mode: &Mode, family: IpFamily, in_use: &[IpFamily]) -> bool {
        let has = |name: &&str| {
            let choice = self.choices.of(name);
            choice.is_some_and(|choice| choice.addresses.of(family).is_some())
        };
        let deadline: Duration = mode.rollout.progress_deadline.into();
        let is_awaited = |name: &&str| {
            let silent = self.cluster_state.silent.get(*name);
            let present = !self.cluster_state.not_ready.contains_key(*name)
                && silent.is_none_or(|time| *time < deadline);
            let network = self.networks.get(name).copied();
            present && !has(name) && !has_reported(network, &mode.address)
        };
        let free = in_use.is_empty() || in_use.contains(&family);
        self.nodes.keys().any(has) && (free || !self.nodes.keys().any(is_awaited))
    }
}

/// Whether the agent of a node has looked for what `selectors` ask for.
fn has_reported(network: Option<&NodeNetwork>, selectors: &AddressSelectors) -> bool {
    network.is_some_and(|network| {
        let status = network.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        let asked = network.spec.address_selectors.clone().unwrap_or_default();
        asked == *selectors && observed == network.metadata.generation && observed.is_some()
    })
}

/// The families that nodes are told for a mode, that of most first; more than one is half a change.
fn families_in_use(mode: &Mode, networks: &BTreeMap<&str, &NodeNetwork>) -> Vec<IpFamily> {
    let datapaths = networks.values().flat_map(|network| &network.spec.modes);
    let datapaths: Vec<_> = datapaths
        .filter(|datapath| datapath.name == mode.name)
        .collect();
    let count = |family: &IpFamily| {
        datapaths
            .iter()
            .filter(|datapath| datapath.outer_family == *family)
            .count()
    };
    let mut families = vec![IpFamily::Ipv4, IpFamily::Ipv6];
    families.retain(|family| count(family) > 0);
    families.sort_by_key(|family| Reverse(count(family)));
    families
}

/// The addresses that were chosen for a node; where none could be, the last known ones that `selectors` could choose.
fn last_addresses(
    name: &str,
    selectors: &AddressSelectors,
    choices: &Choices<'_>,
    networks: &BTreeMap<&str, &NodeNetwork>,
) -> NodeAddresses {
    let chosen = choices.of(name).map(|choice| choice.addresses);
    if let Some(chosen) = chosen.filter(|it| *it != NodeAddresses::default()) {
        return chosen;
    }
    let last = networks.get(name).map(|network| network.spec.addresses);
    let last = choices.not_of_others(name, last.unwrap_or_default());
    NodeAddresses {
        ipv4: last
            .ipv4
            .filter(|address| selectors.may_take((*address).into())),
        ipv6: last
            .ipv6
            .filter(|address| selectors.may_take((*address).into())),
    }
}

/// Whether the node's agent reports that the kernel matches the current spec.
pub fn acknowledged(network: &NodeNetwork) -> bool {
    network.status.as_ref().is_some_and(|status| {
        status.observed_generation == network.metadata.generation
            && is_true(&status.conditions, READY)
    })
}
