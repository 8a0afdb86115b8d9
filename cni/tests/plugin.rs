//! The plugin as a runtime runs it: the real binary, the real kernel, namespaces of the tests' own.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod lab;

use std::collections::BTreeSet;
use std::time::Duration;

use lab::{Namespace, Node, environment, pool, skipped};
use netweft_cni::node::PoolConfig;
use serde_json::{Value, json};

const DUAL: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

#[test]
fn netns_pods_and_their_node_reach_each_other_in_both_families() {
    if skipped() {
        return;
    }
    // One pool per family.
    let node = Node::without_config();
    node.configure(&[pool("four", &DUAL[..1]), pool("six", &DUAL[1..])]);
    let (one, two) = (Namespace::new(), Namespace::new());
    let (first, second) = (node.add("one", &one), node.add("two", &two));
    assert_eq!(first.ips(), ["10.244.0.1", "fd00:244::1"]);
    assert_eq!(second.ips(), ["10.244.0.2", "fd00:244::2"]);
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

/// The kernel gives the end that came up first its queue when its link watch runs, which it puts off when it ran lately.
#[test]
fn netns_the_first_packet_after_add_arrives() {
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
fn netns_links_have_the_settings_that_matter() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    // As some runtimes leave it.
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
    for word in [
        "mtu 1350",
        "inet 10.244.0.1/32 scope global eth0",
        "inet6 fd00:244::1/128 scope global nodad",
    ] {
        assert!(
            inside.contains(word) && !inside.contains("fe80"),
            "{inside}"
        );
    }
    let value = |namespace: &Namespace, path: String| {
        namespace.run(|| std::fs::read_to_string(path).unwrap())
    };
    let conf =
        |family: &str, link: &str, name: &str| format!("/proc/sys/net/{family}/conf/{link}/{name}");
    assert_eq!(
        value(&node.namespace, conf("ipv4", host_link, "rp_filter")),
        "2\n"
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
fn netns_the_result_follows_the_requested_version() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::new();
        let mut conf = node.conf();
        conf["cniVersion"] = json!(version);
        let answer = node.call("ADD", version, &pod.path(), &conf);
        let ips = answer.ips();
        let (host, inside) = (&answer.json["interfaces"][0], &answer.json["interfaces"][1]);
        let old = version.starts_with('0');
        let family = |text: &str| {
            if old {
                json!({ "version": text })
            } else {
                json!({})
            }
        };
        let mtu = if version == "1.1.0" {
            json!({ "mtu": 1350 })
        } else {
            json!({})
        };
        let expected = json!({
            "cniVersion": version,
            "interfaces": [
                merged(&mtu, json!({ "name": host["name"], "mac": host["mac"] })),
                merged(&mtu, json!({ "name": "eth0", "mac": inside["mac"], "sandbox": pod.path() })),
            ],
            "ips": [
                merged(&family("4"), json!({ "address": format!("{}/32", ips[0]), "gateway": "169.254.1.1", "interface": 1 })),
                merged(&family("6"), json!({ "address": format!("{}/128", ips[1]), "gateway": "fe80::1", "interface": 1 })),
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }],
            "dns": {},
        });
        assert_eq!(answer.json, expected);
        assert!(
            pod.ip("link show dev eth0")
                .contains(inside["mac"].as_str().unwrap())
        );
    }
}

fn merged(extra: &Value, mut value: Value) -> Value {
    value
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    value
}

