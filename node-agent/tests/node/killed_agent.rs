//! The agent is killed at each of its netlink requests in turn, started again, and reaches the state of an agent that is not killed.
//!
//! The released agent runs under strace, which kills it when it enters its K-th `sendto` or `sendmsg`: after K-1 requests have reached
//! the kernel. Each K has a new node. `NETWEFT_SWEEP=all` tries every K, otherwise a sample is tried.

use super::lab::{BOTH, BRIDGED, Families, Node, ROUTED, strace, wait_for};
use super::leaked_objects::children_now;
use super::node_snapshot::snapshot;

/// Starts an agent that is killed at its request number `at`. Returns whether it was killed before it was ready.
fn killed_at(node: &Node, at: usize) -> bool {
    let mut arguments = strace("sendto,sendmsg", "KILL", at);
    arguments.extend(node.agent_arguments());
    let mut tracer = node.spawn(&arguments);
    let mut killed = false;
    wait_for("the agent to be killed or ready", || {
        killed = tracer.try_wait().unwrap().is_some();
        if killed {
            Ok(String::new())
        } else {
            node.is_ready()
        }
    });
    if !killed {
        // A ready agent sends further requests, so strace may have killed it in the meantime.
        for agent in children_now(tracer.id()) {
            let _ = node.namespace.command(&format!("kill -KILL {agent}"));
        }
        tracer.wait().unwrap();
    }
    killed && node.is_ready().is_err()
}

#[test]
fn netns_agent_killed_at_any_request_converges() {
    converges(|| Node::new(BOTH), 3, 30);
}

#[test]
fn netns_agent_killed_at_any_request_converges_ipv6() {
    converges(|| Node::new(BOTH.of(Families::Ipv6)), 5, 30);
}

#[test]
fn netns_agent_killed_at_any_request_converges_dual_stack() {
    converges(|| Node::new(BRIDGED.of(Families::Both)), 5, 30);
}

#[test]
fn netns_agent_killed_at_any_request_of_200_nodes_converges() {
    converges(of_two_hundred, 71, 600);
}

/// A node in a cluster of 200 nodes.
fn of_two_hundred() -> Node {
    let node = Node::new(ROUTED);
    for number in 4..=200_u8 {
        let (third, fourth) = (12 + number / 4, number % 4 * 64);
        let subnet = format!(
            "kind: NodeSubnet\nmetadata: {{name: routed-{number}}}\nspec: {{cidr: \"10.244.{third}.{fourth}/26\", pool: routed, \
             node: node-{number}, nodeAddresses: {{ipv4: 192.0.2.{number}}}, state: Active}}"
        );
        node.write_object(&format!("subnet-routed-{number}.yaml"), &subnet);
    }
    node
}

/// Kills the agent at every `stride`-th request, or at every one in a sweep. A sync needs more than `min_requests` requests.
fn converges(new_node: impl Fn() -> Node, stride: usize, min_requests: usize) {
    let sweep = std::env::var("NETWEFT_SWEEP").is_ok_and(|it| it == "all");
    let stride = if sweep { 1 } else { stride };
    let ready = |node: &mut Node| {
        node.start();
        node.wait_until_ready();
    };
    let mut node = new_node();
    ready(&mut node);
    let expected = snapshot(&node);
    assert!(expected.kernel.fdb.len() >= 2);
    drop(node);
    let mut at = 1;
    loop {
        let mut node = new_node();
        if !killed_at(&node, at) {
            break;
        }
        ready(&mut node);
        assert_eq!(
            snapshot(&node),
            expected,
            "killed at request {at}\n{}",
            node.log()
        );
        at += stride;
    }
    println!("a sync needs fewer than {at} requests");
    assert!(at > min_requests, "a sync needs more than {at} requests");
}
