//! The agent is killed at each of its netlink requests in turn, started again, and ends where an undisturbed one does.
//!
//! The released agent runs under strace, which kills it on entering its K-th `sendto` or `sendmsg`: after K-1 requests have
//! reached the kernel. Every K is a run of its own on a new node.

use super::lab::{BOTH, BRIDGED, Families, Node, Pools, until};
use super::picture::picture;
use super::sweep::children;

/// Starts an agent that is killed at its request number `at`. Says whether it was before it was done.
fn killed_at(node: &Node, at: usize) -> bool {
    let strace = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=sendto,sendmsg",
        "-e",
    ];
    let mut arguments: Vec<String> = strace.iter().map(ToString::to_string).collect();
    arguments.push(format!("inject=sendto,sendmsg:signal=KILL:when={at}"));
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
        for agent in children(tracer.id()) {
            // Ready, it goes on looking, and may have met its last request by now.
            let _ = node.namespace.command(&format!("kill -KILL {agent}"));
        }
        tracer.wait().unwrap();
    }
    killed && node.is_ready().is_err()
}

#[test]
fn netns_killed_at_any_request_the_agent_ends_where_it_would_have() {
    is_killed_at_each(BOTH);
}

#[test]
fn netns_killed_at_any_request_the_agent_ends_where_it_would_have_with_ipv6() {
    is_killed_at_each(BOTH.of(Families::Ipv6));
}

#[test]
fn netns_killed_at_any_request_the_agent_ends_where_it_would_have_with_both_families() {
    is_killed_at_each(BRIDGED.of(Families::Both));
}

fn is_killed_at_each(pools: Pools) {
    let undisturbed = picture(&Node::ready(pools));
    assert_eq!(undisturbed.kernel.fdb.len(), 2);
    let mut at = 1;
    loop {
        let mut node = Node::new(pools);
        if !killed_at(&node, at) {
            break;
        }
        node.start();
        node.wait_until_ready();
        assert_eq!(
            picture(&node),
            undisturbed,
            "killed at request {at}\n{}",
            node.log()
        );
        at += 1;
    }
    println!("a sync is done before request {at}");
    assert!(at > 30, "a sync of two pools takes more than {at} requests");
}
