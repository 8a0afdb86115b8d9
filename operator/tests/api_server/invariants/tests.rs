//! Each violation is detected, and correct changes are accepted.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_crds::{NodeAddresses, NodeNetwork, NodeSubnet, NodeSubnetSpec, SubnetState};
use serde_json::json;

use super::{InvariantChecker, InvariantConfig, ObjectChange};
use crate::objects::object;

mod assignment_order;
mod convergence;

const GRACE: Duration = Duration::from_secs(10);
const LAG: Duration = Duration::from_secs(1);

/// A checker with a clock.
struct Scenario {
    checker: InvariantChecker,
    now: Instant,
}

fn net(cidr: &str) -> IpNet {
    cidr.parse().unwrap()
}

fn subnet(cidr: &str, node: &str, state: SubnetState) -> NodeSubnet {
    let spec = NodeSubnetSpec {
        cidr: net(cidr),
        pool: "p".to_owned(),
        node: node.to_owned(),
        node_addresses: NodeAddresses {
            ipv4: "192.0.2.1".parse().ok(),
            ipv6: None,
        },
        as_number: None,
        link_mtu: None,
        state,
    };
    let mut subnet = spec.into_object();
    subnet.metadata.uid = Some("one".to_owned());
    subnet
}

fn network(node: &str, blocks: &[&str]) -> NodeNetwork {
    object(json!({
        "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork",
        "metadata": { "name": node, "uid": "n", "ownerReferences": [
            { "apiVersion": "v1", "kind": "Node", "name": node, "uid": "u" }] },
        "spec": { "subnets": blocks },
    }))
}

impl Scenario {
    fn start(config: InvariantConfig) -> Self {
        let pools = [("p".to_owned(), net("10.0.0.0/24"))].into();
        let config = InvariantConfig {
            event_lag: LAG,
            observation_interval: LAG,
            pools,
            ..config
        };
        Self {
            checker: InvariantChecker::new(config),
            now: Instant::now(),
        }
    }

    fn with_grace() -> Self {
        Self::start(InvariantConfig {
            grace: Some(GRACE),
            ..InvariantConfig::default()
        })
    }

    fn active(&mut self, cidr: &str, node: &str) {
        self.observe(&subnet(cidr, node, SubnetState::Active));
    }

    fn orphaned(&mut self, cidr: &str, node: &str) {
        self.observe(&subnet(cidr, node, SubnetState::Orphaned));
    }

    fn observe(&mut self, subnet: &NodeSubnet) {
        self.checker
            .observe_subnet(&ObjectChange::Applied(subnet), self.now);
    }

    fn deleted(&mut self, cidr: &str, node: &str) {
        let subnet = subnet(cidr, node, SubnetState::Orphaned);
        self.checker
            .observe_subnet(&ObjectChange::Deleted(&subnet), self.now);
    }

    fn lists(&mut self, node: &str, blocks: &[&str]) {
        let network = network(node, blocks);
        self.checker
            .observe_network(&ObjectChange::Applied(&network), self.now);
    }

    fn node_created(&mut self, node: &str) {
        self.checker
            .add_node(node, net("192.0.2.1/32").addr(), self.now);
        self.checker.set_node_uid(node, Some("u".to_owned()));
    }

