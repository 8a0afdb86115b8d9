//! The agent puts back what others take from pods' links.

use std::time::Duration;

use super::lab::{BRIDGED, FAMILIES, Families, Node, Pod, Pools, ROUTED, until};

fn heals(pools: Pools, harms: &[&str]) {
    for families in FAMILIES {
        let node = Node::ready(pools.of(families));
        let pods = [node.add("one"), node.add("two")];
        let mut longest = Duration::ZERO;
        for harm in harms {
            let answers = |pod: &Pod| pod.answers(&node.namespace);
            assert!(pods.iter().all(answers), "before {harm}, {families:?}");
            for line in harm.split("; ").flat_map(|line| pods[0].lines(&node, line)) {
                node.namespace.ip(&line);
            }
            longest = longest.max(node.wait_until_clean());
            for pod in &pods {
                assert!(answers(pod), "node to pod after {harm}, {families:?}");
                assert!(pod.reaches(&node), "pod to node after {harm}, {families:?}");
            }
        }
        println!("{families:?}: the slowest repair took {longest:?}");
        until("the agent to say that all is well", || node.is_ready());
        assert!(node.log().contains("restored object of pod"));
        assert!(pods[1].answers(&pods[0].space), "pod to pod, {families:?}");
    }
}

#[test]
fn netns_lost_objects_of_routed_pod_are_restored() {
    heals(
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
    heals(
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
        // Whatever ADD and DEL do, the agent hears of and looks.
        for round in 0..5 {
            let pod = node.add(&format!("round-{round}"));
            node.del(&pod);
        }
        let seen = node.namespace.state();
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
        assert_eq!((now.links, now.routes), (seen.links, seen.routes));
        assert_eq!(node.attachments().len(), pods.len());
    }
}

/// Parameters of the kernel that bridged pods need are put right, and named when the kernel has none.
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
    // A kernel without the module, as far as the agent can see.
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
    let said = until("the agent to name the module", || {
        let conditions = node.status()?.conditions;
        let ready = conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .ok_or("no Ready")?;
        Ok((ready.status.clone(), ready.message.clone()))
    });
    assert_eq!(said.0, "False");
    assert!(said.1.contains("modprobe br_netfilter"), "{}", said.1);
    assert!(!node.path("cni/10-netweft.conflist").exists());
    // It is tried again without anybody's help.
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
