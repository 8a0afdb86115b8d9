//! The choice of the node addresses that peers send to.
//!
//! ```text
//!   Node.status.addresses (kubelet) ──────┐
//!   NodeNetwork.status.addresses (agent) ─┴▶ spec.nodeAddress selects candidates ─▶ address in use, else the first
//!                                            ─▶ one node for each address
//! ```
//!
//! A node keeps the address in use while it is a candidate, whatever the order: a change affects every tunnel to the
//! node. Addresses that kubelet reports come before those that an agent reports. Reports of agents are not trusted:
//! such an address must neither be reported by another Node nor be inside a range of Services. An invalid address
//! affects only its own node. It is not used, and a message names it. Pools and NetworkModes are not affected.

use crate::plan::model::node::status_addresses;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use netweft_crds::{
    AddressSelectors, FoundAddress, IpFamily, MAX_FOUND, NodeAddresses, NodeNetwork, is_routable,
};

use crate::plan::model::cluster_state::ClusterState;
use crate::plan::validate::age_key;
use crate::plan::validate::cluster_ranges;

/// The addresses of all nodes.
#[derive(Clone, Debug, Default)]
pub struct AddressChoices<'a> {
    by_node: BTreeMap<&'a str, AddressChoice>,
    /// The node that uses each address.
    holders: BTreeMap<IpAddr, &'a str>,
}

/// The addresses of one node.
#[derive(Clone, Debug, Default)]
pub struct AddressChoice {
    /// The addresses in use.
    pub addresses: NodeAddresses,
    /// Candidates that are not used, and why.
    pub refused: Vec<(IpAddr, Fault)>,
    /// Other Nodes that report an address of `addresses`.
    pub shared_with: Vec<(IpAddr, String)>,
}

/// Why an address is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node with this name uses it.
    UsedBy(String),
    /// Only another Node, with this name, reports it.
    ReportedBy(String),
    /// It is inside the CIDR of the IPPool with this name.
    InPool(String),
    /// It is inside this range of Services.
    InServices(String),
    /// Other nodes cannot send to it: loopback, link-local, multicast or unspecified.
    Unreachable,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsedBy(node) => write!(f, "is the address of Node {node}"),
            Self::ReportedBy(node) => write!(f, "is in status.addresses of Node {node}"),
            Self::InPool(pool) => write!(f, "is inside spec.cidr of IPPool {pool}"),
            Self::InServices(range) => write!(f, "is inside the Service range {range}"),
            Self::Unreachable => f.write_str("is not an address that other nodes can reach"),
        }
    }
}

/// A node and its candidates.
struct NodeCandidates<'a> {
    name: &'a str,
    node: &'a Node,
    candidates: Vec<Candidate>,
    /// The addresses in use that are still candidates.
    in_use: NodeAddresses,
}

/// An address that a node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    address: IpAddr,
    /// Whether the status of the node's own Node has it.
    in_node_status: bool,
}

/// The other uses of addresses, which candidates are checked against.
struct OtherUses<'a> {
    /// Ranges and names of pools.
    pools: Vec<(IpNet, &'a str)>,
    /// Ranges of Services, and a description of each.
    services: Vec<(IpNet, String)>,
    /// Nodes by the addresses in their status.
    node_status: BTreeMap<IpAddr, &'a str>,
}

impl<'a> AddressChoices<'a> {
    /// Chooses addresses for all of `nodes`. If Nodes report the same address, a Ready one precedes one that is not (a
    /// renamed machine leaves its old Node behind), then the one that uses the address already, then the older one.
    #[must_use]
    pub fn new(
        cluster_state: &'a ClusterState<'_>,
        nodes: &BTreeMap<&'a str, &'a Node>,
        networks: &BTreeMap<&str, &NodeNetwork>,
        selectors: &AddressSelectors,
    ) -> Self {
        let other_uses = OtherUses::new(cluster_state, selectors);
        let mut all_candidates: Vec<NodeCandidates<'a>> = nodes
            .iter()
            .map(|(name, node)| {
                NodeCandidates::new(name, node, networks.get(name).copied(), selectors)
            })
            .collect();
        all_candidates.sort_by_cached_key(|it| {
            let not_ready = cluster_state.not_ready.contains_key(it.name);
            (
                not_ready,
                it.in_use == NodeAddresses::default(),
                age_key(it.node),
            )
        });
        let mut choices = Self::default();
        for node_candidates in &all_candidates {
            choices.choose(node_candidates, &other_uses);
        }
        choices
    }

    /// The choice for a node.
    #[must_use]
    pub fn of(&self, node: &str) -> Option<&AddressChoice> {
        self.by_node.get(node)
    }

    /// `addresses` without those that another node uses.
    #[must_use]
    pub fn without_those_of_others(&self, node: &str, addresses: NodeAddresses) -> NodeAddresses {
        let free = |address: IpAddr| self.holders.get(&address).is_none_or(|it| *it == node);
        NodeAddresses {
            ipv4: addresses.ipv4.filter(|address| free((*address).into())),
            ipv6: addresses.ipv6.filter(|address| free((*address).into())),
        }
    }

