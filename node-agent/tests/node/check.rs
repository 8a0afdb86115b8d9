//! `netweft-agent check` reports each kind of damage, and no problem of an intact node.

use super::lab::{BRIDGED, FAMILIES, Node, Pod, Pools, ROUTED};

/// The damage, its repair, and the reported problems, for each address of a pod. `Pod::lines` describes the placeholders.
type Damage = (&'static str, &'static str, &'static [&'static str]);

const ROUTED_DAMAGES: [Damage; 6] = [
    (
        "route delete IP/LEN",
        "route add IP/LEN dev LINK proto 79 metric 20",
        &["For pod default/one: not in effect: add route IP/LEN dev LINK."],
    ),
    (
        "link set LINK down",
        "link set LINK up; route add IP/LEN dev LINK proto 79 metric 20; neighbour add IP dev LINK lladdr MAC nud permanent",
        &[
            "For pod default/one: link LINK is down.",
            "For pod default/one: not in effect: set neighbour IP dev LINK mac MAC.",
            "For pod default/one: not in effect: add route IP/LEN dev LINK.",
        ],
    ),
    (
        "route add OTHER/LEN dev LINK proto 79 metric 20",
        "route delete OTHER/LEN",
        &["Route OTHER/LEN has the protocol of a pod's route, but belongs to no pod."],
    ),
    (
        "neighbour add OTHER dev LINK lladdr MAC nud permanent",
        "neighbour delete OTHER dev LINK",
        &["Neighbour OTHER on link LINK belongs to no pod."],
    ),
    (
        "link add nw0123456789a type veth peer name x",
        "link delete nw0123456789a",
        &["Link nw0123456789a has the name of a pod's link, but belongs to no pod."],
    ),
    (
        "address add IP/LEN dev lo",
        "address delete IP/LEN dev lo",
        &["Address IP of pod default/one is also one of the node's link lo."],
    ),
];

const BRIDGED_DAMAGES: [Damage; 3] = [
    (
        "link set LINK type bridge_slave hairpin off",
        "link set LINK type bridge_slave hairpin on",
        &["For pod default/one: not in effect: set link LINK master nw-br0 hairpin on."],
    ),
    (
        "route delete BLOCK dev nw-br0; address delete GATEWAY dev nw-br0",
        "address add GATEWAY dev nw-br0 noprefixroute; route replace BLOCK dev nw-br0 src VIA proto 78 metric 20",
        &[
            "For pod default/one: not in effect: add address GATEWAY dev nw-br0.",
            "For pod default/one: not in effect: add route BLOCK dev nw-br0 src VIA.",
        ],
    ),
    (
        "link delete LINK",
        "",
        &["Link LINK of pod default/one does not exist, but its addresses are still assigned."],
    ),
];

fn run(node: &Node, pod: &Pod, lines: &str) {
    for line in lines.split("; ").flat_map(|line| pod.lines(node, line)) {
        node.namespace.ip(&line);
    }
}

fn reports_each(pools: Pools, damages: &[Damage]) {
    for families in FAMILIES {
        let mut node = Node::ready(pools.of(families));
        assert_eq!(node.check(), (vec![], Some(0)), "without pods");
        let pod = node.add("one");
        assert_eq!(node.check(), (vec![], Some(0)));
        // Without the agent nothing is repaired.
        node.kill_agent();
        for (damage, repair, problems) in damages {
            let problems: Vec<String> = problems
                .iter()
                .flat_map(|line| pod.lines(&node, line))
                .collect();
            run(&node, &pod, damage);
            let code = i32::try_from(problems.len()).ok();
            assert_eq!(node.check(), (problems, code), "{damage}, {families:?}");
            if !repair.is_empty() {
                run(&node, &pod, repair);
                let after = node.check();
                assert_eq!(after, (vec![], Some(0)), "after {repair}, {families:?}");
            }
        }
    }
}

#[test]
fn netns_check_names_each_damage_to_routed_pods() {
    reports_each(ROUTED, &ROUTED_DAMAGES);
}

#[test]
fn netns_check_names_each_damage_to_bridged_pods() {
    reports_each(BRIDGED, &BRIDGED_DAMAGES);
}

#[test]
fn netns_check_reports_unreadable_records_and_failed_reads() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.kill_agent();
    let records = node.path("run/attachments");
    std::fs::write(records.join("10.244.0.77"), "{").unwrap();
    let (problems, code) = node.check();
    assert!(
        problems[0].starts_with("The attachment of 10.244.0.77 cannot be read"),
        "{problems:?}"
    );
    assert_eq!((problems.len(), code), (1, Some(1)));
    std::fs::remove_file(records.join("10.244.0.77")).unwrap();
    // The record of a running pod is deleted.
    std::fs::remove_file(records.join(pod.addresses[0].to_string())).unwrap();
    let (problems, code) = node.check();
    let expected = format!("Link {} belongs to a pod without an attachment", pod.link);
    assert!(problems[0].starts_with(&expected), "{problems:?}");
    assert_eq!((problems.len(), code), (1, Some(1)));
    std::fs::remove_dir(&records).unwrap();
    std::fs::write(&records, "").unwrap();
    assert_eq!(node.check().1, Some(101));
}

#[test]
fn netns_check_exit_code_is_at_most_hundred() {
    let node = Node::new(ROUTED);
    for n in 0..60 {
        let pair = format!(
            "link add nw{n:011x} type veth peer name nw{:011x}",
            n + 1000
        );
        node.namespace.ip(&pair);
    }
    let (problems, code) = node.check();
    assert_eq!((problems.len(), code), (120, Some(100)));
}
