//! Another pod network on the node.

use std::fs;

use super::lab::{Namespace, Node, ROUTED, wait_for};

/// The network of flannel: a bridge with an address inside the IPPool, a route to the subnet of another node, and a pod.
struct OtherNetwork {
    pod: Namespace,
}

const POD: &str = "10.244.1.5";

impl OtherNetwork {
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
        let network = Self { pod };
        assert!(network.is_connected(node));
        network
    }

    fn is_connected(&self, node: &Node) -> bool {
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

/// The output and the exit code of `netweft-agent check` for the whole node.
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
    let other = OtherNetwork::new(&node);
    fs::create_dir(node.path("cni")).unwrap();
    let configuration = node.path("cni/10-flannel.conflist");
    fs::write(&configuration, "{}").unwrap();
    node.start();
    let message = node.wait_for_reason("ForeignObject");
    let expected = "cni/10-flannel.conflist sorts before 10-netweft.conflist, so another CNI plugin connects the pods of this node, and netweft \
                 changes nothing here: remove the other network and this file, or set agent.ignoreOtherNetworks to true in the chart's \
                 values to run netweft next to it";
    assert!(message.ends_with(expected), "{message}");
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
    assert!(other.is_connected(&node));
    assert_eq!(check(&node), (format!("{message}\n"), Some(1)));

    fs::remove_file(configuration).unwrap();
    let ranges = "another network uses addresses of IPPool routed on this node (10.244.1.0/24 on link cni0 and 1 more), and netweft";
    wait_for("the ranges to be named", || {
        let message = node.wait_for_reason("ForeignObject");
        message.starts_with(ranges).then_some(()).ok_or(message)
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
    let other = OtherNetwork::new(&node);
    node.start_under(&["env", "NETWEFT_IGNORE_OTHER_NETWORKS=true"]);
    node.wait_until_ready();
    assert!(node.add("one").is_reachable_from(&node.namespace));
    assert!(other.is_connected(&node));
}

/// Another network that appears later must not disconnect the pods of netweft, also after a restart of the agent.
#[test]
fn netns_served_node_stays_programmed_despite_other_network() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.namespace.ip("link add cni0 type bridge");
    node.namespace.ip("address add 10.244.3.1/24 dev cni0");
    fs::write(node.path("cni/05-other.conflist"), "{}").unwrap();
    node.trigger_reconcile();
    let message = node.wait_for_reason("ForeignObject");
    let expected = "cni/05-other.conflist sorts before 10-netweft.conflist, so the container runtime uses it instead: remove it";
    assert!(message.ends_with(expected), "{message}");
    node.kill_agent();
    node.namespace.ip("link delete nw-vx4096");
    node.start();
    wait_for("the tunnel", || {
        let links = node.namespace.ip("-oneline link show");
        links.contains("nw-vx4096").then_some(()).ok_or(links)
    });
    assert!(pod.is_reachable_from(&node.namespace));
}