    fn choose(&mut self, node_candidates: &NodeCandidates<'a>, other_uses: &OtherUses<'a>) {
        let mut choice = AddressChoice::default();
        for family in IpFamily::ALL {
            let current = node_candidates.in_use.of(family);
            let candidates = node_candidates.candidates.iter();
            let candidates = candidates.filter(|it| IpFamily::of(it.address) == family);
            let (in_use, others): (Vec<&Candidate>, Vec<&Candidate>) =
                candidates.partition(|it| Some(it.address) == current);
            for candidate in in_use.into_iter().chain(others) {
                match self.find_fault(*candidate, current, other_uses) {
                    Some(fault) => choice.refuse(candidate.address, fault),
                    None => {
                        choice.set(candidate.address);
                        self.holders.insert(candidate.address, node_candidates.name);
                        break;
                    }
                }
            }
        }
        for (address, fault) in &choice.refused {
            if let Fault::UsedBy(holder) = fault
                && let Some(holder) = self.by_node.get_mut(holder.as_str())
            {
                holder
                    .shared_with
                    .push((*address, node_candidates.name.to_owned()));
            }
        }
        self.by_node.insert(node_candidates.name, choice);
    }

    fn find_fault(
        &self,
        Candidate {
            address,
            in_node_status,
        }: Candidate,
        current: Option<IpAddr>,
        other_uses: &OtherUses<'a>,
    ) -> Option<Fault> {
        if let Some(holder) = self.holders.get(&address) {
            return Some(Fault::UsedBy((*holder).to_owned()));
        }
        // Addresses that kubelet reports precede those that an agent reports, even if the latter are in use.
        if !in_node_status && let Some(node) = other_uses.node_status.get(&address) {
            return Some(Fault::ReportedBy((*node).to_owned()));
        }
        // If a pool was created over an address in use, the pool is invalid (`cluster_ranges`).
        if Some(address) == current {
            return None;
        }
        if !is_routable(address) {
            return Some(Fault::Unreachable);
        }
        let mut pools = other_uses.pools.iter();
        if let Some((_, pool)) = pools.find(|(range, _)| range.contains(&address)) {
            return Some(Fault::InPool((*pool).to_owned()));
        }
        let mut services = other_uses.services.iter().filter(|_| !in_node_status);
        let services = services.find(|(range, _)| range.contains(&address));
        services.map(|(_, description)| Fault::InServices(description.clone()))
    }
}

impl<'a> NodeCandidates<'a> {
    fn new(
        name: &'a str,
        node: &'a Node,
        network: Option<&NodeNetwork>,
        selectors: &AddressSelectors,
    ) -> Self {
        let candidates = candidates(node, network, selectors);
        let used = network.map_or_else(NodeAddresses::default, |it| it.spec.addresses);
        let is_candidate = |address: IpAddr| candidates.iter().any(|it| it.address == address);
        let in_use = NodeAddresses {
            ipv4: used.ipv4.filter(|address| is_candidate((*address).into())),
            ipv6: used.ipv6.filter(|address| is_candidate((*address).into())),
        };
        Self {
            name,
            node,
            candidates,
            in_use,
        }
    }
}

impl<'a> OtherUses<'a> {
    fn new(cluster_state: &'a ClusterState<'_>, selectors: &AddressSelectors) -> Self {
        let uses_agent_reports = *selectors != AddressSelectors::default();
        let nodes = cluster_state
            .nodes
            .iter()
            .copied()
            .filter(|_| uses_agent_reports);
        let node_status = nodes.flat_map(|node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            status_addresses(node, cluster_ranges::TYPES).map(move |address| (address, name))
        });
        Self {
            pools: cluster_ranges::ranges_of_pods(cluster_state),
            services: cluster_ranges::ranges_of_services(cluster_state),
            node_status: node_status.collect(),
        }
    }
}

impl AddressChoice {
    fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.addresses.ipv4 = Some(address),
            IpAddr::V6(address) => self.addresses.ipv6 = Some(address),
        }
    }

    fn refuse(&mut self, address: IpAddr, fault: Fault) {
        if !self.refused.iter().any(|(other, _)| *other == address) {
            self.refused.push((address, fault));
        }
    }
}

/// The addresses that `selectors` select, in the order of preference: kubelet's, then those that the agent reports.
fn candidates(
    node: &Node,
    network: Option<&NodeNetwork>,
    selectors: &AddressSelectors,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut add = |address, in_node_status| {
        if !candidates
            .iter()
            .any(|it: &Candidate| it.address == address)
        {
            candidates.push(Candidate {
                address,
                in_node_status,
            });
        }
    };
    for family in IpFamily::ALL {
        let of_family = |address: &IpAddr| IpFamily::of(*address) == family;
        let Some(selector) = selectors.of(family) else {
            let own = status_addresses(node, &["InternalIP"]).filter(of_family);
            own.for_each(|address| add(address, true));
            continue;
        };
        if let Some(range) = selector.cidr {
            let own = status_addresses(node, cluster_ranges::TYPES).filter(of_family);
            own.filter(|address| range.contains(address))
                .for_each(|address| add(address, true));
        }
        let found = reported(network).filter(|found| of_family(&found.address));
        for FoundAddress { address, .. } in found.filter(|found| selector.matches(found)) {
            let mut own = status_addresses(node, cluster_ranges::TYPES);
            add(*address, own.any(|it| it == *address));
        }
    }
    candidates
}

/// The addresses that the node's agent reports.
fn reported(network: Option<&NodeNetwork>) -> impl Iterator<Item = &FoundAddress> {
    let status = network.and_then(|network| network.status.as_ref());
    let found = status.map_or(&[][..], |status| &status.addresses);
    found.iter().take(MAX_FOUND)
}
