//! Bridged pods: the built plugin binary in network namespaces of the test.
//!
//! ```text
//!   pod one ─ nwXXXXXXXXXXX ┐
//!                           ├ nw-br0 10.244.0.1/29 ─ the node's routes, nft
//!   pod two ─ nwXXXXXXXXXXX ┘
//! ```

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
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bridge_node::{BRIDGE, BRIDGE_MAC, bridged, leftovers, node_with_bridge};
use netns_node::{Namespace, Node, PluginOutput, pool, skipped};
use netweft_cni::node::PoolConfig;
use serde_json::json;

const DUAL: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn host_link(answer: &PluginOutput) -> &str {
    answer.json["interfaces"][1]["name"].as_str().unwrap()
}

#[test]
fn netns_bridged_pods_and_node_reach_each_other_dual_stack() {
    if skipped() {
        return;
    }
    for rp_filter in ["0", "1", "2"] {
        let node = node_with_bridge(&DUAL);
        for scope in ["all", "default", BRIDGE] {
            node.namespace
                .set(&format!("net/ipv4/conf/{scope}/rp_filter"), rp_filter);
        }
        let (one, two) = (Namespace::new(), Namespace::new());
        let (first, second) = (node.add("one", &one), node.add("two", &two));
        assert_eq!(first.ips(), ["10.244.0.2", "fd00:244::2"]);
        assert_eq!(second.ips(), ["10.244.0.3", "fd00:244::3"]);
        // First the node's addresses on other links: the node has no neighbour entry of the pod yet, and the source of its
        // reply is not an address of the bridge. Then the gateways.
        for ip in ["192.0.2.1", "2001:db8::1", "10.244.0.1", "fd00:244::1"] {
            assert!(one.pings(ip), "one to {ip}");
        }
        for ip in first.ips().into_iter().chain(second.ips()) {
            assert!(node.namespace.pings(&ip), "node to {ip}");
            assert!(one.pings(&ip), "one to {ip}");
            assert!(two.pings(&ip), "two to {ip}");
        }
        for (container, pod, answer) in [("one", &one, &first), ("two", &two, &second)] {
            let found = node.check(container, pod, answer);
            assert!(found.success, "{found:?}");
            for _ in 0..3 {
                assert!(node.del(container, &pod.path()).success);
            }
            assert!(!pod.ip("link show").contains("eth0"));
        }
        assert_eq!(leftovers(&node), Vec::<String>::new());
        let routes = node.namespace.ip("route show");
        assert!(
            routes.starts_with("10.244.0.0/29 dev nw-br0 proto 78"),
            "{routes}"
        );
    }
}

#[test]
fn netns_bridged_pod_links_have_required_settings() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL);
    let pod = Namespace::new();
    pod.set("net/ipv6/conf/default/disable_ipv6", "1");
    let answer = node.add("one", &pod);
    let host = node
        .namespace
        .ip(&format!("-details link show dev {}", host_link(&answer)));
    for setting in [
        "mtu 1350",
        "master nw-br0",
        "hairpin on",
        "addrgenmode none",
    ] {
        assert!(host.contains(setting), "{setting} in {host}");
    }
    let host = node
        .namespace
        .ip(&format!("address show dev {}", host_link(&answer)));
    assert!(!host.contains("inet"), "{host}");
    let inside = pod.ip("address show dev eth0");
    for setting in [
        "mtu 1350",
        "inet 10.244.0.2/29 scope global noprefixroute eth0",
        "inet6 fd00:244::2/125 scope global nodad",
    ] {
        assert!(
            inside.contains(setting) && !inside.contains("fe80"),
            "{inside}"
        );
    }
    let routes = pod.ip("route show");
    assert_eq!(routes.lines().count(), 2, "{routes}");
    assert!(
        routes.starts_with("default via 10.244.0.1 dev eth0 proto 79"),
        "{routes}"
    );
    let neighbours = pod.ip("neighbour show nud permanent");
    assert!(neighbours.contains(&format!(
        "10.244.0.1 dev eth0 lladdr {BRIDGE_MAC} PERMANENT"
    )));
    let accept_ra = |namespace: &Namespace, link: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        namespace.run(|| std::fs::read_to_string(path).unwrap())
    };
    assert_eq!(accept_ra(&pod, "eth0"), "0\n");
    assert_eq!(accept_ra(&node.namespace, host_link(&answer)), "0\n");
}

