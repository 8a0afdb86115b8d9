//! [`ClusterIndex`]: the cluster state, validated and indexed. The steps of a plan look up objects in it.

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
use crate::plan::validate::node_address::{AddressChoice, AddressChoices};
use crate::plan::validate::{Modes, Pools, oldest_first};

/// The cluster state, validated and indexed.
#[derive(Debug)]
pub struct ClusterIndex<'a> {
    /// The source of the index.
    pub cluster_state: &'a ClusterState<'a>,
    /// Modes by name.
    pub modes: Modes,
    /// Pools by name.
    pub pools: Pools,
    /// IPPools as written by users, by name.
    pub pool_objects: BTreeMap<&'a str, &'a IPPool>,
    /// Nodes of netweft by name: the agent runs on them, or they have a block.
    pub nodes: BTreeMap<&'a str, &'a Node>,
    /// Names of the other Nodes.
    pub without_agent: BTreeSet<&'a str>,
    /// NodeNetworks by name.
    pub networks: BTreeMap<&'a str, &'a NodeNetwork>,
    /// NodeSubnets by node, oldest first.
    pub subnets: BTreeMap<&'a str, Vec<&'a NodeSubnet>>,
    /// Names of the pools that are usable or have blocks.
    pub pools_in_use: BTreeSet<&'a str>,
    /// How kube-proxy detects packets of pods.
    pub kube_proxy: KubeProxy,
    /// The selectors of node addresses; `None` if no mode is usable.
    pub selectors: Option<AddressSelectors>,
    choices: AddressChoices<'a>,
    outer_families: BTreeMap<String, IpFamily>,
}

