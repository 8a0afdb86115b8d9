//! ADD: what it creates, and that it creates everything or nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::DUAL;
use super::netns_node::{Namespace, Node, PluginOutput, environment, pool, skipped};

#[test]
fn netns_pods_and_node_reach_each_other_dual_stack() {
    if skipped() {
        return;
    }
    // One pool per family.
    let node = Node::without_config();
    node.configure(&[pool("four", &DUAL[..1]), pool("six", &DUAL[1..])]);
    let (one, two) = (Namespace::new(), Namespace::new());
    let (first, second) = (node.add("one", &one), node.add("two", &two));
    assert_eq!(first.ips(), ["10.244.0.2", "fd00:244::2"]);
    assert_eq!(second.ips(), ["10.244.0.3", "fd00:244::3"]);
    for ip in first.ips().into_iter().chain(second.ips()) {
        assert!(node.namespace.pings(&ip), "node to {ip}");
        assert!(one.pings(&ip), "one to {ip}");
        assert!(two.pings(&ip), "two to {ip}");
    }
    for ip in ["192.0.2.1", "2001:db8::1"] {
        assert!(one.pings(ip), "one to its node's {ip}");
    }
    for (container, pod, answer) in [("one", &one, &first), ("two", &two, &second)] {
        assert!(node.check(container, pod, answer).success);
        for _ in 0..3 {
            assert!(node.del(container, &pod.path()).success);
        }
        assert!(!pod.ip("link show").contains("eth0"));
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// The kernel activates the queue of the end that was set up first when its link watch runs, which it delays if it ran
/// recently.
#[test]
fn netns_first_packet_after_add_arrives() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/24"]);
    for round in 0..40 {
        let pod = Namespace::new();
        let ips = node.add("one", &pod).ips();
        assert!(node.namespace.pings(&ips[0]), "round {round}");
        assert!(node.del("one", &pod.path()).success);
    }
}

#[test]
fn netns_pod_links_have_required_settings() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    // As some runtimes set it.
    pod.set("net/ipv6/conf/default/disable_ipv6", "1");
    let answer = node.add("one", &pod);
    let host_link = answer.json["interfaces"][0]["name"].as_str().unwrap();
    let host = node
        .namespace
        .ip(&format!("-details link show dev {host_link}"));
    assert!(
        host.contains("mtu 1350") && host.contains("addrgenmode none"),
        "{host}"
    );
    let addresses =
        |namespace: &Namespace, link: &str| namespace.ip(&format!("address show dev {link}"));
    assert!(!addresses(&node.namespace, host_link).contains("inet"));
    assert!(
        pod.ip("-details link show dev eth0")
            .contains("addrgenmode none")
    );
    let inside = addresses(&pod, "eth0");
    for setting in [
        "mtu 1350",
        "inet 10.244.0.2/32 scope global eth0",
        "inet6 fd00:244::2/128 scope global nodad",
    ] {
        assert!(
            inside.contains(setting) && !inside.contains("fe80"),
            "{inside}"
        );
    }
    let value =
        |namespace: &Namespace, path: String| namespace.run(|| fs::read_to_string(path).unwrap());
    let conf =
        |family: &str, link: &str, name: &str| format!("/proc/sys/net/{family}/conf/{link}/{name}");
    assert_eq!(
        value(&node.namespace, conf("ipv4", host_link, "rp_filter")),
        "1\n"
    );
    assert_eq!(
        value(&node.namespace, conf("ipv6", host_link, "accept_ra")),
        "0\n"
    );
    assert_eq!(value(&pod, conf("ipv6", "eth0", "accept_ra")), "0\n");
    assert!(
        pod.ip("route show")
            .starts_with("default via 169.254.1.1 dev eth0")
    );
    assert!(pod.ip("link show dev lo").contains("LOOPBACK,UP"));
}

#[test]
fn netns_second_add_of_same_link_is_refused() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let first = node.add("one", &pod);
    let before = node.leftovers();
    // The same owner, then another container in the same sandbox.
    for container in ["one", "two"] {
        let again = node.add(container, &pod);
        assert!(
            again.code() == 4
                && again
                    .message()
                    .starts_with("CNI_IFNAME: eth0 already exists"),
            "{again:?}"
        );
    }
    assert_eq!(node.leftovers(), before);
    assert!(node.namespace.pings(&first.ips()[0]));
    assert!(node.check("one", &pod, &first).success);
}

#[test]
fn netns_failed_add_is_rolled_back() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    // A foreign route with the key of the pod's route: the kernel refuses the latter after the link is created.
    node.namespace
        .ip("route add blackhole 10.244.0.2/32 metric 20 proto 4");
    let before = node.leftovers();
    let refused = node.add("one", &pod);
    assert!(
        refused.code() == 11 && refused.message().contains("EEXIST"),
        "{refused:?}"
    );
    assert_eq!(node.leftovers(), before);
    assert!(!pod.ip("link show").contains("eth0"));
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), before);
    // The next attempt gets the next address.
    assert_eq!(node.add("one", &pod).ips(), ["10.244.0.3", "fd00:244::3"]);
}

#[test]
fn netns_add_with_full_block_is_refused_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    node.configure(&[pool("p", &["10.244.0.0/30"])]);
    let pods = [Namespace::new(), Namespace::new()];
    assert_eq!(node.add("one", &pods[0]).ips(), ["10.244.0.2"]);
    let before = node.leftovers();
    let refused = node.add("two", &pods[1]);
    assert!(
        refused.code() == 11
            && refused
                .message()
                .starts_with("no free address in IPPool p (block 10.244.0.0/30): "),
        "{refused:?}"
    );
    assert_eq!(node.leftovers(), before);
    assert!(!pods[1].ip("link show").contains("eth0"));
    // A runtime calls DEL after a failed ADD.
    assert!(node.del("two", &pods[1].path()).success);
    assert_eq!(node.leftovers(), before);
    assert!(node.del("one", "").success);
    assert_eq!(node.add("two", &pods[1]).ips(), ["10.244.0.2"]);
}

