//! Firewalls of others that drop what pods send or receive.

use std::process::Command;
use std::time::Duration;

use super::lab::{Namespace, Node, ROUTED, network, until};

fn wait_until_it_says(node: &Node, words: &str) -> String {
    until("the agent to say what the firewall does", || {
        let said = node.is_ready()?;
        said.contains(words).then_some(said.clone()).ok_or(said)
    })
}

fn run(node: &Node, line: &str) {
    let output = node
        .namespace
        .run(|| Command::new("sh").args(["-ec", line]).output().unwrap());
    assert!(output.status.success(), "{line}: {output:?}");
}

/// Takes the command that the sentence quotes out of it, and runs it.
fn obey(node: &Node, said: &str) {
    for command in said.split('`').skip(1).step_by(2) {
        run(node, command);
    }
}

#[test]
fn netns_chain_dropping_pods_is_reported_until_fixed() {
    for (chain, words) in [
        (
            "nft 'table inet strict { chain forward { type filter hook forward priority 0; policy drop; }; }'",
            "chain forward of the nftables table inet strict",
        ),
        (
            "nft 'table ip strict { chain forward { type filter hook forward priority 0; ct state established accept; reject; }; }'",
            "chain forward of the nftables table ip strict",
        ),
    ] {
        let mut node = Node::new(ROUTED);
        run(&node, chain);
        node.start();
        let said = wait_until_it_says(&node, words);
        obey(&node, &said);
        // The ruleset is read once a minute, and at the start.
        node.kill_agent();
        std::fs::remove_file(node.path("run/status.yaml")).unwrap();
        node.start();
        node.wait_until_ready();
        std::thread::sleep(Duration::from_secs(2));
        let said = node.is_ready().unwrap();
        assert!(!said.contains(words), "{said}");
    }
}

/// A node in mode host-gw, and node two, which answers at its address in its block.
fn with_neighbour(ruleset: &str) -> (Node, Namespace) {
    let node = Node::new(ROUTED);
    let text = network(ROUTED, &["10.244.0.0/22".into()], &["routed".into()]);
    node.declare(
        "network.yaml",
        &text.replace("transport: {vxlan: {}}", "transport: {direct: {}}"),
    );
    let other = Namespace::new();
    node.namespace
        .ip(&format!("link set far0 netns {}", other.path()));
    for line in [
        "link set lo up",
        "link set far0 addrgenmode none up",
        "address add 192.0.2.2/24 dev far0",
        "address add 10.244.4.1/32 dev lo",
        "route add 10.244.0.0/22 via 192.0.2.1",
    ] {
        other.ip(line);
    }
    run(&node, ruleset);
    (node, other)
}

/// The names of the links for the probe.
fn probe_links(node: &Node) -> usize {
    let links = node.namespace.ip("-oneline link show");
    links.matches(": nwprobe").count()
}

/// The reading takes the chain for one that drops: it does not understand a match of addresses.
#[test]
fn netns_passing_probe_clears_finding_of_uninterpreted_rule() {
    let (mut node, _other) = with_neighbour(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; oifname \"nw*\" accept; ip saddr 10.244.0.0/16 accept; }; }'",
    );
    node.start();
    until("the probe to pass", || {
        let said = node.is_ready()?;
        let passed = probe_links(&node) == 2 && !said.contains("chain forward");
        passed.then_some(()).ok_or(said)
    });
}

#[test]
fn netns_dropped_probe_makes_node_not_ready_and_names_chain() {
    let (mut node, _other) = with_neighbour(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }; }'",
    );
    node.start();
    let said = node.wait_until_it_says("ForeignObject");
    let words = "chain forward of the nftables table ip strict drops packets of pods, as a probe shows: allow these packets with";
    assert!(said.starts_with(words), "{said}");
    obey(&node, &said);
    node.kill_agent();
    node.start();
    until("the node to be ready without links for a probe", || {
        let said = node.is_ready()?;
        (probe_links(&node) == 0).then_some(()).ok_or(said)
    });
}

/// Where no other node answers, the ruleset alone counts.
#[test]
fn netns_probe_without_direct_reply_keeps_ruleset_finding() {
    let (mut node, other) = with_neighbour(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; }; }'",
    );
    other.ip("link set far0 down");
    node.start();
    let said = wait_until_it_says(&node, "chain forward of the nftables table ip strict");
    assert!(said.contains("no rule that netweft understands"), "{said}");
}
