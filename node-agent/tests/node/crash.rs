//! The agent is killed at each of its netlink requests in turn, started again, and ends where an undisturbed one does.
//!
//! The released agent runs under strace, which kills it on entering its K-th `sendto` or `sendmsg`: after K-1 requests have
//! reached the kernel. Every K is a run of its own on a new node. Every K is tried with `NETWEFT_SWEEP=all`, else some.

use super::lab::{BOTH, BRIDGED, Families, Node, ROUTED, strace, until};
use super::leaked_objects::children_now;
use super::node_state::picture;

/// Starts an agent that is killed at its request number `at`. Says whether it was before it was done.
fn killed_at(node: &Node, at: usize) -> bool {
    let mut arguments = strace("sendto,sendmsg", "KILL", at);
    arguments.extend(node.agent_arguments());
    let mut tracer = node.spawn(&arguments);
    let mut killed = false;
    until("the agent to be killed or ready", || {
        killed = tracer.try_wait().unwrap().is_some();
        if killed {
            Ok(String::new())
        } else {
            node.is_ready()
        }
    });
    if !killed {
        // A ready agent goes on with requests, so strace may have killed it by now.
        for agent in children_now(tracer.id()) {
            let _ = node.namespace.command(&format!("kill -KILL {agent}"));
        }
        tracer.wait().unwrap();
    }
    killed && node.is_ready().is_err()
}

#[test]
fn netns_agent_killed_at_any_request_converges() {
    is_killed_at_each(|| Node::new(BOTH), 3, 30);
}

#[test]
fn netns_agent_killed_at_any_request_converges_ipv6() {
    is_killed_at_each(|| Node::new(BOTH.of(Families::Ipv6)), 5, 30);
}

#[test]
fn netns_agent_killed_at_any_request_converges_dual_stack() {
    is_killed_at_each(|| Node::new(BRIDGED.of(Families::Both)), 5, 30);
}

#[test]
fn netns_agent_killed_at_any_request_of_200_nodes_converges() {
    is_killed_at_each(among_two_hundred, 71, 600);
}

/// A node that shares its pool with 199 others.
fn among_two_hundred() -> Node {
    let node = Node::new(ROUTED);
    for number in 4..=200_u8 {
        let (third, fourth) = (12 + number / 4, number % 4 * 64);
        let subnet = format!(
            "kind: NodeSubnet\nmetadata: {{name: routed-{number}}}\nspec: {{cidr: \"10.244.{third}.{fourth}/26\", pool: routed, \
             node: node-{number}, nodeAddresses: {{ipv4: 192.0.2.{number}}}, state: Active}}"
        );
        node.declare(&format!("subnet-routed-{number}.yaml"), &subnet);
    }
    node
}

/// Kills the agent at every `stride`-th request, or at every one in a sweep. A sync takes more than `least` requests.
fn is_killed_at_each(make: impl Fn() -> Node, stride: usize, least: usize) {
    let sweep = std::env::var("NETWEFT_SWEEP").is_ok_and(|how| how == "all");
    let stride = if sweep { 1 } else { stride };
    let ready = |node: &mut Node| {
        node.start();
        node.wait_until_ready();
    };
    let mut node = make();
    ready(&mut node);
    let undisturbed = picture(&node);
    assert!(undisturbed.kernel.fdb.len() >= 2);
    drop(node);
    let mut at = 1;
    loop {
        let mut node = make();
        if !killed_at(&node, at) {
            break;
        }
        ready(&mut node);
        assert_eq!(
            picture(&node),
            undisturbed,
            "killed at request {at}\n{}",
            node.log()
        );
        at += stride;
    }
    println!("a sync is done before request {at}");
    assert!(at > least, "a sync takes more than {at} requests");
}
