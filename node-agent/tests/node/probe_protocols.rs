//! Standby datapaths are probed by ICMP echo and by UDP: one reply is enough, and agents answer only UDP requests of other nodes.

use std::net::UdpSocket;
use std::process::Child;
use std::time::Duration;

use super::lab::{FAMILIES, Families, Namespace, Node, ROUTED, network, wait_for};

/// The second node, with its own agent, at the other end of the first node's uplink.
struct SecondNode {
    node: Node,
    agent: Child,
}

impl SecondNode {
    fn connected_to(one: &Node, families: Families) -> Self {
        let node = Node::new(ROUTED.of(families));
        let namespace = &node.namespace;
        namespace.ip("link delete ens7");
        one.namespace.ip(&format!(
            "link set far0 netns {} name ens7",
            namespace.path()
        ));
        namespace.ip("link set ens7 addrgenmode none up");
        if families != Families::Ipv6 {
            namespace.ip("address add 192.0.2.2/24 dev ens7");
        }
        if families != Families::Ipv4 {
            // Sources of neighbour solicitations: the source of the probes is on another link.
            one.namespace.ip("address add fe80::1:1/64 dev ens7 nodad");
            namespace.ip("address add fe80::1:2/64 dev ens7 nodad");
            namespace.ip("address add 2001:db8::2/64 dev ens7 nodad");
        }
        let (blocks, names) = blocks(families, ["10.244.4.0/22", "fd00:244::400/118"]);
        let text = network(ROUTED.of(families), &blocks, &names);
        let text = text.replace("name: one", "name: two");
        let text = text.replace("192.0.2.1", "192.0.2.2");
        node.write_object("network.yaml", &text.replace("2001:db8::1", "2001:db8::2"));
        let mut arguments = node.agent_arguments();
        let name = arguments.iter().position(|it| it == "one").unwrap();
        arguments[name] = "two".to_owned();
        let agent = node.spawn(&arguments);
        node.wait_until_ready();
        Self { node, agent }
    }

    /// Drops requests by these protocols; UDP requests only if they arrive by the standby datapath.
    fn drop(&self, icmp: bool, udp: bool) {
        let namespace = &self.node.namespace;
        let ignore = u8::from(icmp);
        run(
            namespace,
            &format!(
                "sysctl -w net.ipv4.icmp_echo_ignore_all={ignore} net.ipv6.icmp.echo_ignore_all={ignore}"
            ),
        );
        run(namespace, "nft add table inet dropping");
        run(namespace, "nft delete table inet dropping");
        if udp {
            run(namespace, "nft add table inet dropping");
            run(
                namespace,
                "nft add chain inet dropping input { type filter hook input priority 0 ; }",
            );
            run(
                namespace,
                "nft add rule inet dropping input iifname ens7 udp dport 9471 drop",
            );
        }
    }
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }
}

fn run(namespace: &Namespace, line: &str) {
    let done = namespace.command(line);
    assert!(done.status.success(), "{line}: {done:?}");
}

/// The blocks of the families, and the names of their pools.
fn blocks(families: Families, [four, six]: [&str; 2]) -> (Vec<String>, Vec<String>) {
    let both = [
        (Families::Ipv6, four, "routed"),
        (Families::Ipv4, six, "routed-six"),
    ];
    let used = both.iter().filter(|(without, ..)| *without != families);
    used.map(|(_, block, name)| ((*block).to_owned(), (*name).to_owned()))
        .unzip()
}

/// The first node uses VXLAN. With a probe, host-gw is in standby.
fn set_standby(node: &Node, families: Families, generation: i64, probe: Option<&str>) {
    let (blocks, names) = blocks(families, ["10.244.0.0/22", "fd00:244::/118"]);
    let text = network(ROUTED.of(families), &blocks, &names);
    let text = text.replace("generation: 1", &format!("generation: {generation}"));
    let standby = probe.map_or_else(String::new, |probe| {
        format!(
            ", {{name: default, standbyPools: [{}], transport: {{direct: {{}}}}{probe}}}",
            names.join(", ")
        )
    });
    node.write_object(
        "network.yaml",
        &text.replace("]}", &format!("{standby}]}}")),
    );
    wait_for("the generation to be acknowledged", || {
        let status = node.status()?;
        let done = status.observed_generation == Some(generation)
            && status.probes.is_empty() == probe.is_none();
        done.then_some(()).ok_or(format!("{status:?}"))
    });
}

