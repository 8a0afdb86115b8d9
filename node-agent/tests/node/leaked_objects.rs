//! The agent takes back what no pod has, while pods come and go, and never what one has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::lab::{BRIDGED, FAMILIES, Families, Namespace, Node, Pod, Pools, ROUTED, strace, until};

/// Longer than the agent's grace.
const CHURN: Duration = Duration::from_secs(7);

#[test]
fn netns_sandbox_ended_without_del_frees_its_addresses() {
    std::thread::scope(|scope| {
        for families in FAMILIES {
            for pools in [ROUTED, BRIDGED] {
                scope.spawn(move || gives_back(pools.of(families)));
            }
        }
    });
}

fn gives_back(pools: Pools) {
    let node = Node::ready(pools);
    let (living, leaked) = (node.add("living"), node.add("leaked"));
    drop(leaked);
    // The kernel takes a namespace down in its own time.
    until("the leak to show", || match node.check() {
        (_, Some(1)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.wait_until_clean();
    let left: Vec<IpAddr> = node.store().allocated().unwrap().into_iter().collect();
    assert_eq!(left, living.addresses, "{pools:?}");
    assert!(living.answers(&node.namespace), "{pools:?}");
    assert!(node.log().contains("released attachment without link"));
}

/// Stopped by a debugger, a frozen cgroup, a suspended machine: however long an ADD takes, its address stays its own.
#[test]
fn netns_add_stopped_before_link_creation_keeps_its_address() {
    let node = Node::ready(ROUTED);
    let space = Namespace::new();
    // Its first request asks whether the link is there, its second makes it.
    let strace = strace("sendto", "STOP", 1);
    let strace: Vec<&str> = strace.iter().map(String::as_str).collect();
    let mut added = node.plugin(&strace, "ADD", "slow", &space.path());
    let slow = until("the record", || {
        let found = node.attachments().pop();
        found.ok_or_else(|| format!("{:?}", added.try_wait()))
    });
    // Beside it something leaks, and when that has been taken back, the agent has looked for long enough.
    drop(node.add("leaked"));
    until("the leak to be taken back", || {
        let taken = node.store().allocated().unwrap();
        if taken.len() == 1 {
            Ok(())
        } else {
            Err(format!("{taken:?}"))
        }
    });
    let links = node.namespace.state().links;
    assert!(
        !links.contains_key(&slow.host_link),
        "it has not made its link yet"
    );
    let tracee = children(added.id())[0];
    assert!(
        node.namespace
            .command(&format!("kill -CONT {tracee}"))
            .status
            .success()
    );
    let slow = Pod::of("slow", space, added).unwrap();
    assert!(slow.answers(&node.namespace));
    assert_eq!(node.check(), (vec![], Some(0)));
}

/// Waits until a process has children.
fn children(pid: u32) -> Vec<u32> {
    until("a child", || {
        let found = children_now(pid);
        (!found.is_empty())
            .then_some(found)
            .ok_or_else(|| "none yet".to_owned())
    })
}

/// The children of a process at this moment.
pub fn children_now(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_whitespace();
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

/// What becomes of a pod, in turns.
#[derive(Clone, Copy)]
enum Fate {
    /// Lives to the end.
    Stay,
    /// Is deleted as it should be.
    Deleted,
    /// Its sandbox ends, and nobody calls DEL.
    Forgotten,
    /// Its ADD is killed somewhere, its sandbox ends, and nobody calls DEL.
    Killed,
}

struct Churn<'a> {
    node: &'a Node,
    living: Vec<Pod>,
    passing: Vec<(Pod, Fate)>,
    made: usize,
    cut: usize,
}

impl Churn<'_> {
    fn step(&mut self, fate: Fate) {
        self.made += 1;
        let container = format!("pod-{}", self.made);
        let space = Namespace::new();
        let mut added = self.node.plugin(&[], "ADD", &container, &space.path());
        if matches!(fate, Fate::Killed) {
            let micros = (self.made as u64 * 379) % 8000;
            std::thread::sleep(Duration::from_micros(micros));
            added.kill().unwrap();
            let output = added.wait_with_output().unwrap();
            self.cut += usize::from(!output.status.success());
            return;
        }
        let pod = Pod::of(&container, space, added)
            .unwrap_or_else(|said| panic!("{said}\n{}", self.node.log()));
        let others = self.passing.iter().map(|(pod, _)| pod).chain(&self.living);
        let mut others =
            others.filter(|other| other.addresses.iter().any(|ip| pod.addresses.contains(ip)));
        assert!(
            others.next().is_none(),
            "{:?} twice\n{}",
            pod.addresses,
            self.node.log()
        );
        match fate {
            Fate::Stay => self.living.push(pod),
            Fate::Deleted | Fate::Forgotten | Fate::Killed => self.passing.push((pod, fate)),
        }
        if self.passing.len() > 4 {
            let (pod, fate) = self.passing.remove(0);
            if matches!(fate, Fate::Deleted) {
                self.node.del(&pod);
            }
        }
    }

    fn all_live(&self) {
        let taken = self.node.store().allocated().unwrap();
        for pod in self.passing.iter().map(|(pod, _)| pod).chain(&self.living) {
            assert!(
                pod.addresses.iter().all(|ip| taken.contains(ip)),
                "{:?} was freed\n{}",
                pod.addresses,
                self.node.log()
            );
            assert!(
                pod.answers(&self.node.namespace),
                "{:?}\n{}",
                pod.addresses,
                self.node.log()
            );
        }
    }
}

#[test]
fn netns_sweep_race_with_routed_pods_loses_nothing() {
    race(ROUTED);
}

#[test]
fn netns_sweep_race_with_bridged_pods_loses_nothing() {
    race(BRIDGED);
}

#[test]
fn netns_sweep_race_with_dual_stack_pods_loses_nothing() {
    race(ROUTED.of(Families::Both));
}

#[test]
fn netns_sweep_race_with_bridged_ipv6_pods_loses_nothing() {
    race(BRIDGED.of(Families::Ipv6));
}

fn race(pools: Pools) {
    let node = Node::ready(pools);
    let mut churn = Churn {
        node: &node,
        living: vec![],
        passing: vec![],
        made: 0,
        cut: 0,
    };
    let end = Instant::now() + CHURN;
    // Not more than the block has addresses for, should nothing be taken back.
    while Instant::now() < end && churn.made < 900 {
        for fate in [Fate::Deleted, Fate::Forgotten, Fate::Killed, Fate::Deleted] {
            churn.step(fate);
        }
        if churn.living.len() < 5 {
            churn.step(Fate::Stay);
        }
        if churn.made % 20 < 5 {
            churn.all_live();
        }
    }
    churn.all_live();
    assert!(
        ["removed orphaned object", "released attachment"]
            .iter()
            .any(|swept| node.log().contains(swept)),
        "nothing was swept meanwhile"
    );
    let Churn {
        living,
        passing,
        made,
        cut,
        ..
    } = churn;
    for (pod, _) in &passing {
        node.del(pod);
    }
    drop(passing);
    node.wait_until_clean();
    let left: BTreeSet<IpAddr> = node.store().allocated().unwrap();
    let addresses = living.iter().flat_map(|pod| pod.addresses.clone());
    assert_eq!(left, addresses.collect());
    assert!(cut >= 3, "only {cut} of {made} were cut in the middle");
    for pod in &living {
        assert!(pod.answers(&node.namespace));
        node.del(pod);
    }
    assert_eq!(node.check(), (vec![], Some(0)));
    println!("{made} pods, {cut} killed in their ADD");
}
