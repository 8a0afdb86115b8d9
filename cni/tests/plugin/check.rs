//! CHECK: the differences that it reports and those that it accepts.

use serde_json::{Value, json};

use super::DUAL;
use super::netns_node::{Namespace, Node, skipped};

/// Namespace, change, repair, and the text that CHECK reports. LINK is the host's link, NEXT its MAC, MAC that of the pod.
const DAMAGES: [(&str, &str, &str, &str); 8] = [
    (
        "node",
        "route delete 10.244.0.2",
        "route add 10.244.0.2 dev LINK proto 79 metric 20",
        "10.244.0.2/32",
    ),
    (
        "node",
        "neighbour change fd00:244::2 dev LINK lladdr 02:00:00:00:00:99 nud permanent",
        "neighbour change fd00:244::2 dev LINK lladdr MAC nud permanent",
        "neighbour fd00:244::2",
    ),
    (
        "pod",
        "address delete fd00:244::2/128 dev eth0",
        "address add fd00:244::2/128 dev eth0 nodad",
        "address fd00:244::2",
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
    (
        "pod",
        "neighbour change 169.254.1.1 dev eth0 lladdr 02:00:00:00:00:99 nud permanent",
        "neighbour change 169.254.1.1 dev eth0 lladdr NEXT nud permanent",
        "neighbour 169.254.1.1",
    ),
    // The kernel flushes the neighbour table of a link whose Ethernet address changes.
    (
        "pod",
        "link set eth0 address 02:00:00:00:00:99",
        "link set eth0 address MAC; neighbour replace 169.254.1.1 dev eth0 lladdr NEXT nud permanent; neighbour replace fe80::1 dev eth0 lladdr NEXT nud permanent",
        "link eth0 has another Ethernet address",
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
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (host, inside) = (&interfaces[0], &interfaces[1]);
    let placeholders = [
        ("LINK", text(&host["name"])),
        ("NEXT", text(&host["mac"])),
        ("MAC", text(&inside["mac"])),
    ];
    for (place, change, repair, problem) in DAMAGES {
        let namespace = if place == "pod" {
            &pod
        } else {
            &node.namespace
        };
        let replace = |line: String, (name, value): &(&str, String)| line.replace(name, value);
        let line = |line: &str| placeholders.iter().fold(line.to_owned(), replace);
        assert!(node.check("one", &pod, &answer).success, "before {change}");
        namespace.ip(&line(change));
        let found = node.check("one", &pod, &answer);
        assert!(
            found.code() == 100 && found.message().contains(problem),
            "{change}: {found:?}"
        );
        for repair in repair.split("; ") {
            namespace.ip(&line(repair));
        }
    }
    let host_link = placeholders[0].1.as_str();
    node.namespace.ip(&format!("link delete {host_link}"));
    let found = node.check("one", &pod, &answer);
    for link in [host_link, "eth0"] {
        let missing = format!("link {link} is missing");
        assert!(found.message().contains(&missing), "{found:?}");
    }
}

#[test]
fn netns_check_requires_record_and_prev_result() {
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
    let record = node.attachments().join("fd00:244::2");
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

/// CNI 1.1, "CHECK": plugins later in the chain may have changed the sandbox.
#[test]
fn netns_check_accepts_changes_of_later_plugins() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let mut answer = node.add("one", &pod);
    for line in [
        "link set eth0 mtu 1280",
        "address add 203.0.113.9/32 dev eth0",
        "route add 203.0.113.0/24 via 169.254.1.1 dev eth0",
        "link add eth1 type bridge",
    ] {
        pod.ip(line);
    }
    let mut add = |list: &str, value: Value| {
        let list = answer.json[list].as_array_mut().unwrap();
        list.insert(0, value);
    };
    add(
        "interfaces",
        json!({ "name": "eth1", "sandbox": pod.path() }),
    );
    add(
        "ips",
        json!({ "address": "203.0.113.9/32", "interface": 2 }),
    );
    add(
        "routes",
        json!({ "dst": "203.0.113.0/24", "gw": "169.254.1.1" }),
    );
    answer.json["dns"] = json!({ "nameservers": ["203.0.113.53"] });
    let found = node.check("one", &pod, &answer);
    assert!(found.success, "{found:?}");
}
