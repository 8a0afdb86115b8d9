//! The status of the node's NodeNetwork.

pub mod cause;
pub mod problem;
pub mod publisher;
pub mod sink;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use netweft_cni::block;
use netweft_crds::condition::{ASSIGNED, Reason, Verdict};
use netweft_crds::{
    BlockRequest, BlockUsage, DrainingPod, LinkStatus, NodeNetworkStatus, RouteCounts,
};
use netweft_netstate::model::NetworkState;

use crate::desired::Desired;
use crate::desired::bird::METRIC_BACKUP;
use crate::status::problem::{Problem, ProblemKind, Problems};

/// The result of a reconcile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Problems of the node.
    pub problems: Problems,
    /// Whether a step has failed for a cause on this node, independent of other nodes and of the objects.
    pub own_failure: bool,
    /// Number of routes that BIRD has added to the kernel.
    pub bgp_routes: i64,
    /// Pods that prevent pools from being drained.
    pub draining_pods: Vec<DrainingPod>,
    /// Requests of pods for pools without a block on this node.
    pub block_requests: Vec<BlockRequest>,
    /// Number of pods with addresses.
    pub pods: i64,
    /// The addresses of pods. `None`: unknown, or pods can still get addresses outside the blocks of the spec.
    pub pod_addresses: Option<BTreeSet<IpAddr>>,
}

impl Outcome {
    /// Adds a failure whose cause is on this node.
    pub fn fail(&mut self, failure: Problem) {
        self.problems.push(failure);
        self.own_failure = true;
    }

    /// Whether all objects are programmed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.problems.has(ProblemKind::ProgrammingFailed)
    }
}

/// The message of a node without a block.
pub const NO_BLOCK: &str =
    "no IPPool gives this node a block, so no pod can start here; see the condition Assigned";

/// The condition of the node after a reconcile.
#[must_use]
pub fn verdict(desired: &Desired, outcome: &Outcome) -> Verdict {
    if let Some(verdict) = outcome.problems.verdict() {
        return verdict;
    }
    if !desired.has_blocks() {
        return Verdict::reconciling(Reason::NoSubnet, NO_BLOCK);
    }
    let routes = routes(&desired.kernel);
    let routes = usize::try_from(routes.tunnel + routes.direct).unwrap_or_default();
    let links = desired.kernel.links.len();
    let mut message = format!(
        "in sync: {}, {}",
        count(routes, "route"),
        count(links, "link")
    );
    if let Some(notes) = outcome.problems.sentence(ProblemKind::Note) {
        message += &format!("; but {notes}");
    }
    Verdict::ready(Reason::Programmed, message)
}

/// The status after a reconcile. If the addresses of pods are unknown, the generation is not acknowledged and the usage of blocks of
/// `before` stays, because the operator deletes a NodeSubnet that is neither in the spec nor in the status.
pub fn status(
    desired: &Desired,
    verdict: &Verdict,
    generation: Option<i64>,
    before: NodeNetworkStatus,
    pod_addresses: Option<&BTreeSet<IpAddr>>,
) -> NodeNetworkStatus {
    let (generation, subnets) = match pod_addresses {
        Some(addresses) => (generation, block_usage(desired, addresses)),
        None => (before.observed_generation, before.subnets),
    };
    NodeNetworkStatus {
        observed_generation: generation,
        addresses: Vec::new(),
        pods: None,
        subnets,
        links: links(&desired.kernel),
        routes: Some(routes(&desired.kernel)),
        mtu: desired.plugin.pools.iter().map(|pool| pool.mtu).min(),
        link_mtu: desired.link_mtu,
        block_requests: Vec::new(),
        draining_pods: Vec::new(),
        probes: Vec::new(),
        sessions: Vec::new(),
        repairs: None,
        drift: None,
        other_networks: Vec::new(),
        conditions: verdict.conditions(generation, &before.conditions, Timestamp::now()),
    }
}