#[test]
fn netns_bridge_result_lists_bridge_host_and_pod_links() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL);
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let pod = Namespace::new();
        let mut conf = node.conf();
        conf["cniVersion"] = json!(version);
        let answer = node.call("ADD", "one", &pod.path(), &conf);
        assert!(answer.success, "{answer:?}");
        let names: Vec<_> = answer.json["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|interface| interface["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, [BRIDGE, host_link(&answer), "eth0"]);
        let interfaces = &answer.json["interfaces"];
        assert_eq!(interfaces[0]["mac"], json!(BRIDGE_MAC));
        assert_eq!(interfaces[2]["sandbox"], json!(pod.path()));
        assert!(interfaces[0].get("sandbox").is_none() && interfaces[1].get("sandbox").is_none());
        let ips = answer.json["ips"].as_array().unwrap();
        for (ip, (length, gateway)) in ips
            .iter()
            .zip([("/29", "10.244.0.1"), ("/125", "fd00:244::1")])
        {
            assert_eq!(ip["interface"], json!(2));
            assert_eq!(ip["gateway"], json!(gateway));
            assert!(ip["address"].as_str().unwrap().ends_with(length), "{ip}");
        }
        assert_eq!(answer.json["routes"][0]["gw"], json!("10.244.0.1"));
        assert!(node.del("one", &pod.path()).success);
    }
}

/// The essential rules of kube-proxy: a Service address for one pod, and masquerading of connections of the pod to itself.
fn service(node: &Node, address: &str, pod: &str) {
    let table = format!(
        "table ip services {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {address} tcp dport 80 dnat to {pod}:8080
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {pod} ip daddr {pod} masquerade
            }}
        }}"
    );
    node.namespace.run(|| {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(table.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
    });
}

/// Whether a connection from `from` to `to` is answered by a listener in `server`.
fn connects(from: &Namespace, to: &str, server: &Namespace) -> bool {
    // A child process that another test has forked keeps the last listener open until it executes its program.
    let bind = || std::net::TcpListener::bind("0.0.0.0:8080");
    let mut attempts = 0..100;
    let listener = loop {
        match server.run(bind) {
            Ok(listener) => break listener,
            Err(error) => assert!(attempts.next().is_some(), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    listener.set_nonblocking(true).unwrap();
    let to = to.parse().unwrap();
    from.run(|| {
        let connection = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2));
        connection.is_ok()
    })
}

#[test]
fn netns_bridged_pod_behind_service_is_reached_from_its_bridge() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL[..1]);
    let (one, two) = (Namespace::new(), Namespace::new());
    let (first, second) = (node.add("one", &one), node.add("two", &two));
    service(&node, "10.96.0.1", &first.ips()[0]);
    assert!(connects(&one, "10.96.0.1:80", &one), "the pod to itself");
    assert!(connects(&two, "10.96.0.1:80", &one), "its neighbour");
    assert!(second.success);
    // The agent sets bridge-nf-call-iptables, so that the reply of a pod on the same bridge passes the node's NAT.
    node.namespace
        .set("net/bridge/bridge-nf-call-iptables", "0");
    assert!(
        !connects(&two, "10.96.0.1:80", &one),
        "without bridge-nf-call-iptables"
    );
    node.namespace
        .set("net/bridge/bridge-nf-call-iptables", "1");
    // In hairpin mode the bridge sends a frame out of the port on which it arrived.
    let link = format!(
        "link set dev {} type bridge_slave hairpin off",
        host_link(&first)
    );
    node.namespace.ip(&link);
    assert!(
        !connects(&one, "10.96.0.1:80", &one),
        "without hairpin mode"
    );
}

/// Other pods may have the Ethernet address of the address's last pod in their neighbour tables.
#[test]
fn netns_reused_address_of_bridged_pod_is_reached_at_once() {
    if skipped() {
        return;
    }
    // Addresses for two pods: a new pod gets the address that was released.
    let node = node_with_bridge(&["10.244.0.0/29", "fd00:244::/126"]);
    let (other, first) = (Namespace::new(), Namespace::new());
    assert!(node.add("other", &other).success);
    let ips = node.add("first", &first).ips();
    for ip in &ips {
        assert!(node.namespace.pings(ip) && other.pings(ip));
    }
    assert!(node.del("first", &first.path()).success);
    // Without cursors, allocation starts at the first address.
    std::fs::write(node.run_dir().join("lock"), "").unwrap();
    let second = Namespace::new();
    assert_eq!(node.add("second", &second).ips(), ips);
    for ip in &ips {
        let started = Instant::now();
        assert!(node.namespace.pings(ip) && other.pings(ip), "{ip}");
        assert!(started.elapsed() < Duration::from_secs(1), "{ip}");
    }
}

#[test]
fn netns_pods_of_two_blocks_on_bridge_reach_each_other() {
    if skipped() {
        return;
    }
    // A /30 has two usable addresses, and one is the gateway.
    let node = node_with_bridge(&["10.244.0.0/30", "10.244.1.0/30"]);
    let (one, two) = (Namespace::new(), Namespace::new());
    assert_eq!(node.add("one", &one).ips(), ["10.244.0.2"]);
    assert_eq!(node.add("two", &two).ips(), ["10.244.1.2"]);
    assert!(one.pings("10.244.1.2") && two.pings("10.244.0.2"));
    let three = Namespace::new();
    assert_eq!(
        node.add("three", &three).code(),
        11,
        "gateways are not given to pods"
    );
}