#[test]
fn netns_before_the_first_sync_add_asks_to_try_later_and_status_says_so() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    let pod = Namespace::new();
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 11);
    assert!(
        refused
            .message()
            .contains("netweft-agent has not finished its first sync"),
        "{refused:?}"
    );
    let status = || node.raw("STATUS", &[], &node.conf().to_string());
    assert_eq!(status().code(), 50);
    // What follows is no matter of readiness, not even a full or foreign pool.
    node.configure(&[PoolConfig {
        namespaces: Some(BTreeSet::new()),
        ..pool("other", &["10.244.0.0/30"])
    }]);
    assert!(status().success);
    assert_eq!(node.add("one", &pod).code(), 11);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_a_full_block_is_refused_at_once_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    node.configure(&[PoolConfig {
        reserved: vec!["10.244.0.1/32".parse().unwrap()],
        ..pool("p", &["10.244.0.0/30"])
    }]);
    let pods = [Namespace::new(), Namespace::new()];
    assert_eq!(node.add("one", &pods[0]).ips(), ["10.244.0.2"]);
    let before = node.leftovers();
    let refused = node.add("two", &pods[1]);
    let said = (refused.code(), refused.message());
    assert_eq!(said, (11, "no free address in pool p (10.244.0.0/30)"));
    assert_eq!(node.leftovers(), before);
    assert!(!pods[1].ip("link show").contains("eth0"));
    assert!(node.del("one", "").success);
    assert_eq!(node.add("two", &pods[1]).ips(), ["10.244.0.2"]);
}

#[test]
fn netns_what_cannot_be_served_is_refused_with_the_reason() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let conf = node.conf().to_string();
    let add = |environment: &[(&str, &str)]| node.raw("ADD", environment, &conf);
    assert!(
        add(&environment("", &pod.path()))
            .message()
            .starts_with("CNI_CONTAINERID: ")
    );
    assert!(
        add(&environment("one", ""))
            .message()
            .starts_with("CNI_NETNS: ")
    );
    assert!(
        add(&environment("one", "/nowhere"))
            .message()
            .starts_with("CNI_NETNS: /nowhere")
    );
    let own = add(&environment("one", &node.namespace.path()));
    assert!(
        own.code() == 4 && own.message().contains("node's own network namespace"),
        "{own:?}"
    );
    assert_eq!(
        node.raw("ADD", &environment("one", &pod.path()), "{")
            .code(),
        6
    );
    assert_eq!(node.raw("FROB", &[], &conf).code(), 4);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_a_configuration_that_cannot_be_used_is_refused() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let code = |verb: &str, field: &str, value: Value| {
        let mut conf = node.conf();
        conf[field] = value;
        node.call(verb, "one", &pod.path(), &conf).code()
    };
    assert_eq!(code("ADD", "cniVersion", json!("2.0.0")), 1);
    assert_eq!(code("DEL", "cniVersion", json!("")), 1);
    assert_eq!(code("CHECK", "cniVersion", json!("0.3.1")), 1);
    assert_eq!(code("GC", "cniVersion", json!("1.0.0")), 1);
    assert_eq!(code("STATUS", "cniVersion", json!("1.0.0")), 1);
    assert_eq!(code("ADD", "prevResult", json!({})), 7);
    assert_eq!(code("ADD", "name", json!("")), 7);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_a_second_add_of_the_same_link_is_refused_and_the_first_lives() {
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
fn netns_a_failure_halfway_is_undone() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    // Somebody's route at the pod's key: the kernel refuses ours after the link is made.
    node.namespace
        .ip("route add blackhole 10.244.0.1/32 metric 20 proto 4");
    let before = node.leftovers();
    let refused = node.add("one", &pod);
    assert!(
        refused.code() == 11 && refused.message().contains("EEXIST"),
        "{refused:?}"
    );
    assert_eq!(node.leftovers(), before);
    assert!(!pod.ip("link show").contains("eth0"));
    // The next attempt gets the next address.
    assert_eq!(node.add("one", &pod).ips(), ["10.244.0.2", "fd00:244::2"]);
}