#[test]
fn netns_hundred_parallel_adds_get_distinct_addresses() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/25", "fd00:244::/121"]);
    let pods: Vec<(String, Namespace)> = (0..100)
        .map(|n| (format!("pod-{n}"), Namespace::new()))
        .collect();
    let in_parallel = |command: &str| {
        let conf = node.conf().to_string();
        let start = |(name, pod): &(String, Namespace)| {
            node.start(command, &environment(name, &pod.path()), &conf)
        };
        let children: Vec<_> = pods.iter().map(start).collect();
        children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap())
            .collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let mut ips = BTreeSet::new();
        for output in in_parallel("ADD") {
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{stdout}");
            let result: Value = serde_json::from_str(&stdout).unwrap();
            ips.extend(
                result["ips"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|ip| ip["address"].to_string()),
            );
        }
        assert_eq!(ips.len(), 200);
        assert_eq!(node.records().len(), 200);
        let outputs = in_parallel("DEL");
        assert!(outputs.iter().all(|output| output.status.success()));
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn netns_add_with_lock_held_elsewhere_times_out() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let store = netweft_cni::attachment::Store::new(node.run_dir());
    let held = store.lock(Duration::ZERO).unwrap();
    let refused = node.add("one", &pod);
    let lock = store.lock_file().display().to_string();
    assert!(
        refused.code() == 11 && refused.message().contains(&lock),
        "{refused:?}"
    );
    drop(held);
    assert!(node.add("one", &pod).success);
}

#[test]
fn netns_del_after_killed_add_removes_everything() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let conf = node.conf().to_string();
    let mut interrupted = 0;
    for step in 0..80_u64 {
        let pod = Namespace::new();
        let mut child = node.start("ADD", &environment("one", &pod.path()), &conf);
        std::thread::sleep(Duration::from_micros(step * 100));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        interrupted += u32::from(!output.status.success() && !node.leftovers().is_empty());
        assert!(node.del("one", &pod.path()).success);
        let hidden = |name: &String| !name.starts_with('.');
        assert_eq!(
            node.records()
                .into_iter()
                .filter(hidden)
                .collect::<Vec<_>>(),
            Vec::<String>::new()
        );
        assert!(!pod.ip("link show").contains("eth0"));
        let answer = node.add("one", &pod);
        assert!(
            node.namespace.pings(&answer.ips()[0]),
            "after a kill at step {step}"
        );
        assert!(node.del("one", &pod.path()).success);
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
    assert!(
        interrupted >= 3,
        "only {interrupted} of 80 were killed before the end"
    );
}

/// The agent withdraws blocks, and `netweft-agent clean` withdraws all of them.
#[test]
fn netns_add_after_lock_wait_uses_current_blocks() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let store = netweft_cni::attachment::Store::new(node.run_dir());
    let held = store.lock(Duration::ZERO).unwrap();
    let conf = node.conf().to_string();
    let mut waiting = node.start("ADD", &environment("one", &pod.path()), &conf);
    let lock = node.run_dir().join("lock");
    while !has_open(waiting.id(), &lock) {
        assert!(waiting.try_wait().unwrap().is_none(), "ADD does not wait");
        std::thread::sleep(Duration::from_millis(1));
    }
    node.configure(&[pool("default", &["10.244.9.0/29"])]);
    drop(held);
    let answer = PluginOutput::of(&waiting.wait_with_output().unwrap());
    assert_eq!(answer.ips(), ["10.244.9.2"]);
}

fn has_open(process: u32, path: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| target == path)
}

/// The chained plugin portmap would fail after an address is allocated, and at DEL too.
#[test]
fn netns_host_port_without_nft_or_iptables_is_refused() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/29"]);
    let pod = Namespace::new();
    let programs = tempfile::tempdir().unwrap();
    let path = format!("{}:/nowhere", programs.path().display());
    let namespace = pod.path();
    let call = |command: &str, mappings: &str| {
        let mut conf = node.conf();
        conf["runtimeConfig"] = serde_json::from_str(mappings).unwrap();
        let environment = [&environment("one", &namespace)[..], &[("PATH", &path)]].concat();
        node.raw(command, &environment, &conf.to_string())
    };
    let web =
        r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]}"#;
    let before = node.leftovers();
    let refused = call("ADD", web);
    let expected = format!(
        "the pod has hostPort 8080, but neither nft nor iptables is on the container runtime's PATH ({path}) on this node: \
         install nftables or iptables on the node, run the pod on another node, or remove hostPort from the pod"
    );
    assert_eq!((refused.code(), refused.message()), (11, expected.as_str()));
    assert_eq!(node.leftovers(), before);
    assert!(call("DEL", web).success);
    // Without host ports: from containerd, and from other runtimes or with the configuration of an older agent.
    for (mappings, address) in [(r#"{"portMappings":null}"#, 2), ("{}", 3)] {
        let expected = format!("10.244.0.{address}");
        assert_eq!(call("ADD", mappings).ips(), [expected], "{mappings}");
        // DEL releases the address without nft and iptables.
        assert!(call("DEL", web).success);
        assert!(node.records().is_empty());
    }
    let nft = programs.path().join("nft");
    fs::write(&nft, "").unwrap();
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(call("ADD", web).ips(), ["10.244.0.4"]);
    fs::remove_file(&nft).unwrap();
    assert!(call("DEL", web).success);
    assert!(node.records().is_empty());
}
