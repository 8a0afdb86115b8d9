//! `netweft-agent clean` leaves a node as it was before, and others' things alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use netweft_netstate::model::NetworkState;
use nix::fcntl::{Flock, FlockArg};

use super::lab::{BOTH, BRIDGED, Families, Node, Pools, ROUTED};

/// All that somebody could miss or find too much on a node.
#[derive(Debug, PartialEq)]
struct Before {
    kernel: NetworkState,
    nft: String,
    files: BTreeMap<String, String>,
    parameters: Vec<String>,
}

impl Before {
    /// What is another, and how.
    #[track_caller]
    fn is(&self, other: &Self, said: &str) {
        assert_eq!(self.kernel, other.kernel, "{said}");
        assert_eq!(self.nft, other.nft, "{said}");
        assert_eq!(self.files, other.files, "{said}");
        assert_eq!(self.parameters, other.parameters, "{said}");
    }
}

/// Those that the agent sets on this node.
const PARAMETERS: [&str; 4] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/ens7/accept_ra",
    "bridge/bridge-nf-call-iptables",
];

fn look(node: &Node) -> Before {
    let mut kernel = node.namespace.state();
    kernel.neighbours.retain(|_, neighbour| neighbour.permanent);
    // Duplicate address detection goes on by itself.
    kernel.special_addresses.clear();
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let mut files = BTreeMap::new();
    for dir in ["run", "cni", "bin"] {
        collect(&node.path(dir), &mut files);
    }
    Before {
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
            // A socket has none.
            let text = fs::read_to_string(&path).unwrap_or_default();
            files.insert(path.display().to_string(), text);
        }
    }
}

/// A node with things of others on it.
fn inhabited(mut node: Node) -> (Node, Before) {
    for line in [
        "link add strange0 type bridge",
        "link set strange0 up",
        "address add 172.31.0.1/24 dev strange0",
        "route add 10.99.0.0/16 via 172.31.0.2 proto bird metric 32",
        "route add 10.98.0.0/16 via 172.31.0.2 proto 77 metric 20",
        "route add 10.97.0.0/16 via 172.31.0.2 metric 78",
        "neighbour add 172.31.0.2 dev strange0 lladdr 02:00:00:00:00:09 nud permanent",
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
            // Some kernels have no bridge of this kind.
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
    let before = look(&node);
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
    // As of a probe for firewalls, when the agent is killed.
    node.namespace
        .ip("link add nwprobe0 type veth peer name nwprobe1");
    (node, before)
}

/// What it says, and with which code it ends.
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

#[track_caller]
fn waits(node: &Node, why: &str) {
    let before = look(node);
    let (said, code) = clean(node, &[]);
    assert!(said.contains(why), "{said}");
    assert_eq!(code, Some(1), "{said}");
    look(node).is(&before, &said);
}

#[test]
fn netns_clean_restores_original_node_state() {
    for pools in [BOTH, BRIDGED.of(Families::Both)] {
        is_as_it_was_before(pools);
    }
}

fn is_as_it_was_before(pools: Pools) {
    let (mut node, before) = inhabited(Node::new(pools));
    waits(&node, "An agent runs on this node");
    node.kill_agent();
    // As the chained plugin leaves it.
    for line in [
        "add table ip nat",
        "add chain ip nat PREROUTING { type nat hook prerouting priority dstnat ; }",
        "add chain ip nat CNI-HOSTPORT-DNAT",
        "add rule ip nat PREROUTING fib daddr type local jump CNI-HOSTPORT-DNAT",
        "add table ip6 cni_hostport",
    ] {
        node.namespace.command(&format!("nft {line}"));
    }
    // As another mode, an older agent and BIRD have left it.
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
    waits(&node, "BIRD runs on this node");
    drop(socket);
    let pod = node.add("one");
    waits(&node, "pod default/one");
    assert!(pod.answers(&node.namespace), "its pod keeps its network");
    node.del(&pod);
    let (said, code) = clean(&node, &["--dry-run"]);
    assert_eq!(code, Some(1), "{said}");
    for thing in [
        "nw-vx4096",
        "nw-br0",
        "inet netweft",
        "ip_forward is 1 and was 0",
        "10-netweft.conflist",
        "bin/netweft-portmap",
        "bin/loopback",
    ] {
        assert!(said.contains(thing), "{thing} in {said}");
    }
    let (said, code) = clean(&node, &[]);
    assert_eq!(code, Some(0), "{said}");
    look(&node).is(&before, &said);
    let (said, code) = clean(&node, &["--dry-run"]);
    assert_eq!((said.as_str(), code), ("", Some(0)));
    assert_eq!(clean(&node, &[]).1, Some(0), "again");
    look(&node).is(&before, "");
}

#[test]
fn netns_clean_waits_for_terminating_agent() {
    let mut node = Node::ready(ROUTED);
    node.kill_agent();
    let file = fs::File::create(node.path("run/agent.lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(lock);
    });
    let (said, code) = clean(&node, &[]);
    assert_eq!(code, Some(0), "{said}");
    ending.join().unwrap();
}

#[test]
fn netns_forced_clean_with_pods_allows_agent_restart() {
    let (mut node, before) = inhabited(Node::new(ROUTED));
    let pod = node.add("one");
    node.kill_agent();
    let (said, code) = clean(&node, &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    look(&node).is(&before, &said);
    assert!(!pod.answers(&node.namespace));
    node.start();
    node.wait_until_ready();
    assert!(node.add("two").answers(&node.namespace));
}

#[test]
fn netns_clean_waits_for_pod_without_record() {
    let (mut node, _) = inhabited(Node::new(ROUTED));
    let pod = node.add("one");
    node.kill_agent();
    fs::remove_dir_all(node.path("run/attachments")).unwrap();
    waits(&node, &format!("the owner of link {}", pod.link));
}
