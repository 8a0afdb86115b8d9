//! What others change of the agent's own is put right at once and told; what is others' stays.

use std::time::{Duration, Instant};

use super::lab::{BOTH, Families, Node, ROUTED, until};
use super::node_state::picture;

/// A harm, and what the agent says it has put right.
const HARMS: [(&str, &str); 20] = [
    (
        "ip route delete 10.244.4.0/22 proto 78",
        "route 10.244.4.0/22",
    ),
    ("ip route flush proto 78", "route 10.244.8.0/22"),
    (
        "ip route replace blackhole 10.244.4.0/22 metric 20 proto 78",
        "route 10.244.4.0/22",
    ),
    (
        "ip route add blackhole 10.99.0.0/24 metric 20 proto 78",
        "route 10.99.0.0/24",
    ),
    (
        "ip neighbour flush dev nw-vx4096 nud permanent",
        "neighbour ",
    ),
    (
        "bridge fdb delete $(bridge fdb show dev nw-vx4096 | head -n 1 | cut -d ' ' -f 1) dev nw-vx4096",
        "fdb entry ",
    ),
    ("ip link set nw-vx4096 down", "link nw-vx4096"),
    ("ip link set nw-vx4096 mtu 1280", "link nw-vx4096"),
    (
        "ip link set nw-vx4096 address 02:00:00:00:00:99",
        "link nw-vx4096",
    ),
    ("ip link delete nw-vx4096", "link nw-vx4096"),
    ("ip link delete nw-br0", "link nw-br0"),
    ("ip link add nw-more type bridge", "link nw-more"),
    ("ip -4 address flush dev nw-vx4096", "address "),
    (
        "ip address add 10.99.0.1/32 dev nw-vx4096",
        "address 10.99.0.1/32",
    ),
    ("nft delete table inet netweft", "nft table inet netweft"),
    (
        "nft insert rule inet netweft postrouting accept",
        "nft table inet netweft",
    ),
    (
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "parameter net/ipv4/ip_forward",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/conf/nw-vx4096/rp_filter",
        "parameter net/ipv4/conf/nw-vx4096/rp_filter",
    ),
    ("rm RUN/node.json", "node.json"),
    ("echo '{' > CNI/10-netweft.conflist", "10-netweft.conflist"),
];

/// Repairs take tens of milliseconds. What is not heard of is found once a minute, which is no repair.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(10);

/// Between a repair and the next harm.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// The same of IPv6, where it differs.
const HARMS_V6: [(&str, &str); 5] = [
    (
        "ip -6 route delete fd00:244::400/118 proto 78",
        "route fd00:244::400/118",
    ),
    (
        "ip -6 neighbour flush dev nw-vx4096 nud permanent",
        "neighbour ",
    ),
    ("ip -6 address flush dev nw-vx4096", "address "),
    (
        "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        "parameter net/ipv6/conf/all/forwarding",
    ),
    // Of this one netlink says nothing.
    (
        "echo 1 > /proc/sys/net/ipv6/conf/nw-vx4096/accept_ra",
        "parameter net/ipv6/conf/nw-vx4096/accept_ra",
    ),
];

/// Of strangers, much like ours.
const STRANGERS: &str = "ip link add other-br0 type bridge; ip link set other-br0 up; \
    ip route add 10.250.0.0/24 dev other-br0 metric 20 proto static; \
    ip neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 dev ens7 nud permanent; \
    nft add table inet other; nft add chain inet other c; nft add rule inet other c counter";

fn shell(node: &Node, line: &str) {
    let line = line
        .replace("RUN", &node.path("run").display().to_string())
        .replace("CNI", &node.path("cni").display().to_string());
    let done = node.namespace.run(|| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-ec", &line]).output().unwrap()
    });
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
}

/// What the agent has logged of repairs.
fn repairs(node: &Node) -> Vec<String> {
    let log = node.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("repaired external change"));
    lines.map(str::to_owned).collect()
}

