//! The nftables tables of the agent with the real kernel.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::lab::{BRIDGED, Families, Namespace, Node, ROUTED};

/// Time limit of a datagram that has to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// kube-proxy masquerades with any source port (`--random-fully`).
#[test]
fn netns_reply_to_source_port_of_tunnel_reaches_pod() {
    let node = Node::ready(ROUTED);
    let outside = Namespace::new();
    let space = &node.namespace;
    space.ip(&format!("link set far0 netns {}", outside.path()));
    outside.ip("address add 192.0.2.99/24 dev far0");
    outside.ip("link set far0 up");
    let pod = node.add("one");
    let address = pod.addresses[0];
    let rule = format!("ip saddr {address} udp sport 5555 snat ip to 192.0.2.1:4789");
    let hook = "type nat hook postrouting priority 98";
    let table = format!("table inet other {{\nchain postrouting {{\n{hook}\n{rule}\n}}\n}}\n");
    let file = node.path("table.nft");
    fs::write(&file, table).unwrap();
    let loaded = space.command(&format!("nft -f {}", file.display()));
    assert!(loaded.status.success(), "{loaded:?}");

    let server = outside.run(|| UdpSocket::bind("192.0.2.99:7777").unwrap());
    let client = pod.space.run(|| UdpSocket::bind((address, 5555)).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    client.send_to(b"request", "192.0.2.99:7777").unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.to_string(), "192.0.2.1:4789");
    server.send_to(b"reply", from).unwrap();
    client.recv_from(&mut [0; 16]).unwrap();
}

/// The agent is killed, so that the record of the second pod is not read.
#[test]
fn netns_bridged_pod_without_record_does_not_become_router() {
    let mut node = Node::ready(BRIDGED.of(Families::Both));
    let one = node.add("one");
    node.kill_agent();
    let two = node.add("two");
    // Hop limit 64, no flags, 1800 s; the kernel computes the checksum (RFC 4861, section 4.2).
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    // An echo request is not dropped, and shows that the advertisement was delivered to the link.
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let receiver = one.space.run(|| UdpSocket::from(icmpv6()));
    two.space.run(|| {
        let link = if_nametoindex("eth0").unwrap();
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let all_nodes = SocketAddrV6::new(all_nodes, 0, 0, link).into();
        let sender = icmpv6();
        sender.set_multicast_hops_v6(255).unwrap();
        for packet in [&advertisement[..], &echo] {
            sender.send_to(packet, &all_nodes).unwrap();
        }
    });
    let mut packet = [0; 64];
    let mut types = std::iter::from_fn(|| {
        receiver.recv(&mut packet).unwrap();
        Some(packet[0])
    });
    let received = types.find(|type_| [advertisement[0], echo[0]].contains(type_));
    assert_eq!(received, Some(echo[0]));
}

/// A socket that sends and receives ICMPv6 messages.
fn icmpv6() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}
