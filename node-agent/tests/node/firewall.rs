//! Firewalls of others that drop what pods send or receive.

use std::process::Command;
use std::time::Duration;

use super::lab::{Node, ROUTED, until};

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
fn netns_chain_that_drops_pods_is_named_until_its_command_is_run() {
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