fn puts_right(node: &Node, harms: &[(&str, &str)]) {
    shell(node, STRANGERS);
    let pod = node.add("one");
    node.nudge();
    let before = picture(node);
    let mut slowest = (Duration::ZERO, "");
    for (harm, what) in harms {
        // The agent's own repair is heard of too, and the look that answers it must not be what finds the next harm.
        std::thread::sleep(SETTLE_TIME);
        let before_it = repairs(node).len();
        let started = Instant::now();
        shell(node, harm);
        until(harm, || {
            let (now, told) = (picture(node), repairs(node).split_off(before_it));
            let said = told.iter().any(|line| line.contains(what));
            (now == before && said)
                .then_some(())
                .ok_or_else(|| format!("{what}: {told:#?}\n{now:#?}\n{before:#?}"))
        });
        slowest = slowest.max((started.elapsed(), harm));
        if what.starts_with("link ") {
            let told = repairs(node).split_off(before_it);
            let parameters = told.iter().any(|line| line.contains("parameter "));
            assert!(!parameters, "a new link has the kernel's own: {told:#?}");
        }
    }
    println!("the slowest repair: {slowest:?}");
    assert!(
        slowest.0 < REPAIR_TIMEOUT,
        "{slowest:?}: nobody has heard of it"
    );
    until("the agent to say that all is well", || node.is_ready());
    assert!(pod.answers(&node.namespace));
    let (_, last) = harms.last().unwrap();
    until("the status to tell of the last", || {
        let drift = node.status()?.drift.unwrap_or_default();
        let all = drift.repairs >= i64::try_from(harms.len()).unwrap();
        (all && drift.message.contains(last) && drift.last_repair_time.is_some())
            .then_some(())
            .ok_or_else(|| format!("{drift:?}"))
    });
}

#[test]
fn netns_external_changes_are_repaired_and_foreign_ones_kept() {
    puts_right(&Node::ready(BOTH), &HARMS);
}

#[test]
fn netns_external_ipv6_changes_are_repaired_and_reported() {
    puts_right(&Node::ready(ROUTED.of(Families::Ipv6)), &HARMS_V6);
}

#[test]
fn netns_own_changes_of_agent_are_not_drift() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.nudge();
    node.del(&pod);
    node.nudge();
    let network = super::lab::network(ROUTED, &["10.244.0.0/22".into()], &["routed".into()]);
    for (generation, edit) in [
        ("2", "{vxlan: {}}"),
        ("3", "{direct: {}}"),
        ("4", "{vxlan: {}}"),
    ] {
        let edited = network
            .replace("generation: 1", &format!("generation: {generation}"))
            .replace("transport: {vxlan: {}}", &format!("transport: {edit}"));
        node.declare("network.yaml", &edited);
        until("the agent to follow", || {
            let observed = node.status()?.observed_generation;
            (observed == generation.parse().ok())
                .then_some(())
                .ok_or_else(|| format!("{observed:?}\n{}", node.log()))
        });
    }
    node.kill_agent();
    shell(&node, "ip route flush proto 78");
    node.start();
    until("the agent to put the routes back", || {
        let routes = node.namespace.ip("route show proto 78");
        routes.contains("10.244.4.0/22").then_some(()).ok_or(routes)
    });
    node.nudge();
    until("the agent to be ready", || node.is_ready());
    assert_eq!(repairs(&node), Vec::<String>::new());
    assert_eq!(node.status().unwrap().drift, None);
}

#[test]
fn netns_repeated_external_changes_name_process_and_back_off() {
    let node = Node::ready(ROUTED);
    let script = "for i in $(seq 400); do ip route delete 10.244.4.0/22 proto 78 2>/dev/null; sleep 0.01; done";
    let line = ["sh", "-c", script].map(str::to_owned);
    let mut fighter = node.spawn(&line);
    let sentence = node.wait_until_it_says("Contested");
    assert!(sentence.contains("route 10.244.4.0/22"), "{sentence}");
    assert!(sentence.contains(" by process "), "{sentence}");
    fighter.wait().unwrap();
    let put_right = repairs(&node).len();
    // At once twenty times, and then ten times a second at most.
    assert!((20..=80).contains(&put_right), "{put_right}");
    until("the route to be back", || {
        let routes = node.namespace.ip("route show proto 78");
        routes.contains("10.244.4.0/22").then_some(()).ok_or(routes)
    });
}
