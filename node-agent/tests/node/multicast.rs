//! Multicast between pods of one bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::lab::{BRIDGED, Families, Node, Pod};

/// Sends to a multicast group from one pod, and returns the source address that another member receives.
fn received_source(from: &Pod, to: &Pod, group: IpAddr) -> IpAddr {
    let listener = to.space.run(|| {
        let any: IpAddr = match group {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // The kernel chooses the port: a child that another test has forked holds the last one until it executes its program.
        let socket = UdpSocket::bind((any, 0)).unwrap();
        match group {
            IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, 0),
        }
        .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket
    });
    let port = listener.local_addr().unwrap().port();
    let own = from
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == group.is_ipv4());
    from.space.run(|| {
        let socket = UdpSocket::bind((*own.unwrap(), 0)).unwrap();
        socket
            .send_to(b"hello", SocketAddr::new(group, port))
            .unwrap();
    });
    listener.recv_from(&mut [0; 16]).unwrap().1.ip()
}

/// Multicast groups are outside the pools, yet these packets do not leave the node.
#[test]
fn netns_multicast_of_bridged_pod_keeps_source_address() {
    let node = Node::ready(BRIDGED.of(Families::Both));
    let (one, two) = (node.add("one"), node.add("two"));
    for group in ["224.0.0.251", "ff02::fb"] {
        let group: IpAddr = group.parse().unwrap();
        assert!(
            one.addresses.contains(&received_source(&one, &two, group)),
            "{group}"
        );
    }
}
