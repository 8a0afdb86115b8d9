//! Which of the addresses of a Node the others send to.
//!
//! ```text
//!   Node.status.addresses (kubelet) ─┐
//!   NodeNetwork.status.addresses ────┴▶ those that spec.nodeAddress selects ─▶ the one in use, else the first ─▶ one node for each address
//!   (agent)
//! ```
//!
//! A node keeps the address in use as long as it is a candidate, whatever the order: a change costs every tunnel to the node.
//! Kubelet's addresses come before those that an agent reports. An agent's report is not trusted: a reported address must not be
//! stated by another Node, nor be inside a range of Services.
//! A wrong address is that node's fault alone: it is left out and named, and neither a pool nor a NetworkMode suffers for it.

use crate::plan::model::node::stated;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use netweft_crds::{
    AddressSelectors, FoundAddress, IpFamily, MAX_FOUND, NodeAddresses, NodeNetwork,
    is_beyond_the_link,
};

use crate::plan::model::cluster_state::ClusterState;
use crate::plan::validate::age_key;
use crate::plan::validate::cluster_ranges;

/// The addresses of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Choices<'a> {
    by_node: BTreeMap<&'a str, Choice>,
    /// The one node that uses each address.
    holders: BTreeMap<IpAddr, &'a str>,
}

/// The addresses of one node.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Those that are used.
    pub addresses: NodeAddresses,
    /// Those that could have been and are not, and why.
    pub refused: Vec<(IpAddr, Fault)>,
    /// Other Nodes that state an address of `addresses`.
    pub twins: Vec<(IpAddr, String)>,
}

/// Why an address is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node of this name uses it.
    UsedBy(String),
    /// Another Node, of this name, states it, and the node's own does not.
    StatedBy(String),
    /// It is inside the range of the IPPool of this name.
    InPool(String),
    /// It is inside this range of Services.
    InServices(String),
    /// No other node can send to it: loopback, link-local, multicast or unspecified.
    Unreachable,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsedBy(node) => write!(f, "is the address of Node {node}"),
            Self::StatedBy(node) => write!(f, "is in status.addresses of Node {node}"),
            Self::InPool(pool) => write!(f, "is inside spec.cidr of IPPool {pool}"),
            Self::InServices(range) => write!(f, "is inside the Service range {range}"),
            Self::Unreachable => f.write_str("is not an address that other nodes can reach"),
        }
    }
}

/// A node in the order of its rights to an address.
struct Claimant<'a> {
    name: &'a str,
    node: &'a Node,
    candidates: Vec<Candidate>,
    /// The addresses in use, as far as they are candidates.
    kept: NodeAddresses,
}

/// An address that a node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    address: IpAddr,
    /// Whether the node's own Node states it.
    stated: bool,
}

/// Whose each address is besides: what candidates are checked against.
struct Claims<'a> {
    /// Ranges and names of pools.
    pools: Vec<(IpNet, &'a str)>,
    /// Ranges of Services, and the words for them.
    services: Vec<(IpNet, String)>,
    /// Nodes by the addresses that they state.
    stated: BTreeMap<IpAddr, &'a str>,
}

impl<'a> Choices<'a> {
    /// Chooses for all of `nodes`. Of Nodes that have the same address, one that is Ready has it before one that is not (a machine
    /// with a new name leaves its old Node behind), then the one that uses it already, then the older.
    #[must_use]
    pub fn new(
        cluster_state: &'a ClusterState<'_>,
        nodes: &BTreeMap<&'a str, &'a Node>,
        networks: &BTreeMap<&str, &NodeNetwork>,
        selectors: &AddressSelectors,
    ) -> Self {
        let claims = Claims::new(cluster_state, selectors);
        let mut claimants: Vec<Claimant<'a>> = nodes
            .iter()
            .map(|(name, node)| Claimant::new(name, node, networks.get(name).copied(), selectors))
            .collect();
        claimants.sort_by_cached_key(|it| {
            let absent = cluster_state.not_ready.contains_key(it.name);
            (
                absent,
                it.kept == NodeAddresses::default(),
                age_key(it.node),
            )
        });
        let mut choices = Self::default();
        for claimant in &claimants {
            choices.choose(claimant, &claims);
        }
        choices
    }

    /// What was chosen for a node.
    #[must_use]
    pub fn of(&self, node: &str) -> Option<&Choice> {
        self.by_node.get(node)
    }

    /// `addresses` without those that another node than `node` uses.
    #[must_use]
    pub fn not_of_others(&self, node: &str, addresses: NodeAddresses) -> NodeAddresses {
        let free = |address: IpAddr| self.holders.get(&address).is_none_or(|it| *it == node);
        NodeAddresses {
            ipv4: addresses.ipv4.filter(|address| free((*address).into())),
            ipv6: addresses.ipv6.filter(|address| free((*address).into())),
        }
    }