impl<'a> ClusterIndex<'a> {
    /// Validates and indexes `cluster_state`.
    #[must_use]
    pub fn new(cluster_state: &'a ClusterState<'a>) -> Self {
        let modes = validate::modes(cluster_state);
        let pools = validate::pools(cluster_state, &modes);
        let mut subnets: BTreeMap<&str, Vec<&NodeSubnet>> = BTreeMap::new();
        for subnet in oldest_first(&cluster_state.subnets) {
            subnets.entry(&subnet.spec.node).or_default().push(subnet);
        }
        let networks = by_name(&cluster_state.networks);
        let (nodes, without_agent) = split_by_agent(cluster_state, &subnets);
        // All usable modes have the same selectors (`validate`).
        let selectors = modes.values().flatten().next();
        let selectors = selectors.map(|mode| mode.address.clone());
        let choices = selectors
            .as_ref()
            .map(|selectors| AddressChoices::new(cluster_state, &nodes, &networks, selectors));
        let choices = choices.unwrap_or_default();
        let families = Families {
            nodes: &nodes,
            choices: &choices,
            networks: &networks,
            cluster_state,
        };
        let outer_families = families.of_modes(&modes);
        let pool_objects = by_name(&cluster_state.pools);
        let with_blocks = cluster_state
            .subnets
            .iter()
            .map(|subnet| subnet.spec.pool.as_str());
        let usable = pool_objects.keys().copied();
        let usable = usable.filter(|name| pools.usable(name).is_some());
        Self {
            pools_in_use: with_blocks.chain(usable).collect(),
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

    /// The mode of a pool, if both are usable.
    #[must_use]
    pub fn mode_of(&self, pool: &str) -> Option<&Mode> {
        let pool = self.pools.usable(pool)?;
        self.modes.get(&pool.mode)?.as_ref().ok()
    }

    /// The usable modes that usable pools refer to.
    #[must_use]
    pub fn used_modes(&self) -> BTreeMap<&str, &Mode> {
        let pools = self.pools.all_usable();
        let modes = pools.filter_map(|pool| self.mode_of(&pool.name));
        modes.map(|mode| (mode.name.as_str(), mode)).collect()
    }

    /// Address family of a mode's tunnels.
    #[must_use]
    pub fn outer_family(&self, mode: &Mode) -> IpFamily {
        let found = self.outer_families.get(&mode.name);
        found.copied().unwrap_or_default()
    }

    /// The addresses chosen for a node.
    #[must_use]
    pub fn choice(&self, node: &str) -> Option<&AddressChoice> {
        self.choices.of(node)
    }

    /// Whether the agent of a node has reported the addresses that a mode selects.
    #[must_use]
    pub fn has_reported(&self, node: &str, mode: &Mode) -> bool {
        has_reported(self.networks.get(node).copied(), &mode.address)
    }

    /// The node's addresses to which other nodes send packets for pods of family `inner`; `None` if the node has no
    /// address of the needed family.
    #[must_use]
    pub fn addresses(&self, node: &Node, mode: &Mode, inner: IpFamily) -> Option<NodeAddresses> {
        let addresses = self.choice(node.metadata.name.as_deref()?)?.addresses;
        let family = mode.node_family(inner, self.outer_family(mode));
        addresses.of(family).map(|_| addresses)
    }

    /// The node's addresses, if pods of any family are reachable there by `mode`.
    #[must_use]
    pub fn any_addresses(&self, node: &Node, mode: &Mode) -> Option<NodeAddresses> {
        let of_family = |family| self.addresses(node, mode, family);
        of_family(IpFamily::Ipv4).or_else(|| of_family(IpFamily::Ipv6))
    }

    /// The addresses of `node`. If the Node reports none, the last addresses that no other node uses: they may carry
    /// traffic.
    #[must_use]
    pub fn own_addresses(&self, node: &Node) -> NodeAddresses {
        let mut modes = self.used_modes().into_values();
        let current_addresses = modes.find_map(|mode| self.any_addresses(node, mode));
        let last = || {
            let name = node.metadata.name.as_deref()?;
            let network = self.networks.get(name)?;
            Some(
                self.choices
                    .without_those_of_others(name, network.spec.addresses),
            )
        };
        current_addresses.or_else(last).unwrap_or_default()
    }

    /// The usable pools that select this node, whether or not a block can be assigned now.
    pub fn pools_of<'v>(&'v self, node: &'v Node) -> impl Iterator<Item = &'v Pool> {
        let pools = self.pools.all_usable();
        pools.filter(|pool| pool.nodes.matches(node.labels()))
    }

    /// Why a rollout of `mode` does not wait for `node`; `None`: it waits.
    #[must_use]
    pub fn absence(&self, node: &str, mode: &Mode) -> Option<Absence> {
        let deadline: Duration = mode.rollout.progress_deadline.into();
        let is_over = |time: Option<&Duration>| time.is_some_and(|time| *time >= deadline);
        if is_over(self.cluster_state.not_ready.get(node)) {
            return Some(Absence::NotReady);
        }
        is_over(self.cluster_state.unacknowledged.get(node)).then_some(Absence::NotAcknowledging)
    }

    /// Whether an agent of `node` has ever acknowledged its NodeNetwork.
    #[must_use]
    pub fn has_ever_reported(&self, node: &str) -> bool {
        let network = self.networks.get(node);
        let status = network.and_then(|network| network.status.as_ref());
        status.is_some_and(|status| status.observed_generation.is_some())
    }

    /// Whether the node probably has no agent: no acknowledgement ever, for longer than the progress deadline of
    /// `mode`.
    #[must_use]
    pub fn lacks_agent(&self, node: &str, mode: &Mode) -> bool {
        let unacknowledged = self.cluster_state.unacknowledged.get(node);
        let unacknowledged =
            unacknowledged.is_some_and(|time| *time >= mode.rollout.progress_deadline.into());
        unacknowledged && !self.has_ever_reported(node)
    }

    /// Whether the pool is being deleted, or does not exist.
    #[must_use]
    pub fn is_pool_deleted(&self, name: &str) -> bool {
        match self.pool_objects.get(name) {
            Some(pool) => pool.meta().deletion_timestamp.is_some(),
            // An unreadable pool exists, so it is only in `by_name`.
            None => !self.pools.by_name.contains_key(name),
        }
    }
}

/// Why a rollout does not wait for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The Node has not been Ready for longer than the progress deadline.
    NotReady,
    /// The agent has not acknowledged the NodeNetwork for longer than the progress deadline, or there is no agent.
    NotAcknowledging,
}

/// The Nodes of netweft, and the names of the other Nodes. A Node with a block belongs to netweft whatever its labels:
/// its pods may have addresses of the block.
fn split_by_agent<'a>(
    cluster_state: &ClusterState<'a>,
    subnets: &BTreeMap<&str, Vec<&NodeSubnet>>,
) -> (BTreeMap<&'a str, &'a Node>, BTreeSet<&'a str>) {
    let mut nodes = by_name(&cluster_state.nodes);
    let mut others = BTreeSet::new();
    nodes.retain(|name, node| {
        let has_agent =
            cluster_state.agent_nodes.matches(node.labels()) || subnets.contains_key(name);
        if !has_agent {
            others.insert(*name);
        }
        has_agent
    });
    (nodes, others)
}

fn by_name<'a, K: Resource>(objects: &[&'a K]) -> BTreeMap<&'a str, &'a K> {
    let named = objects.iter().copied();
    named
        .filter_map(|object| Some((object.meta().name.as_deref()?, object)))
        .collect()
}

/// The inputs for the choice of the tunnels' address families.
struct Families<'v, 'a> {
    nodes: &'v BTreeMap<&'a str, &'a Node>,
    choices: &'v AddressChoices<'a>,
    networks: &'v BTreeMap<&'a str, &'a NodeNetwork>,
    cluster_state: &'v ClusterState<'a>,
}