    fn node_deleted(&mut self, node: &str) {
        self.checker.remove_node(node, self.now);
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Expects exactly one violation with this text.
    fn expect_violation(&self, text: &str) {
        let violations = self.checker.violations();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(violations[0].contains(text), "{violations:?}");
    }

    fn expect_no_violation(&self) {
        assert_eq!(self.checker.violations(), [""; 0]);
    }

    fn differences(&self) -> Vec<String> {
        self.checker.differences(|_| 1, false)
    }
}

#[test]
fn overlapping_blocks_are_detected_in_any_order() {
    for [first, second] in [
        ["10.0.0.64/26", "10.0.0.64/26"],
        ["10.0.0.64/26", "10.0.0.96/27"],
        ["10.0.0.96/27", "10.0.0.64/26"],
        ["10.0.0.64/27", "10.0.0.64/26"],
        ["10.0.0.64/26", "10.0.0.64/27"],
    ] {
        let mut scenario = Scenario::with_grace();
        // The names differ, because the API server refuses equal names.
        for (number, (cidr, node)) in [
            ("10.0.0.0/27", "a"),
            (first, "b"),
            ("10.0.0.192/27", "c"),
            (second, "d"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut subnet = subnet(cidr, node, SubnetState::Active);
            subnet.metadata.name = Some(number.to_string());
            scenario.observe(&subnet);
        }
        scenario.expect_violation("of d shares addresses with");
    }
    let mut scenario = Scenario::with_grace();
    for cidr in ["10.0.0.0/26", "10.0.0.128/26", "10.0.0.64/26"] {
        scenario.active(cidr, "a");
    }
    scenario.expect_no_violation();
}

#[test]
fn block_outside_pool_or_of_unknown_pool_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.active("10.0.1.0/26", "a");
    scenario.expect_violation("is outside of its pool p");
    let mut scenario = Scenario::with_grace();
    let mut other = subnet("10.0.0.0/26", "a", SubnetState::Active);
    other.spec.pool = "q".to_owned();
    scenario.observe(&other);
    scenario.expect_violation("is outside of its pool q");
}

#[test]
fn changed_block_node_pool_cidr_or_uid_is_detected() {
    let changes: [fn(&mut NodeSubnet); 4] = [
        |subnet| subnet.spec.node = "b".to_owned(),
        |subnet| subnet.spec.pool = "q".to_owned(),
        |subnet| subnet.spec.cidr = net("10.0.0.0/27"),
        |subnet| subnet.metadata.uid = Some("two".to_owned()),
    ];
    for change in changes {
        let mut scenario = Scenario::with_grace();
        scenario.active("10.0.0.0/26", "a");
        let mut changed = subnet("10.0.0.0/26", "a", SubnetState::Active);
        change(&mut changed);
        scenario.observe(&changed);
        scenario.expect_violation("10-0-0-0-26 was ObservedSubnet");
    }
    let mut scenario = Scenario::with_grace();
    scenario.active("10.0.0.0/26", "a");
    scenario.orphaned("10.0.0.0/26", "a");
    scenario.active("10.0.0.0/26", "a");
    scenario.expect_no_violation();
}

#[test]
fn block_deleted_before_end_of_grace_is_detected() {
    let deleted_after = |grace: Duration| {
        let mut scenario = Scenario::with_grace();
        scenario.active("10.0.0.0/26", "a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.advance(GRACE);
        scenario.active("10.0.0.0/26", "a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.advance(grace / 2);
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.advance(grace / 2);
        scenario.deleted("10.0.0.0/26", "a");
        scenario
    };
    deleted_after(Duration::ZERO).expect_violation("after it was orphaned");
    deleted_after(GRACE - LAG * 2).expect_violation("after it was orphaned");
    deleted_after(GRACE).expect_no_violation();
}

#[test]
fn deletion_of_used_or_listed_active_block_is_detected() {
    let of_node = |lists: &[&str], pods: i64| {
        let mut scenario = Scenario::with_grace();
        scenario.node_created("a");
        scenario.active("10.0.0.0/26", "a");
        scenario.lists("a", &["10.0.0.0/26"]);
        scenario.lists("a", lists);
        scenario.checker.set_pods("a", net("10.0.0.0/26"), pods);
        scenario.deleted("10.0.0.0/26", "a");
        scenario
    };
    of_node(&[], 1).expect_violation("although pods use it");
    of_node(&["10.0.0.0/26"], 0).expect_violation("although the NodeNetwork lists it");
    of_node(&[], 0).expect_no_violation();

    let mut scenario = Scenario::with_grace();
    scenario.node_created("a");
    scenario.active("10.0.0.0/26", "a");
    scenario.node_deleted("a");
    scenario.advance(LAG * 2);
    scenario.deleted("10.0.0.0/26", "a");
    scenario.expect_violation("without a grace period, its Node is deleted");
}

#[test]
fn used_block_removed_from_node_network_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.node_created("a");
    scenario.lists("a", &["10.0.0.0/26", "10.0.0.64/26"]);
    scenario.lists("a", &["10.0.0.0/26"]);
    scenario.expect_no_violation();
    scenario.checker.set_pods("a", net("10.0.0.0/26"), 1);
    scenario.lists("a", &[]);
    scenario.expect_violation("a must not lose 10.0.0.0/26");
}

#[test]
fn lost_block_without_reclaim_rules_is_detected() {
    let mut scenario = Scenario::start(InvariantConfig::default());
    scenario.orphaned("10.0.0.0/26", "a");
    scenario.advance(GRACE * 1000);
    scenario.deleted("10.0.0.0/26", "a");
    scenario.expect_violation("10.0.0.0/26 of a was deleted");
    let mut scenario = Scenario::start(InvariantConfig::default());
    scenario.lists("a", &["10.0.0.0/26"]);
    let network = network("a", &[]);
    scenario
        .checker
        .observe_network(&ObjectChange::Deleted(&network), scenario.now);
    scenario.expect_violation("a must not lose 10.0.0.0/26");
}

#[test]
fn missed_watch_events_are_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.checker.record_missed_events("NodeSubnet");
    scenario.expect_violation("events may be missed");
}
