//! Another pod network on the node.

use std::fs;

use super::lab::{Namespace, Node, ROUTED, until};

/// Another network as flannel makes it: a bridge with an address inside the IPPool, a route to another node's part, and a pod.
struct Other {
    pod: Namespace,
}

const POD: &str = "10.244.1.5";

impl Other {
    fn new(node: &Node) -> Self {
        let pod = Namespace::new();
        for line in [
            "link add cni0 type bridge",
            "link set cni0 up",
            "address add 10.244.1.1/24 dev cni0",
            "route add 10.244.2.0/24 via 192.0.2.2",
            "link add veth7 type veth peer name eth0",
            "link set veth7 master cni0 up",
        ] {
            node.namespace.ip(line);
        }
        node.namespace
            .command(&format!("ip link set eth0 netns {}", pod.path()));
        pod.ip("link set eth0 up");
        pod.ip(&format!("address add {POD}/24 dev eth0"));
        let other = Self { pod };
        assert!(other.is_reached(node));
        other
    }

    fn is_reached(&self, node: &Node) -> bool {
        node.namespace.pings(POD) && self.pod.pings("10.244.1.1")
    }
}

/// Links and routes of netweft.
fn programmed(node: &Node) -> Vec<String> {
    let links = node.namespace.ip("-oneline link show");
    let links = links.lines().filter(|line| line.contains(": nw"));
    let routes = node.namespace.ip("route show proto 78");
    links.chain(routes.lines()).map(str::to_owned).collect()
}

/// What the agent's own check of the whole node says, and its exit code.
fn check(node: &Node) -> (String, Option<i32>) {
    let mut arguments = node.agent_arguments();
    arguments[1] = "check".into();
    let output = node.namespace.command(&arguments.join(" "));
    (
        String::from_utf8(output.stdout).unwrap(),
        output.status.code(),
    )
}

#[test]
fn netns_node_served_by_other_network_is_not_changed() {
    let mut node = Node::new(ROUTED);
    let other = Other::new(&node);
    fs::create_dir(node.path("cni")).unwrap();
    let configuration = node.path("cni/10-flannel.conflist");
    fs::write(&configuration, "{}").unwrap();
    node.start();
    let said = node.wait_until_it_says("ForeignObject");
    let words = "cni/10-flannel.conflist sorts before 10-netweft.conflist, so another CNI plugin connects the pods of this node, and netweft \
                 changes nothing here: remove the other network and this file, or set agent.ignoreOtherNetworks to true in the chart's \
                 values to run netweft next to it";
    assert!(said.ends_with(words), "{said}");
    let status = node.status().unwrap();
    assert_eq!(status.observed_generation, None);
    let ranges = status.other_networks.iter();
    let ranges: Vec<String> = ranges
        .map(|it| format!("{} {} {:?}", it.cidr, it.pool, it.interface))
        .collect();
    assert_eq!(
        ranges,
        [
            "10.244.1.0/24 routed Some(\"cni0\")",
            "10.244.2.0/24 routed Some(\"ens7\")",
        ]
    );
    assert_eq!(programmed(&node), Vec::<String>::new());
    assert!(!node.path("cni/10-netweft.conflist").exists());
    assert!(other.is_reached(&node));
    assert_eq!(check(&node), (format!("{said}\n"), Some(1)));

    fs::remove_file(configuration).unwrap();
    let ranges = "another network uses addresses of IPPool routed on this node (10.244.1.0/24 on link cni0 and 1 more), and netweft";
    until("the ranges to be named", || {
        let said = node.wait_until_it_says("ForeignObject");
        said.starts_with(ranges).then_some(()).ok_or(said)
    });
    assert_eq!(programmed(&node), Vec::<String>::new());
    node.namespace.ip("route delete 10.244.2.0/24");
    node.namespace.ip("link delete cni0");
    node.wait_until_ready();
    assert_eq!(node.status().unwrap().other_networks, []);
}

#[test]
fn netns_ignore_other_networks_setting_programs_node() {
    let mut node = Node::new(ROUTED);
    let other = Other::new(&node);
    node.start_under(&["env", "NETWEFT_IGNORE_OTHER_NETWORKS=true"]);
    node.wait_until_ready();
    assert!(node.add("one").answers(&node.namespace));
    assert!(other.is_reached(&node));
}

/// What comes later must not cut off the pods that netweft serves, also after a restart of the agent or of the machine.
#[test]
fn netns_served_node_stays_programmed_despite_other_network() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.namespace.ip("link add cni0 type bridge");
    node.namespace.ip("address add 10.244.3.1/24 dev cni0");
    fs::write(node.path("cni/05-other.conflist"), "{}").unwrap();
    node.nudge();
    let said = node.wait_until_it_says("ForeignObject");
    let words = "cni/05-other.conflist sorts before 10-netweft.conflist, so the container runtime uses it instead: remove it";
    assert!(said.ends_with(words), "{said}");
    node.kill_agent();
    node.namespace.ip("link delete nw-vx4096");
    node.start();
    until("the tunnel to be made again", || {
        let links = node.namespace.ip("-oneline link show");
        links.contains("nw-vx4096").then_some(()).ok_or(links)
    });
    assert!(pod.answers(&node.namespace));
}