/// Whether two statuses are equal, apart from the operator's condition and from counts: each repair would cause a write.
#[must_use]
pub fn same(a: &NodeNetworkStatus, b: &NodeNetworkStatus) -> bool {
    let compared_part = |status: &NodeNetworkStatus| {
        let mut part = status.clone();
        part.repairs = None;
        part.conditions
            .retain(|condition| condition.type_ != ASSIGNED);
        part.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        part
    };
    compared_part(a) == compared_part(b)
}

/// Whether two statuses are equal apart from frequent changes: BGP sessions with their routes, and external changes of the kernel.
#[must_use]
pub fn same_except_frequent(a: &NodeNetworkStatus, b: &NodeNetworkStatus) -> bool {
    let infrequent_part = |status: &NodeNetworkStatus| {
        let mut part = status.clone();
        part.sessions.clear();
        part.routes = part.routes.map(|routes| RouteCounts { bgp: 0, ..routes });
        part.drift = None;
        part
    };
    same(&infrequent_part(a), &infrequent_part(b))
}

/// The usage of all blocks of new pods, and of other blocks with addresses of pods: the operator withdraws a block only when the
/// status does not list it.
fn block_usage(desired: &Desired, pod_addresses: &BTreeSet<IpAddr>) -> Vec<BlockUsage> {
    let used = |block: IpNet| {
        let addresses = pod_addresses.iter();
        addresses.filter(|ip| block.contains(*ip)).count() as i64
    };
    let pools = &desired.plugin.pools;
    let pairs = pools
        .iter()
        .flat_map(|pool| pool.blocks.iter().map(move |cidr| (pool, *cidr)));
    let current = pairs.map(|(pool, cidr)| {
        let used = used(cidr);
        let usable = block::usable(cidr, &pool.reserved).count() as i64;
        BlockUsage {
            cidr,
            used,
            free: (usable - used).max(0),
        }
    });
    let withdrawn = desired.withdrawn.iter().map(|cidr| BlockUsage {
        cidr: *cidr,
        used: used(*cidr),
        free: 0,
    });
    current
        .chain(withdrawn.filter(|usage| usage.used > 0))
        .collect()
}

fn links(kernel: &NetworkState) -> Vec<LinkStatus> {
    let links = kernel.links.iter().map(|(name, link)| LinkStatus {
        name: name.to_string(),
        mtu: link.mtu,
        address: kernel
            .addresses
            .keys()
            .find(|key| key.link == *name)
            .map(|key| key.net.addr()),
    });
    links.collect()
}

