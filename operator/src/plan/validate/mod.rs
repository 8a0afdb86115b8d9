//! Validation: from CRDs as written by users to validated types, or to a [`Verdict`] with a remedy.
//!
//! `ip_pool` and `network_mode` validate single objects. This module compares objects with each other. Of two
//! conflicting objects the older one wins: by `creationTimestamp`, then by name.

pub mod cluster_ranges;
pub mod ip_pool;
pub mod kube_proxy;
pub mod network_mode;
pub mod node_address;
pub mod other_networks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{IPPool, IpFamily, Transport};

use crate::plan::ipam::blocks::overlap;
use crate::plan::model::cluster_state::{ClusterState, UserKind};
use crate::plan::validate::ip_pool::Pool;
use crate::plan::validate::network_mode::Mode;

/// All modes by name, each validated or with its error.
pub type Modes = BTreeMap<String, Result<Mode, Verdict>>;

/// All pools, each validated or with its error.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    /// By name.
    pub by_name: BTreeMap<String, Result<Pool, Verdict>>,
    /// Names of all pools, oldest first.
    pub by_age: Vec<String>,
}

impl Pools {
    /// The pool with this name, if it is usable.
    #[must_use]
    pub fn usable(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name)?.as_ref().ok()
    }

    /// The usable pools, oldest first.
    pub fn all_usable(&self) -> impl Iterator<Item = &Pool> {
        self.by_age.iter().filter_map(|name| self.usable(name))
    }

    /// The usable pools in the order in which pods get addresses of them: pools with a node selector first, then by
    /// name. The plugin uses the same order.
    #[must_use]
    pub fn by_preference(&self) -> Vec<&Pool> {
        let mut pools: Vec<&Pool> = self.all_usable().collect();
        pools.sort_by_key(|pool| (!pool.for_some_nodes, &pool.name));
        pools
    }
}

/// Validates the modes.
#[must_use]
pub fn modes(cluster_state: &ClusterState<'_>) -> Modes {
    let mut checked = Modes::new();
    let mut claims = Vec::new();
    let mut first: Option<Mode> = None;
    for object in oldest_first(&cluster_state.modes) {
        let name = object.name_any();
        let result = network_mode::check(&name, &object.spec)
            .and_then(|mode| check_program_installed(mode, cluster_state))
            .and_then(|mode| check_exclusive(mode, &mut claims))
            .and_then(|mode| check_same_selectors(mode, first.as_ref()))
            .and_then(|mode| check_number(mode, &checked, ("NetworkModes", MAX_MODES)));
        if let (None, Ok(mode)) = (&first, &result) {
            first = Some(mode.clone());
        }
        checked.insert(name, result);
    }
    checked.extend(unreadable(cluster_state, UserKind::Mode).map(|(name, why)| (name, Err(why))));
    checked
}

/// Validates the pools.
#[must_use]
pub fn pools(cluster_state: &ClusterState<'_>, modes: &Modes) -> Pools {
    let mut checked = Pools::default();
    // A pool that is stalled for another reason keeps its range, because its blocks may carry traffic.
    let mut holders: Vec<&IPPool> = Vec::new();
    for object in oldest_first(&cluster_state.pools) {
        let name = object.name_any();
        let older = holders
            .iter()
            .find(|holder| overlap(&holder.spec.cidr, &object.spec.cidr));
        let result = match older {
            Some(older) => Err(overlap_verdict(object, older)),
            None => {
                holders.push(object);
                let deleting = object.meta().deletion_timestamp.is_some();
                ip_pool::check(&name, &object.spec, deleting)
                    .and_then(|pool| check_mode(pool, modes))
                    .and_then(|pool| cluster_ranges::check_disjoint(pool, cluster_state))
                    .and_then(|pool| other_networks::check_unused(pool, object, cluster_state))
                    .and_then(|pool| check_number(pool, &checked.by_name, ("IPPools", MAX_POOLS)))
            }
        };
        checked.by_age.push(name.clone());
        checked.by_name.insert(name, result);
    }
    for (name, why) in unreadable(cluster_state, UserKind::Pool) {
        checked.by_name.insert(name, Err(why));
    }
    checked
}

