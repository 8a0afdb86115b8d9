//! What the agent says about its node.

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
use crate::desired::bird::METRIC_STAND_IN;

/// How a sync went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What could not be programmed, in sentences; it is tried again.
    pub failures: Vec<String>,
    /// Whether one of the failures has its cause on this node, whatever other nodes and the objects are like.
    pub own_failure: bool,
    /// Objects of others that stand where ours should be, in sentences.
    pub conflicts: Vec<String>,
    /// What is ours and somebody else changes again and again, in sentences.
    pub fights: Vec<String>,
    /// What the kernel lacks and what therefore does not work, in sentences; pods work otherwise.
    pub lacking: Vec<String>,
    /// Routes that BIRD has put into the kernel.
    pub bgp_routes: i64,
    /// What only a human can put right and what keeps no pod from working, in sentences.
    pub notes: Vec<String>,
    /// Pods that keep pools from being drained.
    pub draining: Vec<DrainingPod>,
    /// What pods have asked for that no block here is for.
    pub requests: Vec<BlockRequest>,
    /// Pods that have addresses.
    pub pods: i64,
    /// The addresses that pods have. `None`: that is not known, or pods can still get others than those of the spec.
    pub taken: Option<BTreeSet<IpAddr>>,
}

impl Outcome {
    /// A step has failed for a cause on this node.
    pub fn fail(&mut self, failure: String) {
        self.failures.push(failure);
        self.own_failure = true;
    }

    /// All that is not as it should be, in sentences. Who changes what is ours is told with each repair.
    pub fn faults(&self, desired: &Desired) -> Vec<String> {
        let groups = [
            &self.failures,
            &self.conflicts,
            &desired.problems,
            &self.lacking,
        ];
        groups.into_iter().flatten().cloned().collect()
    }
}

/// The condition's content after a sync.
#[must_use]
pub fn verdict(desired: &Desired, outcome: &Outcome) -> Verdict {
    if let Some(message) = sentence(&outcome.failures) {
        return Verdict::reconciling(Reason::ProgrammingFailed, message);
    }
    if let Some(message) = sentence(&outcome.conflicts) {
        return Verdict::stalled(Reason::ForeignObject, message);
    }
    if let Some(message) = sentence(&outcome.fights) {
        return Verdict::stalled(Reason::Contested, message);
    }
    if let Some(message) = sentence(&desired.problems) {
        return Verdict::stalled(Reason::Invalid, message);
    }
    if let Some(message) = sentence(&outcome.lacking) {
        return Verdict::stalled(Reason::KernelLacksFeature, message);
    }
    if !desired.has_blocks() {
        let message = "no IPPool gives this node a block, so no pod can start here; see the condition Assigned";
        return Verdict::reconciling(Reason::NoSubnet, message);
    }
    let routes = routes(&desired.kernel);
    let routes = usize::try_from(routes.tunnel + routes.direct).unwrap_or_default();
    let links = desired.kernel.links.len();
    let mut message = format!(
        "{}, {}, nothing out of place",
        count(routes, "route"),
        count(links, "link")
    );
    if let Some(notes) = sentence(&outcome.notes) {
        message += &format!("; but {notes}");
    }
    Verdict::ready(Reason::Programmed, message)
}

