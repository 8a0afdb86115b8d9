//! Firewalls of other programs that drop packets of pods.

use std::process::Command;
use std::time::Duration;

use super::lab::{Namespace, Node, ROUTED, network, wait_for};

fn wait_for_message(node: &Node, expected: &str) -> String {
    wait_for("the message about the firewall", || {
        let message = node.is_ready()?;
        message
            .contains(expected)
            .then_some(message.clone())
            .ok_or(message)
    })
}

fn run(node: &Node, line: &str) {
    let output = node
        .namespace
        .run(|| Command::new("sh").args(["-ec", line]).output().unwrap());
    assert!(output.status.success(), "{line}: {output:?}");
}

/// Runs the commands that a message contains.
fn run_remedy(node: &Node, message: &str) {
    for command in message.split('`').skip(1).step_by(2) {
        run(node, command);
    }
}

#[test]
fn netns_chain_dropping_pods_is_reported_until_fixed() {
    for (chain, expected) in [
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
        let message = wait_for_message(&node, expected);
        run_remedy(&node, &message);
        // The ruleset is read once a minute, and at the start.
        node.kill_agent();
        std::fs::remove_file(node.path("run/status.yaml")).unwrap();
        node.start();
        node.wait_until_ready();
        std::thread::sleep(Duration::from_secs(2));
        let message = node.is_ready().unwrap();
        assert!(!message.contains(expected), "{message}");
    }
}

/// A node in mode host-gw, and node two, which replies at its address in its block.
fn with_node_two(ruleset: &str) -> (Node, Namespace) {
    let node = Node::new(ROUTED);
    let text = network(ROUTED, &["10.244.0.0/22".into()], &["routed".into()]);
    node.write_object(
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

/// The number of links of the probe.
fn probe_links(node: &Node) -> usize {
    let links = node.namespace.ip("-oneline link show");
    links.matches(": nwprobe").count()
}

/// The agent does not interpret a match of addresses, so the ruleset alone indicates a drop.
#[test]
fn netns_passing_probe_clears_finding_of_uninterpreted_rule() {
    let (mut node, _other) = with_node_two(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; oifname \"nw*\" accept; ip saddr 10.244.0.0/16 accept; }; }'",
    );
    node.start();
    wait_for("the probe to pass", || {
        let message = node.is_ready()?;
        let passed = probe_links(&node) == 2 && !message.contains("chain forward");
        passed.then_some(()).ok_or(message)
    });
}

#[test]
fn netns_dropped_probe_makes_node_not_ready_and_names_chain() {
    let (mut node, _other) = with_node_two(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }; }'",
    );
    node.start();
    let message = node.wait_for_reason("ForeignObject");
    let expected = "chain forward of the nftables table ip strict drops packets of pods, as a probe shows: allow these packets with";
    assert!(message.starts_with(expected), "{message}");
    run_remedy(&node, &message);
    node.kill_agent();
    node.start();
    wait_for("the node to be ready without links for a probe", || {
        let message = node.is_ready()?;
        (probe_links(&node) == 0).then_some(()).ok_or(message)
    });
}

/// If no other node replies, only the ruleset counts.
#[test]
fn netns_probe_without_direct_reply_keeps_ruleset_finding() {
    let (mut node, other) = with_node_two(
        "nft 'table ip strict { chain forward { type filter hook forward priority 0; policy drop; }; }'",
    );
    other.ip("link set far0 down");
    node.start();
    let message = wait_for_message(&node, "chain forward of the nftables table ip strict");
    assert!(
        message.contains("no rule that netweft understands"),
        "{message}"
    );
}
