//! SIGKILL at every system call of ADD and of DEL: DEL removes whatever is left.
//!
//! The plugin is traced with all its threads (ptrace(2)) and killed at the n-th stop. Every system call has two stops, at
//! entry and at exit. With `NETWEFT_SWEEP=all` every n is tested, else every k-th: an odd k covers entries and exits.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[path = "netns_node/bridge_node.rs"]
mod bridge_node;
#[expect(dead_code, reason = "other tests use the rest")]
mod netns_node;

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use bridge_node::{leftovers, node_with_bridge};
use netns_node::{Namespace, Node, environment, skipped};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn stride(short: usize) -> usize {
    if std::env::var("NETWEFT_SWEEP").is_ok_and(|value| value == "all") {
        1
    } else {
        short
    }
}

/// The result of a traced run.
struct TracedRun {
    stops: usize,
    success: bool,
}

/// Runs the plugin and kills it at stop number `kill_at`, if any.
fn trace(node: &Node, command: &str, pod: &Namespace, kill_at: Option<usize>) -> TracedRun {
    let mut child = node.spawn(command, &environment("one", &pod.path()));
    let pid = Pid::from_raw(child.id().cast_signed());
    wait_for_first_read(pid);
    let options =
        Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(pid, options).expect("trace a program: run as root");
    ptrace::interrupt(pid).unwrap();
    // The plugin has not read its input yet, so no system call of its work is missed.
    let mut input = child.stdin.take().unwrap();
    input.write_all(node.conf().to_string().as_bytes()).unwrap();
    drop(input);
    let run = follow(pid, kill_at);
    // Usually reaped by `follow`.
    let _ = child.wait();
    run
}

/// Waits until a program sleeps in its first read, so that the stops of all runs are counted from the same system call.
fn wait_for_first_read(pid: Pid) {
    let deadline = Instant::now() + Duration::from_secs(10);
    // proc_pid_stat(5): the state is the letter after the name.
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") S ")
    {
        assert!(Instant::now() < deadline, "{pid} does not read its input");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn follow(pid: Pid, kill_at: Option<usize>) -> TracedRun {
    // Only processes that this thread traces: other tests of this process have children too.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let mut stops = 0;
    loop {
        let (stopped, signal) = match waitpid(None, Some(flags)).unwrap() {
            WaitStatus::Exited(who, code) if who == pid => {
                let success = code == 0;
                return TracedRun { stops, success };
            }
            WaitStatus::Signaled(who, ..) if who == pid => {
                return TracedRun {
                    stops,
                    success: false,
                };
            }
            WaitStatus::PtraceSyscall(who) => {
                stops += 1;
                if Some(stops) == kill_at {
                    kill(pid, Signal::SIGKILL).unwrap();
                    continue;
                }
                (who, None)
            }
            WaitStatus::PtraceEvent(who, ..) => (who, None),
            WaitStatus::Stopped(who, signal) => (who, Some(signal)),
            // Another thread has ended.
            _ => continue,
        };
        // Fails if the process has died, which the next wait reports.
        let _ = ptrace::syscall(stopped, signal);
    }
}

#[test]
fn netns_add_killed_at_any_syscall_is_cleaned_up_by_del() {
    if !skipped() {
        add_killed(&Node::new(&BLOCKS), 17);
    }
}

#[test]
fn netns_bridge_add_killed_at_any_syscall_is_cleaned_up_by_del() {
    if !skipped() {
        add_killed(&node_with_bridge(&BLOCKS), 41);
    }
}

fn add_killed(node: &Node, short: usize) {
    let pod = Namespace::new();
    let complete = trace(node, "ADD", &pod, None);
    assert!(
        complete.success && complete.stops > 100,
        "{} stops",
        complete.stops
    );
    assert!(node.del("one", &pod.path()).success);
    let mut interrupted = 0;
    for stop in (1..=complete.stops).step_by(stride(short)) {
        let pod = Namespace::new();
        trace(node, "ADD", &pod, Some(stop));
        interrupted += usize::from(!leftovers(node).is_empty());
        assert!(node.del("one", &pod.path()).success, "after stop {stop}");
        assert_eq!(visible(node), Vec::<String>::new(), "after stop {stop}");
        assert!(!pod.ip("link show").contains("eth0"), "after stop {stop}");
        let again = node.add("one", &pod);
        assert!(again.success, "after stop {stop}: {again:?}");
        assert!(node.del("one", &pod.path()).success);
        assert_eq!(leftovers(node), Vec::<String>::new(), "after stop {stop}");
    }
    assert!(
        interrupted > 9,
        "only {interrupted} were killed before the end"
    );
}

#[test]
fn netns_del_killed_at_any_syscall_is_finished_by_next() {
    if !skipped() {
        del_killed(&Node::new(&BLOCKS), 3);
    }
}

#[test]
fn netns_bridge_del_killed_at_any_syscall_is_finished_by_next() {
    if !skipped() {
        del_killed(&node_with_bridge(&BLOCKS), 5);
    }
}

fn del_killed(node: &Node, short: usize) {
    let pod = Namespace::new();
    assert!(node.add("one", &pod).success);
    let complete = trace(node, "DEL", &pod, None);
    assert!(
        complete.success && complete.stops > 50,
        "{} stops",
        complete.stops
    );
    let mut interrupted = 0;
    for stop in (1..=complete.stops).step_by(stride(short)) {
        let pod = Namespace::new();
        assert!(node.add("one", &pod).success, "before stop {stop}");
        let before = leftovers(node).len();
        trace(node, "DEL", &pod, Some(stop));
        let after = leftovers(node);
        interrupted += usize::from(!after.is_empty() && after.len() < before);
        // An address is released only after its link is deleted.
        assert!(
            node.records().len() == BLOCKS.len()
                || !after.iter().any(|line| line.contains("link/ether")),
            "after stop {stop}: {after:?}"
        );
        assert!(node.del("one", &pod.path()).success, "after stop {stop}");
        assert_eq!(visible(node), Vec::<String>::new(), "after stop {stop}");
    }
    assert!(
        interrupted > 9,
        "only {interrupted} were killed before the end"
    );
}

/// The leftovers without the temporary file of a killed process, which the next ADD removes.
fn visible(node: &Node) -> Vec<String> {
    let mut visible = leftovers(node);
    visible.retain(|line| !line.starts_with('.'));
    visible
}
