//! External changes of the agent's objects are repaired at once and reported; foreign objects are kept.

use std::time::{Duration, Instant};

use super::lab::{BOTH, Families, Node, ROUTED, wait_for};
use super::node_snapshot::snapshot;

/// External changes, each with the object whose repair the agent reports.
const CHANGES: [(&str, &str); 20] = [
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

/// Time limit of a repair, which takes tens of milliseconds. The resync once a minute must not be the trigger.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay between a repair and the next change.
const DELAY: Duration = Duration::from_millis(300);

/// Changes that are specific to IPv6.
const CHANGES_V6: [(&str, &str); 5] = [
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
    // Netlink sends no notification of this change.
    (
        "echo 1 > /proc/sys/net/ipv6/conf/nw-vx4096/accept_ra",
        "parameter net/ipv6/conf/nw-vx4096/accept_ra",
    ),
];

/// Foreign objects that are similar to those of netweft.
const FOREIGN_OBJECTS: &str = "ip link add other-br0 type bridge; ip link set other-br0 up; \
    ip route add 10.250.0.0/24 dev other-br0 metric 20 proto static; \
    ip neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 dev ens7 nud permanent; \
    nft add table inet other; nft add chain inet other c; nft add rule inet other c counter";

fn shell(node: &Node, line: &str) {
    let line = line
        .replace("RUN", &node.path("run").display().to_string())
        .replace("CNI", &node.path("cni").display().to_string());
    let output = node.namespace.run(|| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-ec", &line]).output().unwrap()
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
}

/// The log lines of repairs.
fn repairs(node: &Node) -> Vec<String> {
    let log = node.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("repaired external change"));
    lines.map(str::to_owned).collect()
}

fn repairs_all(node: &Node, changes: &[(&str, &str)]) {
    shell(node, FOREIGN_OBJECTS);
    let pod = node.add("one");
    node.trigger_reconcile();
    let before = snapshot(node);
    let mut slowest = (Duration::ZERO, "");
    for (change, object) in changes {
        // A repair triggers a reconcile, too, which must not be the one that detects the next change.
        std::thread::sleep(DELAY);
        let earlier = repairs(node).len();
        let started = Instant::now();
        shell(node, change);
        wait_for(change, || {
            let (now, logged) = (snapshot(node), repairs(node).split_off(earlier));
            let is_logged = logged.iter().any(|line| line.contains(object));
            (now == before && is_logged)
                .then_some(())
                .ok_or_else(|| format!("{object}: {logged:#?}\n{now:#?}\n{before:#?}"))
        });
        slowest = slowest.max((started.elapsed(), change));
        if object.starts_with("link ") {
            let logged = repairs(node).split_off(earlier);
            let sysctls = logged.iter().any(|line| line.contains("parameter "));
            assert!(!sysctls, "sysctls of a new link are no drift: {logged:#?}");
        }
    }
    println!("the slowest repair: {slowest:?}");
    assert!(
        slowest.0 < REPAIR_TIMEOUT,
        "{slowest:?}: the change was detected by the resync"
    );
    wait_for("the node to be ready", || node.is_ready());
    assert!(pod.is_reachable_from(&node.namespace));
    let (_, last) = changes.last().unwrap();
    wait_for("the last repair in the status", || {
        let drift = node.status()?.drift.unwrap_or_default();
        let all = drift.repairs >= i64::try_from(changes.len()).unwrap();
        (all && drift.message.contains(last) && drift.last_repair_time.is_some())
            .then_some(())
            .ok_or_else(|| format!("{drift:?}"))
    });
}

#[test]
fn netns_external_changes_are_repaired_and_foreign_ones_kept() {
    repairs_all(&Node::ready(BOTH), &CHANGES);
}

#[test]
fn netns_external_ipv6_changes_are_repaired_and_reported() {
    repairs_all(&Node::ready(ROUTED.of(Families::Ipv6)), &CHANGES_V6);
}

#[test]
fn netns_own_changes_of_agent_are_not_drift() {
    let mut node = Node::ready(ROUTED);
    let pod = node.add("one");
    node.trigger_reconcile();
    node.del(&pod);
    node.trigger_reconcile();
    let network = super::lab::network(ROUTED, &["10.244.0.0/22".into()], &["routed".into()]);
    for (generation, edit) in [
        ("2", "{vxlan: {}}"),
        ("3", "{direct: {}}"),
        ("4", "{vxlan: {}}"),
    ] {
        let edited = network
            .replace("generation: 1", &format!("generation: {generation}"))
            .replace("transport: {vxlan: {}}", &format!("transport: {edit}"));
        node.write_object("network.yaml", &edited);
        wait_for("the generation to be acknowledged", || {
            let observed = node.status()?.observed_generation;
            (observed == generation.parse().ok())
                .then_some(())
                .ok_or_else(|| format!("{observed:?}\n{}", node.log()))
        });
    }
    node.kill_agent();
    shell(&node, "ip route flush proto 78");
    node.start();
    wait_for("the routes to be restored", || {
        let routes = node.namespace.ip("route show proto 78");
        routes.contains("10.244.4.0/22").then_some(()).ok_or(routes)
    });
    node.trigger_reconcile();
    wait_for("the agent to be ready", || node.is_ready());
    assert_eq!(repairs(&node), Vec::<String>::new());
    assert_eq!(node.status().unwrap().drift, None);
}

#[test]
fn netns_repeated_external_changes_name_process_and_back_off() {
    let node = Node::ready(ROUTED);
    let script = "for i in $(seq 400); do ip route delete 10.244.4.0/22 proto 78 2>/dev/null; sleep 0.01; done";
    let line = ["sh", "-c", script].map(str::to_owned);
    let mut contender = node.spawn(&line);
    let message = node.wait_for_reason("Contested");
    assert!(message.contains("route 10.244.4.0/22"), "{message}");
    assert!(message.contains(" by process "), "{message}");
    contender.wait().unwrap();
    let repairs = repairs(&node).len();
    // Twenty immediate repairs, then at most ten per second.
    assert!((20..=80).contains(&repairs), "{repairs}");
    wait_for("the route to be back", || {
        let routes = node.namespace.ip("route show proto 78");
        routes.contains("10.244.4.0/22").then_some(()).ok_or(routes)
    });
}
