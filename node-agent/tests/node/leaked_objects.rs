//! The agent reclaims objects without a pod while pods start and end, and never objects of a pod.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::lab::{
    BRIDGED, FAMILIES, Families, Namespace, Node, Pod, Pools, ROUTED, strace, wait_for,
};

/// Longer than the grace period of the agent.
const CHURN: Duration = Duration::from_secs(7);

#[test]
fn netns_sandbox_ended_without_del_frees_its_addresses() {
    std::thread::scope(|scope| {
        for families in FAMILIES {
            for pools in [ROUTED, BRIDGED] {
                scope.spawn(move || reclaims(pools.of(families)));
            }
        }
    });
}

fn reclaims(pools: Pools) {
    let node = Node::ready(pools);
    let (running, leaked) = (node.add("running"), node.add("leaked"));
    drop(leaked);
    // The kernel deletes a namespace asynchronously.
    wait_for("the leak", || match node.check() {
        (_, Some(1)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.wait_until_clean();
    let left: Vec<IpAddr> = node.store().allocated().unwrap().into_iter().collect();
    assert_eq!(left, running.addresses, "{pools:?}");
    assert!(running.is_reachable_from(&node.namespace), "{pools:?}");
    assert!(node.log().contains("released attachment without link"));
}

/// An ADD keeps its address however long it takes: it may be stopped by a debugger, a frozen cgroup or a suspended machine.
#[test]
fn netns_add_stopped_before_link_creation_keeps_its_address() {
    let node = Node::ready(ROUTED);
    let space = Namespace::new();
    // The first request reads the link, the second creates it.
    let strace = strace("sendto", "STOP", 1);
    let strace: Vec<&str> = strace.iter().map(String::as_str).collect();
    let mut added = node.plugin(&strace, "ADD", "slow", &space.path());
    let slow = wait_for("the record", || {
        let found = node.attachments().pop();
        found.ok_or_else(|| format!("{:?}", added.try_wait()))
    });
    // When the agent has reclaimed another leak, the grace period of the stopped ADD would be over, too.
    drop(node.add("leaked"));
    wait_for("the leak to be reclaimed", || {
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
        "the link does not exist yet"
    );
    let tracee = children(added.id())[0];
    assert!(
        node.namespace
            .command(&format!("kill -CONT {tracee}"))
            .status
            .success()
    );
    let slow = Pod::of("slow", space, added).unwrap();
    assert!(slow.is_reachable_from(&node.namespace));
    assert_eq!(node.check(), (vec![], Some(0)));
}

/// Waits for children of a process.
fn children(pid: u32) -> Vec<u32> {
    wait_for("a child", || {
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

/// How a pod ends.
#[derive(Clone, Copy)]
enum Fate {
    /// The pod runs until the end of the test.
    Running,
    /// The pod is deleted by DEL.
    Deleted,
    /// The sandbox ends without DEL.
    Leaked,
    /// The ADD is killed, and the sandbox ends without DEL.
    Killed,
}

struct Churn<'a> {
    node: &'a Node,
    running: Vec<Pod>,
    ending: Vec<(Pod, Fate)>,
    created: usize,
    killed: usize,
}

impl Churn<'_> {
    fn step(&mut self, fate: Fate) {
        self.created += 1;
        let container = format!("pod-{}", self.created);
        let space = Namespace::new();
        let mut added = self.node.plugin(&[], "ADD", &container, &space.path());
        if matches!(fate, Fate::Killed) {
            let micros = (self.created as u64 * 379) % 8000;
            std::thread::sleep(Duration::from_micros(micros));
            added.kill().unwrap();
            let output = added.wait_with_output().unwrap();
            self.killed += usize::from(!output.status.success());
            return;
        }
        let pod = Pod::of(&container, space, added)
            .unwrap_or_else(|message| panic!("{message}\n{}", self.node.log()));
        let others = self.ending.iter().map(|(pod, _)| pod).chain(&self.running);
        let mut others =
            others.filter(|other| other.addresses.iter().any(|ip| pod.addresses.contains(ip)));
        assert!(
            others.next().is_none(),
            "{:?} twice\n{}",
            pod.addresses,
            self.node.log()
        );
        match fate {
            Fate::Running => self.running.push(pod),
            Fate::Deleted | Fate::Leaked | Fate::Killed => self.ending.push((pod, fate)),
        }
        if self.ending.len() > 4 {
            let (pod, fate) = self.ending.remove(0);
            if matches!(fate, Fate::Deleted) {
                self.node.del(&pod);
            }
        }
    }

    fn assert_all_reachable(&self) {
        let taken = self.node.store().allocated().unwrap();
        for pod in self.ending.iter().map(|(pod, _)| pod).chain(&self.running) {
            assert!(
                pod.addresses.iter().all(|ip| taken.contains(ip)),
                "{:?} was freed\n{}",
                pod.addresses,
                self.node.log()
            );
            assert!(
                pod.is_reachable_from(&self.node.namespace),
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
        running: vec![],
        ending: vec![],
        created: 0,
        killed: 0,
    };
    let end = Instant::now() + CHURN;
    // At most the number of addresses of the block, in case nothing is reclaimed.
    while Instant::now() < end && churn.created < 900 {
        for fate in [Fate::Deleted, Fate::Leaked, Fate::Killed, Fate::Deleted] {
            churn.step(fate);
        }
        if churn.running.len() < 5 {
            churn.step(Fate::Running);
        }
        if churn.created % 20 < 5 {
            churn.assert_all_reachable();
        }
    }
    churn.assert_all_reachable();
    assert!(
        ["removed orphaned object", "released attachment"]
            .iter()
            .any(|line| node.log().contains(line)),
        "nothing was reclaimed meanwhile"
    );
    let Churn {
        running,
        ending,
        created,
        killed,
        ..
    } = churn;
    for (pod, _) in &ending {
        node.del(pod);
    }
    drop(ending);
    node.wait_until_clean();
    let left: BTreeSet<IpAddr> = node.store().allocated().unwrap();
    let addresses = running.iter().flat_map(|pod| pod.addresses.clone());
    assert_eq!(left, addresses.collect());
    assert!(killed >= 3, "only {killed} of {created} ADDs were killed");
    for pod in &running {
        assert!(pod.is_reachable_from(&node.namespace));
        node.del(pod);
    }
    assert_eq!(node.check(), (vec![], Some(0)));
    println!("{created} pods, {killed} killed in their ADD");
}
