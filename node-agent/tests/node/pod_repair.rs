//! The agent restores objects of pods that other programs have deleted or changed.

use std::time::Duration;

use super::lab::{BRIDGED, FAMILIES, Families, Node, Pod, Pools, ROUTED, wait_for};

fn restores(pools: Pools, damages: &[&str]) {
    for families in FAMILIES {
        let node = Node::ready(pools.of(families));
        let pods = [node.add("one"), node.add("two")];
        let mut longest = Duration::ZERO;
        for damage in damages {
            let is_reachable = |pod: &Pod| pod.is_reachable_from(&node.namespace);
            assert!(
                pods.iter().all(is_reachable),
                "before {damage}, {families:?}"
            );
            for line in damage
                .split("; ")
                .flat_map(|line| pods[0].lines(&node, line))
            {
                node.namespace.ip(&line);
            }
            longest = longest.max(node.wait_until_clean());
            for pod in &pods {
                assert!(
                    is_reachable(pod),
                    "node to pod after {damage}, {families:?}"
                );
                assert!(
                    pod.reaches(&node),
                    "pod to node after {damage}, {families:?}"
                );
            }
        }
        println!("{families:?}: the slowest repair took {longest:?}");
        wait_for("the node to be ready", || node.is_ready());
        assert!(node.log().contains("restored object of pod"));
        assert!(
            pods[1].is_reachable_from(&pods[0].space),
            "pod to pod, {families:?}"
        );
    }
}

#[test]
fn netns_lost_objects_of_routed_pod_are_restored() {
    restores(
        ROUTED,
        &[
            "route delete IP/LEN",
            "route replace blackhole IP/LEN metric 20 proto 79",
            "neighbour delete IP dev LINK",
            "link set LINK down",
            "link set LINK address 02:00:00:00:00:99",
            "link add br9 type bridge; link set LINK master br9; link set br9 up",
        ],
    );
}

#[test]
fn netns_lost_objects_of_bridged_pod_are_restored() {
    restores(
        BRIDGED,
        &[
            "link set LINK nomaster",
            "link set LINK type bridge_slave hairpin off",
            "link set LINK down",
            "address delete GATEWAY dev nw-br0",
            "route delete BLOCK dev nw-br0",
            "link set nw-br0 down",
            "link set nw-br0 address 02:00:00:00:00:99",
            "link delete nw-br0",
        ],
    );
}

#[test]
fn netns_intact_pods_are_not_repaired() {
    for pools in [
        ROUTED,
        BRIDGED,
        ROUTED.of(Families::Both),
        BRIDGED.of(Families::Ipv6),
    ] {
        let node = Node::ready(pools);
        let pods: Vec<Pod> = (0..5).map(|n| node.add(&format!("pod-{n}"))).collect();
        // Each ADD and DEL triggers reconciles.
        for round in 0..5 {
            let pod = node.add(&format!("round-{round}"));
            node.del(&pod);
        }
        let before = node.namespace.state();
        node.wait_until_clean();
        assert!(
            !node.log().contains("restored object of pod"),
            "{}",
            node.log()
        );
        assert!(
            !node.log().contains("removed orphaned object"),
            "{}",
            node.log()
        );
        assert!(
            !node.log().contains("released attachment"),
            "{}",
            node.log()
        );
        let now = node.namespace.state();
        assert_eq!((now.links, now.routes), (before.links, before.routes));
        assert_eq!(node.attachments().len(), pods.len());
    }
}

#[test]
fn netns_bridge_sysctls_are_set() {
    let node = Node::ready(BRIDGED);
    for (name, value) in [
        ("bridge/bridge-nf-call-iptables", "1"),
        ("bridge/bridge-nf-call-ip6tables", "1"),
        ("ipv4/conf/nw-br0/forwarding", "1"),
        ("ipv4/conf/nw-br0/rp_filter", "2"),
        ("ipv6/conf/nw-br0/accept_ra", "0"),
    ] {
        let found = node.namespace.command(&format!("cat /proc/sys/net/{name}"));
        assert_eq!(
            String::from_utf8(found.stdout).unwrap().trim(),
            value,
            "{name}"
        );
    }
}

#[test]
fn netns_bridge_node_without_br_netfilter_takes_no_pods() {
    let mut node = Node::new(BRIDGED);
    // The sysctl directory of a kernel without the module.
    let parameters = node.path("sysctl");
    for name in [
        "ipv4/ip_forward",
        "ipv4/conf/ens7/forwarding",
        "ipv4/conf/nw-br0/forwarding",
        "ipv4/conf/nw-br0/rp_filter",
        "ipv4/conf/nw-vx4096/forwarding",
        "ipv4/conf/nw-vx4096/rp_filter",
    ] {
        let path = parameters.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "1").unwrap();
    }
    let mut arguments = node.agent_arguments();
    arguments.extend(["--sysctl-dir".to_owned(), parameters.display().to_string()]);
    let mut agent = node.spawn(&arguments);
    let message = wait_for("the message about the module", || {
        let conditions = node.status()?.conditions;
        let ready = conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .ok_or("no Ready")?;
        Ok((ready.status.clone(), ready.message.clone()))
    });
    assert_eq!(message.0, "False");
    assert!(message.1.contains("modprobe br_netfilter"), "{}", message.1);
    assert!(!node.path("cni/10-netweft.conflist").exists());
    // The agent retries without an event.
    std::fs::create_dir(parameters.join("bridge")).unwrap();
    for name in ["iptables", "ip6tables"] {
        std::fs::write(
            parameters.join(format!("bridge/bridge-nf-call-{name}")),
            "0",
        )
        .unwrap();
    }
    node.wait_until_ready();
    assert!(node.path("cni/10-netweft.conflist").exists());
    agent.kill().unwrap();
    agent.wait().unwrap();
    node.kill_agent();
}
