//! `netweft-agent check` names what is wrong, and finds nothing wrong with what is right.

use super::lab::{BRIDGED, Node, ROUTED};

/// What is done, what undoes it, what is said. `LINK` is the host's end.
type Damage = (&'static str, &'static str, &'static [&'static str]);

const ROUTED_DAMAGES: [Damage; 6] = [
    (
        "route delete 10.244.0.2/32",
        "route add 10.244.0.2/32 dev LINK proto 79 metric 20",
        &["For pod default/one: undone: add route 10.244.0.2/32 dev LINK."],
    ),
    (
        "link set LINK down",
        "link set LINK up; route add 10.244.0.2/32 dev LINK proto 79 metric 20; neighbour add 10.244.0.2 dev LINK lladdr MAC nud permanent",
        &[
            "For pod default/one: link LINK is down.",
            "For pod default/one: undone: set neighbour 10.244.0.2 dev LINK mac MAC.",
            "For pod default/one: undone: add route 10.244.0.2/32 dev LINK.",
        ],
    ),
    (
        "route add 10.244.0.9/32 dev LINK proto 79 metric 20",
        "route delete 10.244.0.9/32",
        &["Route 10.244.0.9/32 is a pod's by its protocol, but no pod has it."],
    ),
    (
        "neighbour add 10.244.0.9 dev LINK lladdr MAC nud permanent",
        "neighbour delete 10.244.0.9 dev LINK",
        &["Neighbour 10.244.0.9 on link LINK is a pod's, but no pod has it."],
    ),
    (
        "link add nw0123456789a type veth peer name x",
        "link delete nw0123456789a",
        &["Link nw0123456789a is a pod's by its name, but no pod has it."],
    ),
    (
        "address add 10.244.0.2/32 dev lo",
        "address delete 10.244.0.2/32 dev lo",
        &["Address 10.244.0.2 of pod default/one is also one of the node's link lo."],
    ),
];

const BRIDGED_DAMAGES: [Damage; 3] = [
    (
        "link set LINK type bridge_slave hairpin off",
        "link set LINK type bridge_slave hairpin on",
        &["For pod default/one: undone: set link LINK master nw-br0 hairpin on."],
    ),
    (
        "address delete 10.245.0.1/22 dev nw-br0",
        "address add 10.245.0.1/22 dev nw-br0 noprefixroute; route add 10.245.0.0/22 dev nw-br0 src 10.245.0.1 proto 78 metric 20",
        &[
            "For pod default/one: undone: add address 10.245.0.1/22 dev nw-br0.",
            "For pod default/one: undone: add route 10.245.0.0/22 dev nw-br0 src 10.245.0.1.",
        ],
    ),
    (
        "link delete LINK",
        "",
        &["Link LINK of pod default/one is gone, but its addresses are still taken."],
    ),
];

fn names_each(pools: &str, damages: &[Damage]) {
    let mut node = Node::ready(pools);
    assert_eq!(node.check(), (vec![], Some(0)), "without pods");
    let pod = node.add("one");
    assert_eq!(node.check(), (vec![], Some(0)));
    // Nobody repairs from here on.
    node.kill_agent();
    let mac = node.attachments()[0].pod_mac.to_string();
    let fill = |text: &str| text.replace("LINK", &pod.link).replace("MAC", &mac);
    for (harm, repair, said) in damages {
        node.namespace.ip(&fill(harm));
        let said: Vec<String> = said.iter().map(|line| fill(line)).collect();
        let code = i32::try_from(said.len()).ok();
        assert_eq!(node.check(), (said, code), "{harm}");
        for line in repair.split("; ").filter(|line| !line.is_empty()) {
            node.namespace.ip(&fill(line));
        }
        if !repair.is_empty() {
            assert_eq!(node.check(), (vec![], Some(0)), "after {repair}");
        }
    }
}

#[test]
fn netns_check_names_what_is_wrong_with_routed_pods() {
    names_each(ROUTED, &ROUTED_DAMAGES);
}

#[test]
fn netns_check_names_what_is_wrong_with_bridged_pods() {
    names_each(BRIDGED, &BRIDGED_DAMAGES);
}

#[test]
fn netns_check_reads_the_records_and_says_when_it_cannot_look() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.kill_agent();
    let records = node.path("run/attachments");
    std::fs::write(records.join("10.244.0.77"), "{").unwrap();
    let (said, code) = node.check();
    assert!(
        said[0].starts_with("The attachment of 10.244.0.77 cannot be read"),
        "{said:?}"
    );
    assert_eq!((said.len(), code), (1, Some(1)));
    std::fs::remove_file(records.join("10.244.0.77")).unwrap();
    // A pod whose record somebody took away lives.
    std::fs::remove_file(records.join(pod.ip())).unwrap();
    let (said, code) = node.check();
    assert!(
        said[0].starts_with(&format!("Link {} carries a pod", pod.link)),
        "{said:?}"
    );
    assert_eq!((said.len(), code), (1, Some(1)));
    std::fs::remove_dir(&records).unwrap();
    std::fs::write(&records, "").unwrap();
    assert_eq!(node.check().1, Some(101));
}

#[test]
fn netns_more_than_a_hundred_problems_are_a_hundred() {
    let node = Node::new(ROUTED);
    for n in 0..60 {
        let pair = format!(
            "link add nw{n:011x} type veth peer name nw{:011x}",
            n + 1000
        );
        node.namespace.ip(&pair);
    }
    let (said, code) = node.check();
    assert_eq!((said.len(), code), (120, Some(100)));
}