#[test]
fn netns_del_succeeds_whatever_is_missing() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    let gone = "/run/netns/gone";
    for netns in [gone, ""] {
        assert!(node.del("never-added", netns).success);
    }
    assert_eq!(node.records(), Vec::<String>::new());
    node.configure(&[pool("p", &["10.244.0.0/29"])]);
    let mut conf = node.conf();
    conf["prevResult"] = json!({});
    for (container, netns) in [("one", gone), ("two", "")] {
        let pod = Namespace::new();
        assert!(node.add(container, &pod).success);
        // The sandbox ends, and with it the pod's end of the link.
        drop(pod);
        assert!(node.call("DEL", container, netns, &conf).success);
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn netns_del_finds_a_link_without_a_record_and_a_record_without_a_link() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let answer = node.add("one", &pod);
    for ip in answer.ips() {
        std::fs::remove_file(node.attachments().join(ip)).unwrap();
    }
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
    let answer = node.add("one", &pod);
    let link = answer.json["interfaces"][0]["name"].as_str().unwrap();
    node.namespace.ip(&format!("link delete {link}"));
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_del_of_an_old_sandbox_leaves_the_new_one_its_address() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/30"]);
    let old = Namespace::new();
    assert_eq!(node.add("old", &old).ips(), ["10.244.0.1"]);
    assert!(node.del("old", &old.path()).success);
    let pods = [Namespace::new(), Namespace::new()];
    let last =
        [node.add("a", &pods[0]), node.add("b", &pods[1])].map(|answer| answer.ips()[0].clone());
    assert_eq!(
        last,
        ["10.244.0.2", "10.244.0.1"],
        "a freed address rests while it can"
    );
    assert!(node.del("old", &old.path()).success);
    assert_eq!(node.records(), ["10.244.0.1", "10.244.0.2"]);
    assert!(node.namespace.pings("10.244.0.1"));
}

#[test]
fn netns_a_record_that_nobody_can_read_keeps_its_address() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/30"]);
    std::fs::create_dir(node.attachments()).unwrap();
    std::fs::write(node.attachments().join("10.244.0.1"), "").unwrap();
    let pod = Namespace::new();
    assert_eq!(node.add("one", &pod).ips(), ["10.244.0.2"]);
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.records(), ["10.244.0.1"]);
}

#[test]
fn netns_a_hundred_at_once_get_a_hundred_addresses_and_give_them_back() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/25", "fd00:244::/121"]);
    let pods: Vec<(String, Namespace)> = (0..100)
        .map(|n| (format!("pod-{n}"), Namespace::new()))
        .collect();
    let together = |verb: &str| {
        let conf = node.conf().to_string();
        let start = |(name, pod): &(String, Namespace)| {
            node.start(verb, &environment(name, &pod.path()), &conf)
        };
        let children: Vec<_> = pods.iter().map(start).collect();
        children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap())
            .collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let mut ips = BTreeSet::new();
        for output in together("ADD") {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}");
            let result: Value = serde_json::from_str(&said).unwrap();
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
        assert!(together("DEL").iter().all(|output| output.status.success()));
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn netns_a_killed_add_leaves_nothing_that_del_does_not_find() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let conf = node.conf().to_string();
    let mut cut = 0;
    for step in 0..80_u64 {
        let pod = Namespace::new();
        let mut child = node.start("ADD", &environment("one", &pod.path()), &conf);
        std::thread::sleep(Duration::from_micros(step * 100));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        cut += u32::from(!output.status.success() && !node.leftovers().is_empty());
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
    assert!(cut >= 3, "only {cut} of 80 were cut in the middle");
}

/// Where, what is done, how it is undone, what CHECK says. LINK is the host's link and MAC the pod's address.
const DAMAGES: [(&str, &str, &str, &str); 6] = [
    (
        "node",
        "route delete 10.244.0.1",
        "route add 10.244.0.1 dev LINK proto 79 metric 20",
        "10.244.0.1/32",
    ),
    (
        "node",
        "neighbour change fd00:244::1 dev LINK lladdr 02:00:00:00:00:99 nud permanent",
        "neighbour change fd00:244::1 dev LINK lladdr MAC nud permanent",
        "neighbour fd00:244::1",
    ),
    (
        "pod",
        "address delete fd00:244::1/128 dev eth0",
        "address add fd00:244::1/128 dev eth0 nodad",
        "address fd00:244::1",
    ),
    (
        "pod",
        "route delete default",
        "route add default via 169.254.1.1 dev eth0 proto 79",
        "0.0.0.0/0",
    ),
    (
        "pod",
        "-6 route delete default",
        "-6 route add default via fe80::1 dev eth0 proto 79",
        "::/0",
    ),
    ("node", "link set LINK down", "link set LINK up", "is down"),
];