/// The status after a sync. `taken` are the addresses that pods have. Where that is not known the generation is not acknowledged,
/// and what was said of blocks `before` stands: the operator deletes a NodeSubnet that is not in the spec and of which it is told
/// nothing.
pub fn status(
    desired: &Desired,
    verdict: &Verdict,
    generation: Option<i64>,
    before: NodeNetworkStatus,
    taken: Option<&BTreeSet<IpAddr>>,
) -> NodeNetworkStatus {
    let (generation, subnets) = match taken {
        Some(taken) => (generation, blocks(desired, taken)),
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

/// Whether two statuses say the same, apart from the operator's part and from counts, which would make a status of every
/// repair.
#[must_use]
pub fn same(a: &NodeNetworkStatus, b: &NodeNetworkStatus) -> bool {
    let ours = |status: &NodeNetworkStatus| {
        let mut ours = status.clone();
        ours.repairs = None;
        ours.conditions
            .retain(|condition| condition.type_ != ASSIGNED);
        ours.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        ours
    };
    ours(a) == ours(b)
}

/// Whether two statuses say the same apart from what comes in bursts: BGP sessions with their routes, and what
/// others do to the kernel.
#[must_use]
pub fn same_but_for_bursts(a: &NodeNetworkStatus, b: &NodeNetworkStatus) -> bool {
    let calm = |status: &NodeNetworkStatus| {
        let mut calm = status.clone();
        calm.sessions.clear();
        calm.routes = calm.routes.map(|routes| RouteCounts { bgp: 0, ..routes });
        calm.drift = None;
        calm
    };
    same(&calm(a), &calm(b))
}

/// Every block that pods get addresses from, and every other in which some pod still has one: the operator takes a
/// block back only when it is told of none.
fn blocks(desired: &Desired, taken: &BTreeSet<IpAddr>) -> Vec<BlockUsage> {
    let used = |block: IpNet| taken.iter().filter(|ip| block.contains(*ip)).count() as i64;
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
    let described = kernel.links.iter().map(|(name, link)| LinkStatus {
        name: name.to_string(),
        mtu: link.mtu,
        address: kernel
            .addresses
            .keys()
            .find(|key| key.link == *name)
            .map(|key| key.net.addr()),
    });
    described.collect()
}

/// Routes to other nodes' blocks: into a link of ours, or to a next hop on another's. (Own blocks' are on the bridge.)
fn routes(kernel: &NetworkState) -> RouteCounts {
    let mut counts = RouteCounts::default();
    let lasting = kernel.routes.iter();
    for (_, route) in lasting.filter(|(key, _)| key.metric != METRIC_STAND_IN) {
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

/// The first sentences and how many more there are: a condition is read by people.
pub fn sentence(problems: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    if problems.is_empty() {
        return None;
    }
    let shown: Vec<&str> = problems.iter().take(SHOWN).map(String::as_str).collect();
    let mut text = shown.join("; ");
    if problems.len() > SHOWN {
        text += &format!("; and {} more", problems.len() - SHOWN);
    }
    Some(text)
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
            spare: BTreeSet::new(),
            udp: Default::default(),
            bird: None,
            withdrawn: vec![],
            problems: vec![],
            notes: vec![],
            waiting_for: vec![],
        }
    }

    fn nothing() -> Desired {
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

    /// The status of generation 2, after one that said nothing.
    fn told(desired: &Desired, taken: &[&str]) -> NodeNetworkStatus {
        let verdict = Verdict::ready(Reason::Programmed, "m");
        let taken: BTreeSet<IpAddr> = taken.iter().map(|ip| ip.parse().unwrap()).collect();
        let before = NodeNetworkStatus::default();
        status(desired, &verdict, Some(2), before, Some(&taken))
    }

    #[test]
    fn free_count_excludes_first_last_and_reserved_addresses() {
        let status = told(&nothing(), &["10.244.0.2", "10.244.0.3", "10.244.9.2"]);
        assert_eq!((status.subnets[0].used, status.subnets[0].free), (2, 59));
    }

    #[test]
    fn withdrawn_block_is_reported_while_used() {
        let mut desired = nothing();
        desired.withdrawn.push("10.244.9.0/26".parse().unwrap());
        let blocks = |taken: &[&str]| told(&desired, taken).subnets.len();
        assert_eq!((blocks(&[]), blocks(&["10.244.9.2"])), (1, 2));
    }

    #[test]
    fn status_without_pod_addresses_keeps_old_generation() {
        let mut before = told(&nothing(), &["10.244.0.2"]);
        before.observed_generation = Some(1);
        let mut withdrawn = without_pools();
        withdrawn.withdrawn = nothing().plugin.pools[0].blocks.clone();
        let verdict = Verdict::reconciling(Reason::ProgrammingFailed, "m");
        let status = status(&withdrawn, &verdict, Some(2), before.clone(), None);
        assert_eq!(status.observed_generation, Some(1));
        assert_eq!(status.subnets, before.subnets);
        let mut conditions = status.conditions.iter();
        assert!(conditions.all(|condition| condition.observed_generation == Some(1)));
    }

    #[test]
    fn ready_reason_follows_severity_order() {
        let mut desired = nothing();
        let reason = |desired| verdict(desired, &Outcome::default()).reason;
        assert_eq!(reason(&desired), Reason::Programmed);
        assert_eq!(reason(&without_pools()), Reason::NoSubnet);
        desired.problems.push("p".into());
        assert_eq!(
            verdict(&desired, &Outcome::default()).reason,
            Reason::Invalid
        );
        let mut outcome = Outcome {
            lacking: vec!["l".into()],
            ..Outcome::default()
        };
        assert_eq!(
            verdict(&nothing(), &outcome).reason,
            Reason::KernelLacksFeature
        );
        assert_eq!(verdict(&desired, &outcome).reason, Reason::Invalid);
        outcome.fights.push("f".into());
        assert_eq!(verdict(&desired, &outcome).reason, Reason::Contested);
        outcome.conflicts.push("c".into());
        assert_eq!(verdict(&desired, &outcome).reason, Reason::ForeignObject);
        outcome.failures.push("f".into());
        assert_eq!(
            verdict(&desired, &outcome).reason,
            Reason::ProgrammingFailed
        );
    }

    #[test]
    fn note_keeps_node_ready_and_is_in_message() {
        let outcome = Outcome {
            notes: vec!["n".into()],
            ..Outcome::default()
        };
        let said = verdict(&nothing(), &outcome);
        assert_eq!(said.reason, Reason::Programmed);
        assert_eq!(
            said.message,
            "0 routes, 0 links, nothing out of place; but n"
        );
    }

    #[test]
    fn long_message_list_is_truncated_with_count() {
        let many: Vec<String> = (0..5).map(|n| format!("f{n}")).collect();
        assert_eq!(sentence(&many).unwrap(), "f0; f1; f2; and 2 more");
    }

    #[test]
    fn condition_of_operator_does_not_count_as_status_change() {
        let ours = told(&nothing(), &[]);
        let mut stored = ours.clone();
        let mut assigned = stored.conditions[0].clone();
        assigned.type_ = ASSIGNED.into();
        stored.conditions.insert(0, assigned);
        assert!(same(&ours, &stored));
        stored.repairs = Some(RepairCounts {
            restored: 1,
            reclaimed: 1,
        });
        assert!(same(&ours, &stored), "counts alone are no news");
        stored.mtu = Some(9000);
        assert!(!same(&ours, &stored));
    }
}
