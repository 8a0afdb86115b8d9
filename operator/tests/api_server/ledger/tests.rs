//! Planted breaches: each has to be found, and what is in order has not.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_crds::{NodeAddresses, NodeNetwork, NodeSubnet, NodeSubnetSpec, SubnetState};
use serde_json::json;

use super::{Book, Change, Rules};
use crate::objects::object;

mod order;
mod settled;

const GRACE: Duration = Duration::from_secs(10);
const LAG: Duration = Duration::from_secs(1);

/// A book with a clock.
struct Scenario {
    book: Book,
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
    fn begin(rules: Rules) -> Self {
        let pools = [("p".to_owned(), net("10.0.0.0/24"))].into();
        let rules = Rules {
            lag: LAG,
            look: LAG,
            pools,
            ..rules
        };
        Self {
            book: Book::new(rules),
            now: Instant::now(),
        }
    }

    fn with_grace() -> Self {
        Self::begin(Rules {
            grace: Some(GRACE),
            ..Rules::default()
        })
    }

    fn is(&mut self, cidr: &str, node: &str) {
        self.sees(&subnet(cidr, node, SubnetState::Active));
    }

    fn orphaned(&mut self, cidr: &str, node: &str) {
        self.sees(&subnet(cidr, node, SubnetState::Orphaned));
    }

    fn sees(&mut self, subnet: &NodeSubnet) {
        self.book.subnet(&Change::Is(subnet), self.now);
    }

    fn gone(&mut self, cidr: &str, node: &str) {
        let subnet = subnet(cidr, node, SubnetState::Orphaned);
        self.book.subnet(&Change::Gone(&subnet), self.now);
    }

    fn lists(&mut self, node: &str, blocks: &[&str]) {
        let network = network(node, blocks);
        self.book.network(&Change::Is(&network), self.now);
    }

    fn comes(&mut self, node: &str) {
        self.book
            .node_comes(node, net("192.0.2.1/32").addr(), self.now);
        self.book.node_is(node, Some("u".to_owned()));
    }

    fn goes(&mut self, node: &str) {
        self.book.node_goes(node, self.now);
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }

    /// The one breach says this.
    fn breach(&self, words: &str) {
        let breaches = self.book.breaches();
        assert_eq!(breaches.len(), 1, "{breaches:?}");
        assert!(breaches[0].contains(words), "{breaches:?}");
    }

    fn is_in_order(&self) {
        assert_eq!(self.book.breaches(), [""; 0]);
    }

    fn unsettled(&self) -> Vec<String> {
        self.book.unsettled(|_| 1, false)
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
        // By other names, as no API server would let them be.
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
            scenario.sees(&subnet);
        }
        scenario.breach("of d shares addresses with");
    }
    let mut scenario = Scenario::with_grace();
    for cidr in ["10.0.0.0/26", "10.0.0.128/26", "10.0.0.64/26"] {
        scenario.is(cidr, "a");
    }
    scenario.is_in_order();
}

#[test]
fn block_outside_pool_or_of_unknown_pool_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.is("10.0.1.0/26", "a");
    scenario.breach("does not lie in its pool p");
    let mut scenario = Scenario::with_grace();
    let mut other = subnet("10.0.0.0/26", "a", SubnetState::Active);
    other.spec.pool = "q".to_owned();
    scenario.sees(&other);
    scenario.breach("does not lie in its pool q");
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
        scenario.is("10.0.0.0/26", "a");
        let mut changed = subnet("10.0.0.0/26", "a", SubnetState::Active);
        change(&mut changed);
        scenario.sees(&changed);
        scenario.breach("10-0-0-0-26 was Held");
    }
    let mut scenario = Scenario::with_grace();
    scenario.is("10.0.0.0/26", "a");
    scenario.orphaned("10.0.0.0/26", "a");
    scenario.is("10.0.0.0/26", "a");
    scenario.is_in_order();
}

#[test]
fn block_deleted_before_end_of_grace_is_detected() {
    let deleted_after = |grace: Duration| {
        let mut scenario = Scenario::with_grace();
        scenario.is("10.0.0.0/26", "a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.later(GRACE);
        scenario.is("10.0.0.0/26", "a");
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.later(grace / 2);
        scenario.orphaned("10.0.0.0/26", "a");
        scenario.later(grace / 2);
        scenario.gone("10.0.0.0/26", "a");
        scenario
    };
    deleted_after(Duration::ZERO).breach("after it was orphaned");
    deleted_after(GRACE - LAG * 2).breach("after it was orphaned");
    deleted_after(GRACE).is_in_order();
}

#[test]
fn deletion_of_used_or_listed_active_block_is_detected() {
    let of_node = |lists: &[&str], pods: i64| {
        let mut scenario = Scenario::with_grace();
        scenario.comes("a");
        scenario.is("10.0.0.0/26", "a");
        scenario.lists("a", &["10.0.0.0/26"]);
        scenario.lists("a", lists);
        scenario.book.uses("a", net("10.0.0.0/26"), pods);
        scenario.gone("10.0.0.0/26", "a");
        scenario
    };
    of_node(&[], 1).breach("has pods in it");
    of_node(&["10.0.0.0/26"], 0).breach("may hand out from it");
    of_node(&[], 0).is_in_order();

    let mut scenario = Scenario::with_grace();
    scenario.comes("a");
    scenario.is("10.0.0.0/26", "a");
    scenario.goes("a");
    scenario.later(LAG * 2);
    scenario.gone("10.0.0.0/26", "a");
    scenario.breach("which is gone, without a grace");
}

#[test]
fn used_block_removed_from_node_network_is_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.comes("a");
    scenario.lists("a", &["10.0.0.0/26", "10.0.0.64/26"]);
    scenario.lists("a", &["10.0.0.0/26"]);
    scenario.is_in_order();
    scenario.book.uses("a", net("10.0.0.0/26"), 1);
    scenario.lists("a", &[]);
    scenario.breach("a may no longer use 10.0.0.0/26");
}

#[test]
fn lost_block_without_reclaim_rules_is_detected() {
    let mut scenario = Scenario::begin(Rules::default());
    scenario.orphaned("10.0.0.0/26", "a");
    scenario.later(GRACE * 1000);
    scenario.gone("10.0.0.0/26", "a");
    scenario.breach("10.0.0.0/26 was taken from a");
    let mut scenario = Scenario::begin(Rules::default());
    scenario.lists("a", &["10.0.0.0/26"]);
    let network = network("a", &[]);
    scenario.book.network(&Change::Gone(&network), scenario.now);
    scenario.breach("a may no longer use 10.0.0.0/26");
}

#[test]
fn missed_watch_events_are_detected() {
    let mut scenario = Scenario::with_grace();
    scenario.book.blind("NodeSubnet");
    scenario.breach("not every event was seen");
}
