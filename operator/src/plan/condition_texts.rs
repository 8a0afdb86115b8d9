//! Every reason of a condition is reachable: a scenario breaks or restores what the condition is about, and the
//! condition and its Event are checked. A reason without a scenario does not compile. A snapshot holds all texts.

use std::fmt::Write;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use netweft_crds::condition::{ASSIGNED, READY, RECONCILING, Reason, STALLED};
use netweft_crds::{SessionFault, SessionState};

use crate::plan::model::cluster_state::{ConditionEvent, Plan};
use crate::testing::{Cluster, at, cluster, kube_proxy, mode, node, peer, pool, services, vxlan};

/// An object, and the change after which its condition has the reason.
struct Scenario {
    object: Object,
    edit: fn(&mut Cluster),
}

/// The object by name, and the expected state of its condition.
enum Object {
    /// `Ready` of a pool.
    Pool(&'static str, State),
    /// `Ready` of a mode.
    Mode(&'static str, State),
    /// `Ready` of a peer.
    Peer(&'static str, State),
    /// `Assigned` of a NodeNetwork; True or False.
    Node(&'static str, bool),
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Reconciling,
    Stalled,
}

use Object::{Mode, Node, Peer, Pool};
use State::{Ready, Reconciling, Stalled};

/// The scenarios that lead to a reason. Empty: the agent reports the reason (`node-agent/src/status`).
fn scenarios(reason: Reason) -> Vec<Scenario> {
    match reason {
        Reason::Allocatable => vec![scenario(Pool("new", Ready), |cluster| {
            cluster.pools.push(at(9, pool("new", "10.9.0.0/16", "")));
        })],
        Reason::NearlyExhausted => vec![scenario(Pool("spent", Ready), |cluster| {
            cluster.pools.push(at(9, pool("spent", "fd00:9::/121", "")));
        })],
        Reason::Disabled => vec![scenario(Pool(POOL, Ready), |cluster| {
            cluster.pools[0].spec.disabled = true;
        })],
        Reason::Exhausted => exhausted(),
        Reason::Overlap => overlaps(),
        Reason::KubeProxyMismatch => mismatch(),
        Reason::InUse => vec![scenario(Pool(POOL, Reconciling), |cluster| {
            cluster.pools[0].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        })],
        Reason::TooMany => too_many(),
        Reason::NotFound => not_found(),
        Reason::Invalid => invalid(),
        Reason::NotYetSupported => not_supported(),
        Reason::Conflict => conflicts(),
        Reason::Established => vec![scenario(Peer("tor", Ready), change_to_underlay)],
        Reason::Establishing => establishing(),
        Reason::SessionFailed => session_failed(),
        Reason::Programmed => programmed(),
        Reason::Programming => in_progress(),
        Reason::Preparing => vec![scenario(Mode(MODE, Reconciling), edit_mode)],
        Reason::Switching => vec![scenario(Mode(MODE, Reconciling), start_rollout)],
        Reason::Retiring => vec![scenario(Mode(MODE, Reconciling), finish_switching)],
        Reason::Unused => vec![scenario(Mode("spare", Ready), |cluster| {
            cluster.modes.push(at(9, vxlan("spare", 5)));
        })],
        Reason::SubnetsAssigned => subnets_assigned(),
        Reason::NoSubnet => no_subnet(),
        Reason::NoNodeAddress => no_node_address(),
        Reason::ProgrammingFailed
        | Reason::ForeignObject
        | Reason::Contested
        | Reason::KernelLacksFeature
        | Reason::AgentStalled => vec![],
    }
}

const POOL: &str = "default-v4";
const MODE: &str = "default";

fn scenario(object: Object, edit: fn(&mut Cluster)) -> Scenario {
    Scenario { object, edit }
}

fn overlaps() -> Vec<Scenario> {
    vec![
        scenario(Pool("younger", Stalled), |cluster| {
            cluster
                .pools
                .push(at(9, pool("younger", "10.244.9.0/24", "")));
        }),
        scenario(Pool(POOL, Stalled), |cluster| {
            cluster.pools[0].spec.cidr = "10.1.0.0/16".parse().unwrap();
        }),
        scenario(Pool(POOL, Stalled), |cluster| {
            cluster.services.push(services("more", "10.244.0.0/20"));
        }),
    ]
}

fn too_many() -> Vec<Scenario> {
    vec![
        scenario(Mode("mode-99", Stalled), |cluster| {
            for number in 1..=16 {
                let name = format!("mode-{number:02}");
                cluster.modes.push(at(9, vxlan(&name, 100 + number)));
            }
            cluster.modes.push(at(10, vxlan("mode-99", 99)));
        }),
        scenario(Pool("pool-999", Stalled), |cluster| {
            for number in 0..=u8::MAX {
                let (name, cidr) = (format!("pool-{number}"), format!("10.9.{number}.0/24"));
                cluster.pools.push(at(9, pool(&name, &cidr, "")));
            }
            cluster
                .pools
                .push(at(10, pool("pool-999", "10.10.0.0/24", "")));
        }),
    ]
}

const BY_LINK: &str = "{mode: host-gw, nodeAddress: {interface: eth1}}";

fn not_supported() -> Vec<Scenario> {
    vec![
        scenario(Pool("some", Stalled), |cluster| {
            cluster.modes.push(at(9, mode("by-link", BY_LINK)));
            let more = "networkMode: by-link";
            cluster.pools.push(at(9, pool("some", "10.9.0.0/16", more)));
        }),
        scenario(Mode("by-link", Stalled), |cluster| {
            cluster.modes.push(at(9, mode("by-link", BY_LINK)));
        }),
    ]
}

/// Edits the mode.
fn edit_mode(cluster: &mut Cluster) {
    cluster.edit_mode("{mode: host-gw, rollout: {maxConcurrent: 100%}}");
}

/// Edits the mode; all agents have probed the new datapath.
fn start_rollout(cluster: &mut Cluster) {
    edit_mode(cluster);
    cluster.reconcile();
    cluster.agents_probe(&[]);
}

/// Edits the mode; all nodes use the new datapath.
fn finish_switching(cluster: &mut Cluster) {
    start_rollout(cluster);
    cluster.reconcile();
    cluster.agents_probe(&[]);
}

const TOR: &str = "{peerIP: 10.1.0.254, asNumber: 65001}";

/// Changes the pool's mode to underlay, with a session to a router.
fn change_to_underlay(cluster: &mut Cluster) {
    cluster.modes[0] = mode(MODE, "{mode: underlay, underlay: {nodeToNodeMesh: false}}");
    cluster.peers.push(at(1, peer("tor", TOR)));
    cluster.reconcile();
    cluster.agents_report(1);
    cluster.agents_report_sessions(1);
}

/// The session is established in the status of the BGPPeer.
fn established(cluster: &mut Cluster) {
    change_to_underlay(cluster);
    cluster.reconcile();
}

fn conflicts() -> Vec<Scenario> {
    vec![
        scenario(Mode("younger", Stalled), |cluster| {
            cluster.modes.push(at(9, vxlan("younger", 4096)));
        }),
        scenario(Peer("younger", Stalled), |cluster| {
            established(cluster);
            let same = "{peerIP: 10.1.0.254, asNumber: 65002}";
            cluster.peers.push(at(9, peer("younger", same)));
        }),
    ]
}

fn session_failed() -> Vec<Scenario> {
    vec![scenario(Peer("tor", Stalled), |cluster| {
        established(cluster);
        cluster.agent_reports_session_fault(
            "worker-1",
            "tor",
            SessionState::Idle,
            SessionFault::ASNumberMismatch,
        );
    })]
}

fn establishing() -> Vec<Scenario> {
    vec![scenario(Peer("tor", Reconciling), |cluster| {
        established(cluster);
        cluster.agent_reports_session_fault(
            "worker-1",
            "tor",
            SessionState::Idle,
            SessionFault::SessionLost,
        );
    })]
}

fn not_found() -> Vec<Scenario> {
    vec![
        scenario(Pool(POOL, Stalled), |cluster| cluster.modes.clear()),
        scenario(Mode(MODE, Stalled), |cluster| {
            cluster.modes[0] = mode(MODE, "{mode: underlay}");
            cluster.without_bird = true;
        }),
        scenario(Peer("tor", Stalled), |cluster| {
            cluster.peers.push(at(9, peer("tor", TOR)));
        }),
        scenario(Peer("tor", Stalled), |cluster| {
            established(cluster);
            cluster.secrets.insert("user-passwords".to_owned(), None);
            let at = "{peerIP: 10.1.0.254, asNumber: 65001, password: {secretKeyRef: {name: user-passwords, key: k}}}";
            cluster.peers[0].spec = peer("tor", at).spec;
        }),
    ]
}

fn no_node_address() -> Vec<Scenario> {
    vec![
        scenario(Node("worker-1", false), |cluster| {
            cluster.nodes[0] = node("worker-1", &[]);
        }),
        scenario(Pool("v6", Stalled), |cluster| {
            cluster.modes[0] = mode(MODE, "{mode: host-gw}");
            cluster.pools.push(at(9, pool("v6", "fd00:9::/64", "")));
        }),
        scenario(Peer("tor", Stalled), |cluster| {
            established(cluster);
            cluster.peers[0].spec.peer_ip = Some("fd01::1".parse().unwrap());
        }),
    ]
}

fn in_progress() -> Vec<Scenario> {
    vec![
        scenario(Mode(MODE, Reconciling), |cluster| {
            cluster.networks[0]
                .status
                .as_mut()
                .unwrap()
                .observed_generation = Some(0);
        }),
        scenario(Mode(MODE, Reconciling), |cluster| {
            let conditions = &mut cluster.networks[1].status.as_mut().unwrap().conditions;
            conditions.retain(|condition| condition.type_ != READY);
        }),
    ]
}

fn invalid() -> Vec<Scenario> {
    vec![
        scenario(Pool(POOL, Stalled), |cluster| {
            cluster.pools[0].spec.reserved = vec!["ten".to_owned()];
        }),
        scenario(Mode(MODE, Stalled), |cluster| {
            cluster.modes[0].spec.overlay = None;
        }),
        scenario(Peer("tor", Stalled), |cluster| {
            cluster
                .peers
                .push(at(9, peer("tor", "{peerIP: 10.1.0.254}")));
        }),
    ]
}

fn programmed() -> Vec<Scenario> {
    vec![scenario(Mode("next", Ready), |cluster| {
        cluster.modes.push(at(9, vxlan("next", 5)));
        cluster.pools[0].spec.network_mode = "next".to_owned();
        cluster.finish_rollout();
        cluster.networks[0].status = None;
        cluster.reconcile();
        cluster.agents_report(1);
    })]
}

fn no_subnet() -> Vec<Scenario> {
    vec![scenario(Node("worker-3", false), |cluster| {
        cluster.pools[0].spec.disabled = true;
        cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    })]
}

fn subnets_assigned() -> Vec<Scenario> {
    vec![scenario(Node("worker-3", true), |cluster| {
        cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    })]
}

fn exhausted() -> Vec<Scenario> {
    vec![scenario(Pool("small", Stalled), |cluster| {
        cluster.pools.push(at(9, pool("small", "fd00:9::/122", "")));
    })]
}

fn mismatch() -> Vec<Scenario> {
    vec![scenario(Pool(POOL, Stalled), |cluster| {
        cluster.kube_proxy = Some(kube_proxy("detectLocalMode: NodeCIDR"));
    })]
}

impl Object {
    /// The condition that sums up the object.
    fn condition(&self, cluster: &Cluster) -> Option<Condition> {
        self.conditions(cluster)?
            .into_iter()
            .find(|condition| condition.type_ == self.type_())
    }

    fn conditions(&self, cluster: &Cluster) -> Option<Vec<Condition>> {
        fn named<'a, K: kube::Resource>(objects: &'a [K], name: &str) -> Option<&'a K> {
            objects.iter().find(|object| object.name_any() == name)
        }
        match self {
            Pool(name, _) => Some(named(&cluster.pools, name)?.status.clone()?.conditions),
            Mode(name, _) => Some(named(&cluster.modes, name)?.status.clone()?.conditions),
            Peer(name, _) => Some(named(&cluster.peers, name)?.status.clone()?.conditions),
            Node(name, _) => Some(named(&cluster.networks, name)?.status.clone()?.conditions),
        }
    }

    fn label(&self) -> String {
        let (kind, name) = match self {
            Pool(name, _) => ("IPPool", name),
            Mode(name, _) => ("NetworkMode", name),
            Peer(name, _) => ("BGPPeer", name),
            Node(name, _) => ("NodeNetwork", name),
        };
        format!("{kind} {name}")
    }

    fn type_(&self) -> &'static str {
        match self {
            Pool(..) | Mode(..) | Peer(..) => READY,
            Node(..) => ASSIGNED,
        }
    }

    /// The Event in the plan about the object.
    fn event(&self, plan: &Plan) -> Option<ConditionEvent> {
        fn of<S: Clone>(
            changes: &[crate::plan::model::cluster_state::StatusChange<S>],
            name: &str,
        ) -> Option<ConditionEvent> {
            changes
                .iter()
                .find(|change| change.name == name)?
                .event
                .clone()
        }
        match self {
            Pool(name, _) => of(&plan.pool_statuses, name),
            Mode(name, _) => of(&plan.mode_statuses, name),
            Peer(name, _) => of(&plan.peer_statuses, name),
            Node(name, _) => of(&plan.assigned, name),
        }
    }
}

/// Steps until the plan is empty. Returns the Events about the object.
fn reconcile(cluster: &mut Cluster, object: &Object) -> Vec<ConditionEvent> {
    let mut events = Vec::new();
    for _ in 0..10 {
        let plan = cluster.step();
        events.extend(object.event(&plan));
        if plan.is_empty() {
            return events;
        }
    }
    panic!("the plan does not become empty: {:#?}", cluster.plan());
}

/// Runs a scenario, and checks the conditions and the Event. Returns the condition that sums up the object.
fn run_scenario(reason: Reason, index: usize, Scenario { object, edit }: &Scenario) -> Condition {
    let label = format!("{} {index}", reason.as_str());
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster.agents_report(1);
    cluster.reconcile();
    let before = object.condition(&cluster);
    let before = before.map(|condition| (condition.status, condition.reason));
    edit(&mut cluster);
    let events = reconcile(&mut cluster, object);
    let after = object
        .condition(&cluster)
        .unwrap_or_else(|| panic!("{label}: no condition"));
    let (status, warns) = match object {
        Pool(_, state) | Mode(_, state) | Peer(_, state) => {
            for (type_, of) in [
                (READY, Ready),
                (RECONCILING, Reconciling),
                (STALLED, Stalled),
            ] {
                let conditions = object.conditions(&cluster).unwrap();
                let condition = conditions.iter().find(|c| c.type_ == type_).unwrap();
                assert_eq!(condition.status == "True", of == *state, "{label}: {type_}");
            }
            (
                *state == Ready,
                *state == Stalled || reason == Reason::NearlyExhausted,
            )
        }
        Node(_, assigned) => (*assigned, !*assigned),
    };
    assert_eq!(
        (after.status == "True", after.reason.as_str()),
        (status, reason.as_str()),
        "{label}: {}",
        after.message
    );
    if !status && let Some((status, reason_before)) = before {
        assert_eq!(
            status, "True",
            "{label}: had reason {reason_before} before the change"
        );
    }
    let event = events.last().unwrap_or_else(|| panic!("{label}: no Event"));
    assert_eq!(
        (
            event.reason.as_str(),
            event.warning,
            event.condition.as_str()
        ),
        (reason.as_str(), warns, object.type_()),
        "{label}"
    );
    after
}

#[test]
fn every_condition_reason_is_reachable_and_reported() {
    let mut texts = String::new();
    for reason in Reason::ALL.iter().copied() {
        for (index, scenario) in scenarios(reason).iter().enumerate() {
            let condition = run_scenario(reason, index, scenario);
            let Condition {
                type_,
                status,
                message,
                ..
            } = condition;
            let (reason, object) = (reason.as_str(), scenario.object.label());
            writeln!(texts, "{reason}\n  {object} {type_} {status}: {message}\n").unwrap();
        }
    }
    insta::assert_snapshot!("condition_texts", texts);
}
