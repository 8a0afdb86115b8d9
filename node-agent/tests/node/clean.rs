//! `netweft-agent clean` restores the original state of a node, and keeps foreign objects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use netweft_netstate::model::NetworkState;
use nix::fcntl::{Flock, FlockArg};

use super::lab::{BOTH, BRIDGED, Families, Node, Pools, ROUTED};

/// The state of a node.
#[derive(Debug, PartialEq)]
struct NodeState {
    kernel: NetworkState,
    nft: String,
    files: BTreeMap<String, String>,
    parameters: Vec<String>,
}

impl NodeState {
    /// Asserts that another state is equal. `output` is the output of the command.
    #[track_caller]
    fn assert_equal(&self, other: &Self, output: &str) {
        assert_eq!(self.kernel, other.kernel, "{output}");
        assert_eq!(self.nft, other.nft, "{output}");
        assert_eq!(self.files, other.files, "{output}");
        assert_eq!(self.parameters, other.parameters, "{output}");
    }
}

/// The sysctls that the agent sets on this node.
const PARAMETERS: [&str; 4] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/ens7/accept_ra",
    "bridge/bridge-nf-call-iptables",
];

fn state_of(node: &Node) -> NodeState {
    let mut kernel = node.namespace.state();
    kernel.neighbours.retain(|_, neighbour| neighbour.permanent);
    // Duplicate address detection changes these independently.
    kernel.special_addresses.clear();
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let mut files = BTreeMap::new();
    for dir in ["run", "cni", "bin"] {
        collect(&node.path(dir), &mut files);
    }
    NodeState {
        kernel,
        nft: text(node.namespace.command("nft -s list ruleset")),
        files,
        parameters: PARAMETERS
            .iter()
            .map(|name| text(node.namespace.command(&format!("cat /proc/sys/net/{name}"))))
            .collect(),
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            // A socket cannot be read.
            let text = fs::read_to_string(&path).unwrap_or_default();
            files.insert(path.display().to_string(), text);
        }
    }
}