/// Most usable IPPools: each is a range in the tables of every node, and a name in every NodeNetwork.
pub const MAX_POOLS: usize = 256;
/// Most usable NetworkModes: each can be two datapaths of every NodeNetwork while it changes.
pub const MAX_MODES: usize = 16;

/// The youngest objects beyond the limit are left out, so that a user with too many objects does not disable older objects.
fn check_number<T>(
    object: T,
    checked: &BTreeMap<String, Result<T, Verdict>>,
    (kind, most): (&str, usize),
) -> Result<T, Verdict> {
    let usable = checked.values().filter(|result| result.is_ok()).count();
    if usable < most {
        return Ok(object);
    }
    Err(Verdict::stalled(
        Reason::TooMany,
        format!(
            "there are {most} usable {kind} already, the maximum; delete {kind} that are not in use"
        ),
    ))
}

/// The objects in the order of their precedence.
pub fn oldest_first<'a, K: Resource>(objects: &[&'a K]) -> Vec<&'a K> {
    let mut sorted = objects.to_vec();
    sorted.sort_by_cached_key(|object| age_key(*object));
    sorted
}

/// Sort key: oldest first. An object that does not exist yet is the youngest.
pub fn age_key<K: Resource>(object: &K) -> (bool, Option<Time>, String) {
    let created = object.meta().creation_timestamp.clone();
    (created.is_none(), created, object.name_any())
}

/// A resource of a node that only one mode can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The VXLAN link of this VNI.
    Vni(u32),
    /// The ipip link without a remote address.
    Ipip,
    /// A UDP port of the kernel, which VXLAN links share.
    VxlanPort(u16),
    /// A UDP port of the relay.
    RelayPort(u16),
    /// The BGP speaker.
    Bgp,
}

impl Claim {
    fn of(transport: Transport) -> Vec<Self> {
        match transport {
            Transport::Vxlan(vxlan) => vec![Self::Vni(vxlan.vni), Self::VxlanPort(vxlan.port)],
            Transport::Ipip => vec![Self::Ipip],
            Transport::Udp(udp) => vec![Self::RelayPort(udp.port)],
            Transport::Bgp => vec![Self::Bgp],
            Transport::Direct => vec![],
        }
    }

    fn excludes(self, other: Self) -> bool {
        let port = |claim| match claim {
            Self::VxlanPort(port) | Self::RelayPort(port) => Some(port),
            Self::Vni(_) | Self::Ipip | Self::Bgp => None,
        };
        match (self, other) {
            (Self::VxlanPort(_), Self::VxlanPort(_)) => false,
            (one, other) => one == other || port(one).is_some() && port(one) == port(other),
        }
    }

    /// The remedy, if the claims `taken` belong to other modes.
    fn remedy(self, taken: &[(Self, String)]) -> String {
        let free = |claim: &Self| !taken.iter().any(|(other, _)| claim.excludes(*other));
        let found = match self {
            Self::Vni(vni) => (vni..=0x00ff_ffff).chain(1..vni).map(Self::Vni).find(free),
            Self::VxlanPort(port) => (port..=u16::MAX).map(Self::VxlanPort).find(free),
            Self::RelayPort(port) => (port..=u16::MAX).map(Self::RelayPort).find(free),
            Self::Ipip | Self::Bgp => None,
        };
        match found {
            Some(Self::Vni(n)) => format!("choose another, for example {n}"),
            Some(Self::VxlanPort(n) | Self::RelayPort(n)) => {
                format!("choose another, for example {n}")
            }
            Some(Self::Ipip | Self::Bgp) | None => {
                let has = if self == Self::Bgp {
                    "has one BGP speaker"
                } else {
                    "has one IPIP link"
                };
                format!("a node {has}: set spec.networkMode of the IPPools to that mode")
            }
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vni(vni) => write!(f, "spec.overlay.vxlan.vni {vni}"),
            Self::Ipip => f.write_str("spec.overlay.encapsulation ipip"),
            Self::VxlanPort(port) => write!(f, "spec.overlay.vxlan.port {port}"),
            Self::RelayPort(port) => write!(f, "spec.overlay.udp.port {port}"),
            Self::Bgp => f.write_str("spec.mode underlay"),
        }
    }
}

