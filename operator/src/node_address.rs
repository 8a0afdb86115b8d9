//! Which of the addresses that a Node states the others send to.
//!
//! ```text
//!   Node.status.addresses ─▶ those that spec.nodeAddress allows ─▶ the one in use, else the first ─▶ one node for each address
//! ```
//!
//! A node keeps the address in use as long as its Node states it, whatever the order: a change costs every tunnel to the node.
//! A wrong address is that node's fault alone: it is left out and named, and neither a pool nor a NetworkMode suffers for it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use netweft_crds::{IpFamily, NodeAddresses, NodeNetwork};

use crate::claims;
use crate::mode::AddressSource;
use crate::validate::age_key;
use crate::world::World;

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

/// Why a stated address is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node of this name uses it.
    UsedBy(String),
    /// It is inside the range of the IPPool of this name.
    InPool(String),
    /// No other node can send to it: loopback, link-local, multicast or unspecified.
    Unreachable,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsedBy(node) => write!(f, "is that of Node {node}"),
            Self::InPool(pool) => write!(f, "is inside spec.cidr of IPPool {pool}"),
            Self::Unreachable => f.write_str("is none that other nodes can send to"),
        }
    }
}

/// A node in the order of its rights to an address.
struct Claimant<'a> {
    name: &'a str,
    node: &'a Node,
    /// The addresses in use, as far as the Node still states them.
    kept: NodeAddresses,
}

impl<'a> Choices<'a> {
    /// Chooses for all of `nodes`. Of Nodes that state the same address, one that is Ready has it before one that is not (a machine
    /// with a new name leaves its old Node behind), then the one that uses it already, then the older.
    #[must_use]
    pub fn new(
        world: &World<'_>,
        nodes: &BTreeMap<&'a str, &'a Node>,
        networks: &BTreeMap<&str, &NodeNetwork>,
        source: AddressSource,
    ) -> Self {
        let pools = claims::ranges_of_pods(world);
        let mut claimants: Vec<Claimant<'a>> = nodes
            .iter()
            .map(|(name, node)| {
                let used = networks.get(name).map(|network| network.spec.addresses);
                Claimant {
                    name,
                    node,
                    kept: kept(node, source, used.unwrap_or_default()),
                }
            })
            .collect();
        claimants.sort_by_cached_key(|it| {
            let absent = world.not_ready.contains_key(it.name);
            (
                absent,
                it.kept == NodeAddresses::default(),
                age_key(it.node),
            )
        });
        let mut choices = Self::default();
        for claimant in &claimants {
            choices.choose(claimant, source, &pools);
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

    fn choose(&mut self, claimant: &Claimant<'a>, source: AddressSource, pools: &[(IpNet, &str)]) {
        let mut choice = Choice::default();
        for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
            let kept = claimant.kept.of(family);
            let of_family = |address: &IpAddr| IpFamily::of(*address) == family;
            let stated = candidates(claimant.node, source).filter(of_family);
            let others = stated.filter(|address| Some(*address) != kept);
            for address in kept.into_iter().chain(others) {
                match self.fault(address, kept, pools) {
                    Some(fault) => choice.refuse(address, fault),
                    None => {
                        choice.take(address);
                        self.holders.insert(address, claimant.name);
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
        address: IpAddr,
        kept: Option<IpAddr>,
        pools: &[(IpNet, &str)],
    ) -> Option<Fault> {
        if let Some(holder) = self.holders.get(&address) {
            return Some(Fault::UsedBy((*holder).to_owned()));
        }
        // A pool that was created over an address in use is at fault itself (`claims`).
        if Some(address) == kept {
            return None;
        }
        if is_unreachable(address) {
            return Some(Fault::Unreachable);
        }
        let mut pools = pools.iter().filter(|(range, _)| range.contains(&address));
        pools
            .next()
            .map(|(_, pool)| Fault::InPool((*pool).to_owned()))
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

/// The addresses in use that the Node still states and `source` still allows.
fn kept(node: &Node, source: AddressSource, used: NodeAddresses) -> NodeAddresses {
    let stated = |address: IpAddr| candidates(node, source).any(|other| other == address);
    NodeAddresses {
        ipv4: used.ipv4.filter(|address| stated((*address).into())),
        ipv6: used.ipv6.filter(|address| stated((*address).into())),
    }
}

/// The addresses that `source` allows, in the order in which the Node states them.
fn candidates(node: &Node, source: AddressSource) -> impl Iterator<Item = IpAddr> + '_ {
    let types: &[&str] = match source {
        AddressSource::InternalIp => &["InternalIP"],
        AddressSource::Cidr(_) => &["InternalIP", "ExternalIP"],
    };
    stated(node, types).filter(move |address| source.takes(*address))
}

/// The addresses of `node` that have one of these types, by type first.
pub fn stated<'a>(node: &'a Node, types: &'a [&str]) -> impl Iterator<Item = IpAddr> + 'a {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    types.iter().flat_map(move |type_| {
        let of_type = addresses
            .clone()
            .filter(move |address| address.type_ == *type_);
        of_type.filter_map(|address| address.address.parse().ok())
    })
}

fn is_unreachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified()
}