#[test]
fn netns_pod_with_bridge_and_routed_pool_is_refused() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL[..1]);
    node.configure(&[bridged("four", &DUAL[..1]), pool("six", &DUAL[1..])]);
    let pod = Namespace::new();
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 7);
    assert!(
        refused.message().starts_with(
            "IPPool four has podInterface bridge and IPPool six has podInterface routed"
        ),
        "{refused:?}"
    );
    assert_eq!(leftovers(&node), Vec::<String>::new());
}

#[test]
fn netns_add_without_bridge_or_gateway_asks_for_retry() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL[..1]);
    let pod = Namespace::new();
    let config = bridged("default", &DUAL[..1]);
    let mut without_gateway = config.clone();
    without_gateway.bridge.as_mut().unwrap().gateways.clear();
    let without_bridge = PoolConfig {
        bridge: None,
        ..config.clone()
    };
    for incomplete in [without_gateway, without_bridge] {
        node.configure(&[incomplete]);
        let refused = node.add("one", &pod);
        assert_eq!(refused.code(), 11);
        assert!(
            refused
                .message()
                .contains("no gateway for block 10.244.0.0/29"),
            "{refused:?}"
        );
    }
    node.configure(&[config]);
    node.namespace.ip("link set nw-br0 down");
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 11);
    assert!(
        refused
            .message()
            .contains("link nw-br0 is not operational after 3 s"),
        "{refused:?}"
    );
    node.namespace.ip("link delete nw-br0");
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 11);
    assert!(refused.message().contains("master nw-br0"), "{refused:?}");
    assert_eq!(leftovers(&node), Vec::<String>::new());
    assert!(!pod.ip("link show").contains("eth0"));
}

/// Namespace, change, repair, and the text that CHECK reports. LINK is the host's link.
const DAMAGES: [(&str, &str, &str, &str); 9] = [
    (
        "node",
        "route delete 10.244.0.0/29 dev nw-br0",
        "route add 10.244.0.0/29 dev nw-br0 src 10.244.0.1 proto 78 metric 20",
        "add route 10.244.0.0/29 dev nw-br0",
    ),
    (
        "node",
        "link set LINK nomaster",
        "link set LINK master nw-br0; link set LINK type bridge_slave hairpin on",
        "master nw-br0 hairpin on",
    ),
    (
        "node",
        "link set LINK type bridge_slave hairpin off",
        "link set LINK type bridge_slave hairpin on",
        "master nw-br0 hairpin on",
    ),
    ("node", "link set LINK down", "link set LINK up", "is down"),
    (
        "node",
        "link set nw-br0 down",
        "link set nw-br0 up; address add fe80::1/64 dev nw-br0 nodad; address add fd00:244::1/125 dev nw-br0 nodad noprefixroute; route add 10.244.0.0/29 dev nw-br0 src 10.244.0.1 proto 78 metric 20; -6 route add fd00:244::/125 dev nw-br0 src fd00:244::1 proto 78 metric 20",
        "link nw-br0 is down",
    ),
    (
        "node",
        "address delete 10.244.0.1/29 dev nw-br0",
        "address add 10.244.0.1/29 dev nw-br0 noprefixroute; route add 10.244.0.0/29 dev nw-br0 src 10.244.0.1 proto 78 metric 20",
        "address 10.244.0.1/29",
    ),
    (
        "pod",
        "address delete fd00:244::2/125 dev eth0",
        "address add fd00:244::2/125 dev eth0 nodad noprefixroute",
        "address fd00:244::2",
    ),
    (
        "pod",
        "route delete default",
        "route add default via 10.244.0.1 dev eth0 proto 79",
        "0.0.0.0/0",
    ),
    (
        "pod",
        "-6 route delete fd00:244::/125 dev eth0",
        "-6 route add fd00:244::/125 dev eth0 proto 79",
        "fd00:244::/125",
    ),
];

#[test]
fn netns_check_names_each_damage_to_bridged_pod() {
    if skipped() {
        return;
    }
    let node = node_with_bridge(&DUAL);
    let pod = Namespace::new();
    let answer = node.add("one", &pod);
    for (place, change, repair, text) in DAMAGES {
        let namespace = if place == "pod" {
            &pod
        } else {
            &node.namespace
        };
        let line = |line: &str| line.replace("LINK", host_link(&answer));
        let before = node.check("one", &pod, &answer);
        assert!(before.success, "before {change}: {before:?}");
        namespace.ip(&line(change));
        let found = node.check("one", &pod, &answer);
        assert!(
            found.code() == 100 && found.message().contains(text),
            "{change}: {found:?}"
        );
        for step in line(repair).split("; ") {
            namespace.ip(step);
        }
    }
}