fn check_exclusive(mode: Mode, taken: &mut Vec<(Claim, String)>) -> Result<Mode, Verdict> {
    let claims = Claim::of(mode.transport);
    for claim in &claims {
        if let Some((_, holder)) = taken.iter().find(|(other, _)| claim.excludes(*other)) {
            return Err(Verdict::stalled(
                Reason::Conflict,
                format!(
                    "{claim} is already used by NetworkMode {holder}, which is older; {}",
                    claim.remedy(taken)
                ),
            ));
        }
    }
    taken.extend(claims.into_iter().map(|claim| (claim, mode.name.clone())));
    Ok(mode)
}

/// The relay and BIRD are separate DaemonSets, which the chart may not install.
fn check_program_installed(mode: Mode, cluster_state: &ClusterState<'_>) -> Result<Mode, Verdict> {
    let message = match mode.transport {
        Transport::Udp(_) if cluster_state.without_udp_relay => {
            "spec.overlay.encapsulation udp needs the relay, which is not installed: set udpRelay.enabled to true in the chart's values, or choose vxlan"
        }
        Transport::Bgp if cluster_state.without_bird => {
            "spec.mode underlay needs BIRD, which is not installed: set bird.enabled to true in the chart's values, or choose overlay or host-gw"
        }
        Transport::Udp(_)
        | Transport::Vxlan(_)
        | Transport::Ipip
        | Transport::Direct
        | Transport::Bgp => return Ok(mode),
    };
    Err(Verdict::stalled(Reason::NotFound, message))
}

/// A NodeNetwork has one set of node addresses, so all modes need the same selectors for now.
fn check_same_selectors(mode: Mode, first: Option<&Mode>) -> Result<Mode, Verdict> {
    match first {
        Some(first) if first.address != mode.address => Err(Verdict::stalled(
            Reason::NotYetSupported,
            format!(
                "spec.nodeAddress differs from that of NetworkMode {}, which is older: different values are not supported yet; set the same value in both",
                first.name
            ),
        )),
        Some(_) | None => Ok(mode),
    }
}

fn check_mode(pool: Pool, modes: &Modes) -> Result<Pool, Verdict> {
    let name = &pool.mode;
    match modes.get(name) {
        Some(Ok(mode)) if !mode.carries(IpFamily::of(pool.cidr.addr())) => Err(Verdict::stalled(
            Reason::Invalid,
            format!(
                "spec.networkMode {name} has encapsulation ipip, which carries IPv4 only; name a mode with encapsulation vxlan or udp, or of mode host-gw"
            ),
        )),
        Some(Ok(_)) => Ok(pool),
        Some(Err(why)) => Err(Verdict::stalled(
            why.reason,
            format!("NetworkMode {name} cannot be used: {}", why.message),
        )),
        None => {
            let usable: BTreeSet<_> = modes
                .values()
                .flatten()
                .map(|mode| mode.name.as_str())
                .collect();
            let usable: Vec<_> = usable.into_iter().take(5).collect();
            let hint = match usable.as_slice() {
                [] => "create it".to_owned(),
                names => format!("create it or name another: {}", names.join(", ")),
            };
            Err(Verdict::stalled(
                Reason::NotFound,
                format!("spec.networkMode names NetworkMode {name}, which does not exist; {hint}"),
            ))
        }
    }
}

fn overlap_verdict(pool: &IPPool, older: &IPPool) -> Verdict {
    Verdict::stalled(
        Reason::Overlap,
        format!(
            "spec.cidr {} overlaps {} of IPPool {}, which is older; delete one of the two IPPools and create a pool with another range",
            pool.spec.cidr,
            older.spec.cidr,
            older.name_any()
        ),
    )
}

fn unreadable(
    cluster_state: &ClusterState<'_>,
    kind: UserKind,
) -> impl Iterator<Item = (String, Verdict)> {
    let of_kind = cluster_state
        .unreadable
        .iter()
        .filter(move |object| object.kind == kind);
    of_kind.filter_map(|object| Some((object.metadata.name.clone()?, object.verdict())))
}