/// A programmed node with foreign objects, and its state before the agent was started.
fn with_foreign_objects(mut node: Node) -> (Node, NodeState) {
    for line in [
        "link add foreign0 type bridge",
        "link set foreign0 up",
        "address add 172.31.0.1/24 dev foreign0",
        "route add 10.99.0.0/16 via 172.31.0.2 proto bird metric 32",
        "route add 10.98.0.0/16 via 172.31.0.2 proto 77 metric 20",
        "route add 10.97.0.0/16 via 172.31.0.2 metric 78",
        "neighbour add 172.31.0.2 dev foreign0 lladdr 02:00:00:00:00:09 nud permanent",
    ] {
        node.namespace.ip(line);
    }
    for line in [
        "add table inet other",
        "add table ip nat",
        "add chain ip nat PREROUTING { type nat hook prerouting priority dstnat ; }",
        "add rule ip nat PREROUTING ip daddr 172.31.0.9 counter",
    ] {
        node.namespace.command(&format!("nft {line}"));
    }
    for name in PARAMETERS {
        node.namespace.run(|| {
            // Some kernels do not have the module br_netfilter.
            drop(fs::write(
                format!("/proc/sys/net/{name}"),
                if name.ends_with("accept_ra") {
                    "1"
                } else {
                    "0"
                },
            ));
        });
    }
    for file in ["bin/bridge", "bin/netweft-notes", "cni/readme.txt"] {
        let path = node.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    let before = state_of(&node);
    for plugin in [
        "netweft",
        "netweft-portmap",
        "netweft-bandwidth",
        "netweft-loopback",
    ] {
        fs::write(node.path("bin").join(plugin), plugin).unwrap();
    }
    std::os::unix::fs::symlink("netweft-loopback", node.path("bin/loopback")).unwrap();
    node.start();
    node.wait_until_ready();
    (node, before)
}

/// The output and the exit code of the command.
fn clean(node: &Node, flags: &[&str]) -> (String, Option<i32>) {
    let output = node.namespace.run(|| {
        Command::new(env!("CARGO_BIN_EXE_netweft-agent"))
            .arg("clean")
            .arg("--run-dir")
            .arg(node.path("run"))
            .arg("--cni-conf-dir")
            .arg(node.path("cni"))
            .arg("--cni-bin-dir")
            .arg(node.path("bin"))
            .args(flags)
            .output()
            .unwrap()
    });
    let errors = String::from_utf8(output.stderr).unwrap();
    (
        String::from_utf8(output.stdout).unwrap() + &errors,
        output.status.code(),
    )
}

/// Asserts that the command changes nothing for this reason.
#[track_caller]
fn assert_blocked(node: &Node, reason: &str) {
    let before = state_of(node);
    let (output, code) = clean(node, &[]);
    assert!(output.contains(reason), "{output}");
    assert_eq!(code, Some(1), "{output}");
    state_of(node).assert_equal(&before, &output);
}

#[test]
fn netns_clean_restores_original_node_state() {
    for pools in [BOTH, BRIDGED.of(Families::Both)] {
        restores_state(pools);
    }
}

fn restores_state(pools: Pools) {
    let (mut node, before) = with_foreign_objects(Node::new(pools));
    assert_blocked(&node, "An agent runs on this node");
    node.kill_agent();
    // The links of a firewall probe remain when the agent is killed.
    node.namespace
        .ip("link add nwprobe0 type veth peer name nwprobe1");
    // The chains of the portmap plugin.
    for line in [
        "add table ip nat",
        "add chain ip nat PREROUTING { type nat hook prerouting priority dstnat ; }",
        "add chain ip nat CNI-HOSTPORT-DNAT",
        "add rule ip nat PREROUTING fib daddr type local jump CNI-HOSTPORT-DNAT",
        "add table ip6 cni_hostport",
    ] {
        node.namespace.command(&format!("nft {line}"));
    }
    // Objects of another mode, an older agent and BIRD.
    for line in [
        "link add nw-br7 type bridge",
        "route add 10.244.77.0/26 via 192.0.2.9 proto bird metric 78",
        "route add blackhole 10.244.78.0/26 proto 78 metric 20",
    ] {
        node.namespace.ip(line);
    }
    let bird = node.path("run/bird");
    fs::create_dir_all(&bird).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(bird.join("bird.ctl")).unwrap();
    assert_blocked(&node, "BIRD runs on this node");
    drop(socket);
    let pod = node.add("one");
    assert_blocked(&node, "pod default/one");
    assert!(
        pod.is_reachable_from(&node.namespace),
        "the pod keeps its network"
    );
    node.del(&pod);
    let (output, code) = clean(&node, &["--dry-run"]);
    assert_eq!(code, Some(1), "{output}");
    for object in [
        "nw-vx4096",
        "nw-br0",
        "inet netweft",
        "ip_forward is 1 and was 0",
        "10-netweft.conflist",
        "bin/netweft-portmap",
        "bin/loopback",
    ] {
        assert!(output.contains(object), "{object} in {output}");
    }
    let (output, code) = clean(&node, &[]);
    assert_eq!(code, Some(0), "{output}");
    state_of(&node).assert_equal(&before, &output);
    let (output, code) = clean(&node, &["--dry-run"]);
    assert_eq!((output.as_str(), code), ("", Some(0)));
    assert_eq!(clean(&node, &[]).1, Some(0), "again");
    state_of(&node).assert_equal(&before, "");
}

#[test]
fn netns_clean_waits_for_terminating_agent() {
    let mut node = Node::ready(ROUTED);
    node.kill_agent();
    let file = fs::File::create(node.path("run/agent.lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let releasing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(lock);
    });
    let (output, code) = clean(&node, &[]);
    assert_eq!(code, Some(0), "{output}");
    releasing.join().unwrap();
}

#[test]
fn netns_forced_clean_with_pods_allows_agent_restart() {
    let (mut node, before) = with_foreign_objects(Node::new(ROUTED));
    let pod = node.add("one");
    node.kill_agent();
    let (output, code) = clean(&node, &["--force"]);
    assert_eq!(code, Some(0), "{output}");
    state_of(&node).assert_equal(&before, &output);
    assert!(!pod.is_reachable_from(&node.namespace));
    node.start();
    node.wait_until_ready();
    assert!(node.add("two").is_reachable_from(&node.namespace));
}

#[test]
fn netns_clean_waits_for_pod_without_record() {
    let (mut node, _) = with_foreign_objects(Node::new(ROUTED));
    let pod = node.add("one");
    node.kill_agent();
    fs::remove_dir_all(node.path("run/attachments")).unwrap();
    assert_blocked(&node, &format!("the owner of link {}", pod.link));
}