impl Families<'_, '_> {
    /// The address family of each mode's tunnels, if any.
    fn of_modes(&self, modes: &Modes) -> BTreeMap<String, IpFamily> {
        let nodes: Vec<&Node> = self.nodes.values().copied().collect();
        let nodes = oldest_first(&nodes);
        let modes = modes.values().flatten();
        modes
            .filter_map(|mode| Some((mode.name.clone(), self.of_mode(mode, &nodes)?)))
            .collect()
    }

    /// The address family of a mode's tunnels:
    /// 1. the family that the mode selects, if it selects only one;
    /// 2. the family in use, while a Node has an address of it. A link has tunnels of one family, so all nodes must
    ///    change together (`rollout`), and a removed Node must not cause that;
    /// 3. the family of the oldest Node with an address, so that one unusual Node does not decide for the cluster;
    /// 4. the family in use, while no Node has an address.
    fn of_mode(&self, mode: &Mode, nodes: &[&Node]) -> Option<IpFamily> {
        if !mode.carries(IpFamily::Ipv6) {
            return Some(IpFamily::Ipv4);
        }
        let in_use = families_in_use(mode, self.networks);
        let selected = mode.address.only_family();
        let selected = selected.filter(|family| self.can_use(mode, *family, &in_use));
        let has = |node: &Node, family| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let addresses =
                chosen_or_last_addresses(name, &mode.address, self.choices, self.networks);
            addresses.of(family).is_some()
        };
        let still_in_use = || {
            let mut still_in_use = in_use.iter().copied();
            still_in_use.find(|family| nodes.iter().any(|node| has(node, *family)))
        };
        let by_age = || {
            let mut chosen = nodes.iter().filter_map(|node| {
                let choice = self.choices.of(node.metadata.name.as_deref()?)?;
                choice.addresses.iter().next()
            });
            chosen.next().map(IpFamily::of)
        };
        selected
            .or_else(still_in_use)
            .or_else(by_age)
            .or(in_use.first().copied())
    }

    /// Whether tunnels can use the family that a mode selects: a Node has an address of it and, if tunnels use another
    /// family now, all agents have reported. An earlier change would disconnect the other nodes.
    fn can_use(&self, mode: &Mode, family: IpFamily, in_use: &[IpFamily]) -> bool {
        let has = |name: &&str| {
            let choice = self.choices.of(name);
            choice.is_some_and(|choice| choice.addresses.of(family).is_some())
        };
        let deadline: Duration = mode.rollout.progress_deadline.into();
        let is_missing = |name: &&str| {
            let unacknowledged = self.cluster_state.unacknowledged.get(*name);
            let present = !self.cluster_state.not_ready.contains_key(*name)
                && unacknowledged.is_none_or(|time| *time < deadline);
            let network = self.networks.get(name).copied();
            present && !has(name) && !has_reported(network, &mode.address)
        };
        let is_unchanged = in_use.is_empty() || in_use.contains(&family);
        self.nodes.keys().any(has) && (is_unchanged || !self.nodes.keys().any(is_missing))
    }
}

/// Whether the agent of a node has reported the addresses of `selectors`.
fn has_reported(network: Option<&NodeNetwork>, selectors: &AddressSelectors) -> bool {
    network.is_some_and(|network| {
        let status = network.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        let requested = network.spec.address_selectors.clone().unwrap_or_default();
        requested == *selectors && observed == network.metadata.generation && observed.is_some()
    })
}

/// The address families in the NodeNetworks for a mode, the most frequent first. Two families: a change is in progress.
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
    let mut families = IpFamily::ALL.to_vec();
    families.retain(|family| count(family) > 0);
    families.sort_by_key(|family| Reverse(count(family)));
    families
}

/// The addresses chosen for a node; without a choice, the last addresses that `selectors` could select.
fn chosen_or_last_addresses(
    name: &str,
    selectors: &AddressSelectors,
    choices: &AddressChoices<'_>,
    networks: &BTreeMap<&str, &NodeNetwork>,
) -> NodeAddresses {
    let chosen = choices.of(name).map(|choice| choice.addresses);
    if let Some(chosen) = chosen.filter(|it| *it != NodeAddresses::default()) {
        return chosen;
    }
    let last = networks.get(name).map(|network| network.spec.addresses);
    let last = choices.without_those_of_others(name, last.unwrap_or_default());
    NodeAddresses {
        ipv4: last
            .ipv4
            .filter(|address| selectors.may_match((*address).into())),
        ipv6: last
            .ipv6
            .filter(|address| selectors.may_match((*address).into())),
    }
}

/// Whether the node's agent reports that the kernel matches the current spec.
pub fn acknowledged(network: &NodeNetwork) -> bool {
    network.status.as_ref().is_some_and(|status| {
        status.observed_generation == network.metadata.generation
            && is_true(&status.conditions, READY)
    })
}
