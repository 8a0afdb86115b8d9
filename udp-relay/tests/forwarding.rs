//! The traffic that a tunnel forwards between two kernels.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod relay_network;

use relay_network::{LINK, RelayNetwork, verified_traffic};

/// All traffic of a pod, over IPv4 or over IPv6.
fn forwards_all_traffic(outer_v6: bool) {
    let (network, _relays) = RelayNetwork::running(outer_v6);
    let [one, two] = &network.nodes;
    for v6 in [false, true] {
        let (to, headers) = (two.inner(v6), if v6 { 48 } else { 28 });
        assert!(one.pings(&to, ""), "v6 {v6}");
        let fits = one.mtu() - headers;
        assert!(
            one.pings(&to, &format!("-M do -s {fits}")),
            "a packet of MTU size, v6 {v6}"
        );
        assert!(
            !one.pings(&to, &format!("-M do -s {}", fits + 1)),
            "a packet above the MTU, v6 {v6}"
        );
        assert!(one.pings(&to, "-s 9000"), "in fragments, v6 {v6}");
        verified_traffic::udp(one, two, v6);
        verified_traffic::tcp(one, two, v6, 100 << 20);
        verified_traffic::tcp(two, one, v6, 30 << 20);
    }
    let per_read =
        one.metric("packets", "direction=\"out\"") / one.metric("reads", "direction=\"out\"");
    assert!(
        per_read >= 4,
        "the link delivers GSO packets: {per_read} packets per read"
    );
    let per_write =
        two.metric("packets", "direction=\"in\"") / two.metric("writes", "direction=\"in\"");
    assert!(
        per_write >= 4,
        "segments are coalesced: {per_write} packets per write"
    );
    for node in &network.nodes {
        for reason in [
            "malformed",
            "truncated",
            "too_big",
            "not_ip",
            "empty",
            "link_refused",
            "send_failed",
            "not_segmentable",
        ] {
            assert_eq!(node.drops(reason), 0, "{reason} on node {}", node.number);
        }
    }
}

#[test]
fn netns_relay_carries_all_traffic_over_ipv4() {
    forwards_all_traffic(false);
}

#[test]
fn netns_relay_carries_all_traffic_over_ipv6() {
    forwards_all_traffic(true);
}

/// The MTU of the segment is smaller than the MTU that the tunnel assumes: the kernel fragments datagrams and refuses UDP_SEGMENT.
#[test]
fn netns_small_underlay_mtu_fragments_datagrams() {
    for outer_v6 in [false, true] {
        let (network, _relays) = RelayNetwork::running(outer_v6);
        let [one, two] = &network.nodes;
        for node in &network.nodes {
            node.namespace.ip("link set eth0 mtu 1400");
        }
        verified_traffic::tcp(one, two, false, 5 << 20);
        verified_traffic::tcp(one, two, true, 5 << 20);
        assert!(one.metric("gso_refused", "direction=\"out\"") > 0);
        assert_eq!(one.drops("send_failed"), 0);
    }
}

#[test]
fn netns_packet_without_peer_is_dropped_and_counted() {
    let (network, _relays) = RelayNetwork::running(false);
    let one = &network.nodes[0];
    one.namespace
        .ip(&format!("route add 10.99.0.0/24 dev {LINK}"));
    let before = one.drops("no_peer");
    assert!(!one.pings("10.99.0.1", ""));
    assert_eq!(one.drops("no_peer"), before + 1);
}