    fn choose(&mut self, claimant: &Claimant<'a>, claims: &Claims<'a>) {
        let mut choice = Choice::default();
        for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
            let kept = claimant.kept.of(family);
            let candidates = claimant.candidates.iter();
            let candidates = candidates.filter(|it| IpFamily::of(it.address) == family);
            let (in_use, others): (Vec<&Candidate>, Vec<&Candidate>) =
                candidates.partition(|it| Some(it.address) == kept);
            for candidate in in_use.into_iter().chain(others) {
                match self.fault(*candidate, kept, claims) {
                    Some(fault) => choice.refuse(candidate.address, fault),
                    None => {
                        choice.take(candidate.address);
                        self.holders.insert(candidate.address, claimant.name);
                        break;
                    }
                }
            }
        }
        for (address, fault) in &choice.refused {
            if let Fault::UsedBy(holder) = fault
                && let Some(holder) = self.by_node.get_mut(holder.as_str())
            {
                holder.twins.push((*address, claimant.name.to_owned()));
            }
        }
        self.by_node.insert(claimant.name, choice);
    }

    fn fault(
        &self,
        Candidate { address, stated }: Candidate,
        kept: Option<IpAddr>,
        claims: &Claims<'a>,
    ) -> Option<Fault> {
        if let Some(holder) = self.holders.get(&address) {
            return Some(Fault::UsedBy((*holder).to_owned()));
        }
        // What kubelet states has precedence over what an agent reports, also of an address in use.
        if !stated && let Some(node) = claims.stated.get(&address) {
            return Some(Fault::StatedBy((*node).to_owned()));
        }
        // A pool that was created over an address in use is at fault itself (`claims`).
        if Some(address) == kept {
            return None;
        }
        if !is_beyond_the_link(address) {
            return Some(Fault::Unreachable);
        }
        let mut pools = claims.pools.iter();
        if let Some((_, pool)) = pools.find(|(range, _)| range.contains(&address)) {
            return Some(Fault::InPool((*pool).to_owned()));
        }
        let mut services = claims.services.iter().filter(|_| !stated);
        let services = services.find(|(range, _)| range.contains(&address));
        services.map(|(_, words)| Fault::InServices(words.clone()))
    }
}

impl<'a> Claimant<'a> {
    fn new(
        name: &'a str,
        node: &'a Node,
        network: Option<&NodeNetwork>,
        selectors: &AddressSelectors,
    ) -> Self {
        let candidates = candidates(node, network, selectors);
        let used = network.map_or_else(NodeAddresses::default, |it| it.spec.addresses);
        let still = |address: IpAddr| candidates.iter().any(|it| it.address == address);
        let kept = NodeAddresses {
            ipv4: used.ipv4.filter(|address| still((*address).into())),
            ipv6: used.ipv6.filter(|address| still((*address).into())),
        };
        Self {
            name,
            node,
            candidates,
            kept,
        }
    }
}

impl<'a> Claims<'a> {
    fn new(cluster_state: &'a ClusterState<'_>, selectors: &AddressSelectors) -> Self {
        let reports = *selectors != AddressSelectors::default();
        let nodes = cluster_state.nodes.iter().copied().filter(|_| reports);
        let stated = nodes.flat_map(|node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            stated(node, cluster_ranges::TYPES).map(move |address| (address, name))
        });
        Self {
            pools: cluster_ranges::ranges_of_pods(cluster_state),
            services: cluster_ranges::ranges_of_services(cluster_state),
            stated: stated.collect(),
        }
    }
}

impl Choice {
    fn take(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.addresses.ipv4 = Some(address),
            IpAddr::V6(address) => self.addresses.ipv6 = Some(address),
        }
    }

    fn refuse(&mut self, address: IpAddr, fault: Fault) {
        if !self.refused.iter().any(|(known, _)| *known == address) {
            self.refused.push((address, fault));
        }
    }
}

/// The addresses that `selectors` select, the preferred first: kubelet's, then those that the agent reports.
fn candidates(
    node: &Node,
    network: Option<&NodeNetwork>,
    selectors: &AddressSelectors,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut add = |address, stated| {
        if !candidates
            .iter()
            .any(|it: &Candidate| it.address == address)
        {
            candidates.push(Candidate { address, stated });
        }
    };
    for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
        let of_family = |address: &IpAddr| IpFamily::of(*address) == family;
        let Some(selector) = selectors.of(family) else {
            let own = stated(node, &["InternalIP"]).filter(of_family);
            own.for_each(|address| add(address, true));
            continue;
        };
        if let Some(range) = selector.cidr {
            let own = stated(node, cluster_ranges::TYPES).filter(of_family);
            own.filter(|address| range.contains(address))
                .for_each(|address| add(address, true));
        }
        let found = reported(network).filter(|found| of_family(&found.address));
        for FoundAddress { address, .. } in found.filter(|found| selector.takes(found)) {
            let mut own = stated(node, cluster_ranges::TYPES);
            add(*address, own.any(|it| it == *address));
        }
    }
    candidates
}

/// The addresses that the node's agent has found.
fn reported(network: Option<&NodeNetwork>) -> impl Iterator<Item = &FoundAddress> {
    let status = network.and_then(|network| network.status.as_ref());
    let found = status.map_or(&[][..], |status| &status.addresses);
    found.iter().take(MAX_FOUND)
}