#[test]
fn netns_probe_reply_by_one_protocol_suffices() {
    for families in FAMILIES {
        let one = Node::ready(ROUTED.of(families));
        let two = SecondNode::connected_to(&one, families);
        let mut generation = 1;
        let cases = [
            // An earlier version of the operator sets no probe protocol.
            (false, false, "", true),
            (true, false, "", true),
            (false, true, ", probe: auto", true),
            (true, true, "", false),
            (false, true, ", probe: icmp", true),
            (true, false, ", probe: icmp", false),
            (true, false, ", probe: udp", true),
            (false, true, ", probe: udp", false),
        ];
        // The other cases do not depend on the family.
        let count = if families == Families::Both { 8 } else { 4 };
        for (icmp_dropped, udp_dropped, probe, answered) in cases.into_iter().take(count) {
            two.drop(icmp_dropped, udp_dropped);
            set_standby(&one, families, generation + 1, Some(probe));
            if !answered {
                // More than two rounds of requests.
                std::thread::sleep(Duration::from_millis(1500));
            }
            let expected = if answered { "three" } else { "three,two" };
            wait_for("the replies", || {
                let status = one.status()?;
                let found = status.probes.first().ok_or("no probe")?;
                let unreachable = found.unreachable.join(",");
                (unreachable == expected).then_some(()).ok_or(format!(
                    "{families:?}, ICMP dropped {icmp_dropped}, UDP dropped {udp_dropped}, {probe}: {found:?}"
                ))
            });
            let protocols = one.status().unwrap().probes[0].protocols.join(" ");
            assert_eq!(protocols.contains("ICMP echo"), !probe.contains("udp"));
            assert_eq!(protocols.contains("UDP port 9471"), !probe.contains("icmp"));
            generation += 2;
            set_standby(&one, families, generation, None);
            // Replies are dropped at the end of a round of requests.
            std::thread::sleep(Duration::from_millis(700));
        }
    }
}

/// The reply, and its source, to a request from `from` to the first node's own address in its block.
fn request(namespace: &Namespace, from: &str, data: &[u8]) -> Option<(Vec<u8>, String)> {
    namespace.run(|| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        let timeout = Duration::from_millis(300);
        socket.set_read_timeout(Some(timeout)).unwrap();
        socket.send_to(data, "10.244.0.1:9471").unwrap();
        let mut buffer = [0; 64];
        let (length, source) = socket.recv_from(&mut buffer).ok()?;
        Some((buffer[..length].to_vec(), source.to_string()))
    })
}

#[test]
fn netns_responder_replies_to_nodes_from_requested_address() {
    let one = Node::ready(ROUTED);
    let other = Namespace::new();
    one.namespace
        .ip(&format!("link set far0 netns {}", other.path()));
    other.ip("link set far0 up");
    // 192.0.2.2 is the address of a node, 192.0.2.9 is not.
    other.ip("address add 192.0.2.2/24 dev far0");
    other.ip("address add 192.0.2.9/24 dev far0");
    other.ip("route add 10.244.0.0/22 via 192.0.2.1");
    let data = b"netweft?12345678";
    let expected = (b"netweft!12345678".to_vec(), "10.244.0.1:9471".to_owned());
    wait_for("a reply", || {
        let reply = request(&other, "192.0.2.2", data);
        (reply.as_ref() == Some(&expected))
            .then_some(())
            .ok_or(format!("{reply:?}"))
    });
    assert_eq!(request(&other, "192.0.2.9", data), None);
    for wrong in [
        &b"netweft!12345678"[..],
        b"netweft?1234567",
        b"netweft?123456789",
        b"",
    ] {
        assert_eq!(request(&other, "192.0.2.2", wrong), None);
    }
    assert_eq!(request(&other, "192.0.2.2", data), Some(expected));
}

#[test]
fn netns_taken_responder_port_is_reported_and_harmless() {
    let mut node = Node::new(ROUTED);
    let socket = node
        .namespace
        .run(|| UdpSocket::bind("0.0.0.0:9471").unwrap());
    node.start();
    let own = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let note = format!(
        "other nodes get no reply by UDP from this node when they probe a new datapath, and can only use ICMP echo: UDP port 9471 is used on this node by process {own} ({}); end that program, or set agent.port in the chart to a free port",
        name.trim()
    );
    wait_for("the note", || {
        let message = node.is_ready()?;
        message.contains(&note).then_some(()).ok_or(message)
    });
    assert_eq!(node.log().matches("UDP port 9471 is used").count(), 1);
    drop(socket);
    wait_for("the note to go", || {
        let message = node.is_ready()?;
        (!message.contains("UDP port")).then_some(()).ok_or(message)
    });
}