/// Routes to blocks of other nodes: by a link of netweft (tunnel), or by a next hop on a link of the host (direct).
fn routes(kernel: &NetworkState) -> RouteCounts {
    let mut counts = RouteCounts::default();
    let routes = kernel.routes.iter();
    for (_, route) in routes.filter(|(key, _)| key.metric != METRIC_BACKUP) {
        let dev = route.dev.as_ref().map(|dev| kernel.links.get(dev));
        match dev.map(|link| link.map(|link| &link.kind)) {
            Some(Some(kind)) if kind.is_tunnel() => counts.tunnel += 1,
            None | Some(Some(_)) => {}
            Some(None) => counts.direct += 1,
        }
    }
    counts
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use netweft_cni::node::{NodeConfig, PodInterface, PoolConfig};
    use netweft_crds::RepairCounts;

    use super::*;

    fn without_pools() -> Desired {
        Desired {
            link_mtu: None,
            kernel: NetworkState::default(),
            nft: String::new(),
            nft_bridge: String::new(),
            sysctls: BTreeMap::new(),
            accept_ra_links: BTreeSet::new(),
            plugin: NodeConfig {
                version: 1,
                pools: vec![],
                withdrawn: vec![],
                namespaces: None,
            },
            loose_rp_filter: BTreeSet::new(),
            probes: vec![],
            transmit_only_links: BTreeSet::new(),
            relay: Default::default(),
            bird: None,
            withdrawn: vec![],
            problems: Problems::default(),
        }
    }

    fn with_one_block() -> Desired {
        let mut desired = without_pools();
        desired.plugin.pools.push(PoolConfig {
            name: "p".into(),
            cidr: None,
            pod_interface: PodInterface::Routed,
            bridge: None,
            mtu: 1400,
            blocks: vec!["10.244.0.0/26".parse().unwrap()],
            reserved: vec!["10.244.0.1/32".parse().unwrap()],
            namespaces: None,
            disabled: false,
        });
        desired
    }

    /// The status of generation 2, after an empty one.
    fn status_of(desired: &Desired, pod_addresses: &[&str]) -> NodeNetworkStatus {
        let verdict = Verdict::ready(Reason::Programmed, "m");
        let addresses = pod_addresses.iter().map(|ip| ip.parse().unwrap());
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        let before = NodeNetworkStatus::default();
        status(desired, &verdict, Some(2), before, Some(&addresses))
    }

    #[test]
    fn free_count_excludes_first_last_and_reserved_addresses() {
        let status = status_of(
            &with_one_block(),
            &["10.244.0.2", "10.244.0.3", "10.244.9.2"],
        );
        assert_eq!((status.subnets[0].used, status.subnets[0].free), (2, 59));
    }

    #[test]
    fn withdrawn_block_is_reported_while_used() {
        let mut desired = with_one_block();
        desired.withdrawn.push("10.244.9.0/26".parse().unwrap());
        let blocks = |addresses: &[&str]| status_of(&desired, addresses).subnets.len();
        assert_eq!((blocks(&[]), blocks(&["10.244.9.2"])), (1, 2));
    }

    #[test]
    fn status_without_pod_addresses_keeps_old_generation() {
        let mut before = status_of(&with_one_block(), &["10.244.0.2"]);
        before.observed_generation = Some(1);
        let mut withdrawn = without_pools();
        withdrawn.withdrawn = with_one_block().plugin.pools[0].blocks.clone();
        let verdict = Verdict::reconciling(Reason::ProgrammingFailed, "m");
        let status = status(&withdrawn, &verdict, Some(2), before.clone(), None);
        assert_eq!(status.observed_generation, Some(1));
        assert_eq!(status.subnets, before.subnets);
        let mut conditions = status.conditions.iter();
        assert!(conditions.all(|condition| condition.observed_generation == Some(1)));
    }

    #[test]
    fn ready_reason_follows_severity_order() {
        let mut outcome = Outcome::default();
        let reason = |desired: &Desired, outcome: &Outcome| verdict(desired, outcome).reason;
        assert_eq!(reason(&with_one_block(), &outcome), Reason::Programmed);
        assert_eq!(reason(&without_pools(), &outcome), Reason::NoSubnet);
        for (kind, expected) in [
            (ProblemKind::KernelLacksFeature, Reason::KernelLacksFeature),
            (ProblemKind::Invalid, Reason::Invalid),
            (ProblemKind::Contested, Reason::Contested),
            (ProblemKind::ForeignObject, Reason::ForeignObject),
            (ProblemKind::ProgrammingFailed, Reason::ProgrammingFailed),
        ] {
            outcome.problems.push(problem::problem(kind, "m"));
            assert_eq!(reason(&with_one_block(), &outcome), expected);
            assert_eq!(reason(&without_pools(), &outcome), expected);
        }
    }

    #[test]
    fn note_keeps_node_ready_and_is_in_message() {
        let outcome = Outcome {
            problems: [problem::problem(ProblemKind::Note, "n")]
                .into_iter()
                .collect(),
            ..Outcome::default()
        };
        let verdict = verdict(&with_one_block(), &outcome);
        assert_eq!(verdict.reason, Reason::Programmed);
        assert_eq!(verdict.message, "in sync: 0 routes, 0 links; but n");
    }

    #[test]
    fn condition_of_operator_does_not_count_as_status_change() {
        let published = status_of(&with_one_block(), &[]);
        let mut stored = published.clone();
        let mut assigned = stored.conditions[0].clone();
        assigned.type_ = ASSIGNED.into();
        stored.conditions.insert(0, assigned);
        assert!(same(&published, &stored));
        stored.repairs = Some(RepairCounts {
            restored: 1,
            reclaimed: 1,
        });
        assert!(same(&published, &stored), "counts are no change");
        stored.mtu = Some(9000);
        assert!(!same(&published, &stored));
    }
}
