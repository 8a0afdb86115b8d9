//! SIGKILL at every system call of ADD and of DEL: whatever is left, DEL finds it.
//!
//! The plugin is traced (ptrace(2)), all its threads together, and killed at the n-th stop: every system call makes two,
//! one on the way in and one on the way out. Every n is tried with `NETWEFT_SWEEP=all`, else some: an odd
//! stride meets both sides.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[path = "lab/bridged.rs"]
mod bridged;
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod lab;

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use bridged::{left, node_with_bridge};
use lab::{Namespace, Node, environment, skipped};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn stride(short: usize) -> usize {
    if std::env::var("NETWEFT_SWEEP").is_ok_and(|value| value == "all") {
        1
    } else {
        short
    }
}

/// What became of a traced program.
struct Traced {
    stops: usize,
    success: bool,
}

/// Runs the plugin until its `last` stop and kills it there; `None`: to its end.
fn traced(node: &Node, command: &str, pod: &Namespace, last: Option<usize>) -> Traced {
    let mut child = node.spawn(command, &environment("one", &pod.path()));
    let pid = Pid::from_raw(child.id().cast_signed());
    asks_for_its_configuration(pid);
    let options =
        Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(pid, options).expect("trace a program: run as root");
    ptrace::interrupt(pid).unwrap();
    // It has done nothing yet, so nothing is missed.
    let mut input = child.stdin.take().unwrap();
    input.write_all(node.conf().to_string().as_bytes()).unwrap();
    drop(input);
    let traced = follow(pid, last);
    // Reaped already, as a rule.
    let _ = child.wait();
    traced
}

/// Waits until a program sleeps in its first read: stops counted from elsewhere would not compare from run to run.
fn asks_for_its_configuration(pid: Pid) {
    let deadline = Instant::now() + Duration::from_secs(10);
    // proc_pid_stat(5): the state is the letter behind the name.
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") S ")
    {
        assert!(Instant::now() < deadline, "{pid} does not read its input");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn follow(pid: Pid, last: Option<usize>) -> Traced {
    // Only what this thread traces: other tests of this process have children too.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let mut stops = 0;
    loop {
        let (stopped, signal) = match waitpid(None, Some(flags)).unwrap() {
            WaitStatus::Exited(who, code) if who == pid => {
                let success = code == 0;
                return Traced { stops, success };
            }
            WaitStatus::Signaled(who, ..) if who == pid => {
                return Traced {
                    stops,
                    success: false,
                };
            }
            WaitStatus::PtraceSyscall(who) => {
                stops += 1;
                if Some(stops) == last {
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
        // It may be dead by now, which the next wait tells.
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
    let whole = traced(node, "ADD", &pod, None);
    assert!(whole.success && whole.stops > 100, "{} stops", whole.stops);
    assert!(node.del("one", &pod.path()).success);
    let mut cut = 0;
    for last in (1..=whole.stops).step_by(stride(short)) {
        let pod = Namespace::new();
        traced(node, "ADD", &pod, Some(last));
        cut += usize::from(!left(node).is_empty());
        assert!(node.del("one", &pod.path()).success, "after stop {last}");
        assert_eq!(visible(node), Vec::<String>::new(), "after stop {last}");
        assert!(!pod.ip("link show").contains("eth0"), "after stop {last}");
        let again = node.add("one", &pod);
        assert!(again.success, "after stop {last}: {again:?}");
        assert!(node.del("one", &pod.path()).success);
        assert_eq!(left(node), Vec::<String>::new(), "after stop {last}");
    }
    assert!(cut > 9, "only {cut} were cut in the middle");
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
    let whole = traced(node, "DEL", &pod, None);
    assert!(whole.success && whole.stops > 50, "{} stops", whole.stops);
    let mut cut = 0;
    for last in (1..=whole.stops).step_by(stride(short)) {
        let pod = Namespace::new();
        assert!(node.add("one", &pod).success, "before stop {last}");
        let before = left(node).len();
        traced(node, "DEL", &pod, Some(last));
        let after = left(node);
        cut += usize::from(!after.is_empty() && after.len() < before);
        // An address is free only when its link has gone.
        assert!(
            node.records().len() == BLOCKS.len()
                || !after.iter().any(|line| line.contains("link/ether")),
            "after stop {last}: {after:?}"
        );
        assert!(node.del("one", &pod.path()).success, "after stop {last}");
        assert_eq!(visible(node), Vec::<String>::new(), "after stop {last}");
    }
    assert!(cut > 9, "only {cut} were cut in the middle");
}

/// What is left but for a file that a killed writer had begun beside: the next writer removes it.
fn visible(node: &Node) -> Vec<String> {
    let mut left = left(node);
    left.retain(|line| !line.starts_with('.'));
    left
}