#[test]
fn netns_check_names_each_damage() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let answer = node.add("one", &pod);
    let interfaces = &answer.json["interfaces"];
    let (link, mac) = (
        interfaces[0]["name"].as_str().unwrap(),
        interfaces[1]["mac"].as_str().unwrap(),
    );
    for (place, harm, repair, word) in DAMAGES {
        let namespace = if place == "pod" {
            &pod
        } else {
            &node.namespace
        };
        let line = |line: &str| line.replace("LINK", link).replace("MAC", mac);
        assert!(node.check("one", &pod, &answer).success, "before {harm}");
        namespace.ip(&line(harm));
        let found = node.check("one", &pod, &answer);
        assert!(
            found.code() == 100 && found.message().contains(word),
            "{harm}: {found:?}"
        );
        namespace.ip(&line(repair));
    }
}

#[test]
fn netns_check_needs_the_record_and_the_result() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let mut answer = node.add("one", &pod);
    assert_eq!(
        node.call("CHECK", "one", &pod.path(), &node.conf()).code(),
        7,
        "without prevResult"
    );
    assert_eq!(
        node.check("two", &pod, &answer).code(),
        100,
        "of an unknown container"
    );
    let record = node.attachments().join("fd00:244::1");
    std::fs::rename(&record, record.with_extension("x")).unwrap();
    assert!(
        node.check("one", &pod, &answer)
            .message()
            .contains("not reserved")
    );
    std::fs::rename(record.with_extension("x"), &record).unwrap();
    assert!(node.check("one", &pod, &answer).success);
    answer.json["ips"].as_array_mut().unwrap().pop();
    assert!(
        node.check("one", &pod, &answer)
            .message()
            .contains("not in prevResult")
    );
}

#[test]
fn netns_gc_removes_what_the_runtime_does_not_know() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    let answers: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip(&pods)
        .map(|(name, pod)| node.add(name, pod))
        .collect();
    // A link without a record, and a record without a link.
    std::fs::remove_file(node.attachments().join("10.244.0.2")).unwrap();
    std::fs::remove_file(node.attachments().join("fd00:244::2")).unwrap();
    node.namespace.ip(&format!(
        "link delete {}",
        answers[2].json["interfaces"][0]["name"].as_str().unwrap()
    ));
    assert_eq!(
        node.raw("GC", &[], &node.conf().to_string()).code(),
        7,
        "without the list"
    );
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for _ in 0..2 {
        assert!(node.raw("GC", &[], &conf.to_string()).success);
        assert_eq!(node.records(), ["10.244.0.1", "fd00:244::1"]);
        assert!(node.check("a", &pods[0], &answers[0]).success);
        assert!(!pods[1].ip("link show").contains("eth0"));
    }
    conf["cni.dev/valid-attachments"] = json!([]);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_a_stopped_holder_of_the_lock_does_not_hang_add() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let store = netweft_cni::attachment::Store::new(node.run_dir());
    let held = store.lock(Duration::ZERO).unwrap();
    let refused = node.add("one", &pod);
    assert!(
        refused.code() == 11 && refused.message().contains("lock"),
        "{refused:?}"
    );
    drop(held);
    assert!(node.add("one", &pod).success);
}

#[test]
fn version_says_what_is_accepted() {
    let node = if skipped() {
        return;
    } else {
        Node::without_config()
    };
    let expected = |version: &str| json!({ "cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] });
    assert_eq!(
        node.raw("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#).json,
        expected("1.0.0")
    );
    for input in ["", "{}", r#"{"cniVersion":"9"}"#] {
        assert_eq!(
            node.raw("VERSION", &[], input).json,
            expected("1.1.0"),
            "{input}"
        );
    }
}
