//! Datagrams that no relay sends.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod relay_network;

use std::net::UdpSocket;
use std::thread;

use relay_network::verified_traffic::Pings;
use relay_network::{LINK, Namespace, PORT, RelayNetwork, eventually};

/// Enough datagrams to load the relay for a short time.
const FLOOD: usize = 200_000;

/// Packets that the relay's link has received.
fn received(namespace: &Namespace) -> u64 {
    let text = namespace.ip(&format!("-statistics -json link show {LINK}"));
    let start = text.split_once(r#""rx":{"#).unwrap().1;
    let start = start.split_once(r#""packets":"#).unwrap().1;
    start.split(',').next().unwrap().parse().unwrap()
}

/// A datagram with a ping from node 2's address in the tunnel to node 1's.
fn valid() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 244, 2, 1, 10, 244, 1, 1,
    ];
    packet.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Sends datagrams from a namespace to the relay of node 1, at the maximum rate.
fn flood(from: &Namespace, bind: (&str, u16), datagram: &[u8], count: usize) {
    from.run(|| {
        let socket = UdpSocket::bind(bind).unwrap();
        for _ in 0..count {
            // A full send buffer is not an error of the test.
            let _ = socket.send_to(datagram, ("192.0.2.1", PORT));
        }
    });
}

#[test]
fn netns_flood_from_non_peer_delivers_nothing() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    // Nothing else may count as received.
    one.namespace
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").unwrap());
    let before = received(&one.namespace);
    flood(&network.non_peer, ("192.0.2.9", PORT), &valid(), FLOOD);
    assert!(
        one.drops("not_a_peer") > FLOOD as u64 / 10,
        "{}",
        one.drops("not_a_peer")
    );
    assert_eq!(received(&one.namespace), before, "nothing was delivered");
    thread::scope(|scope| {
        let pings = Pings::start(two, &one.inner(true), 2000);
        scope.spawn(|| flood(&network.non_peer, ("192.0.2.9", PORT), &valid(), FLOOD));
        let lost = pings.lost();
        assert!(
            lost <= 20,
            "{lost} of 2000 pings of a real peer were lost during a flood"
        );
    });
}

#[test]
fn netns_invalid_packets_of_peer_are_dropped_by_reason() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [_first, second] = relays;
    // Without the relay, the test can send from the address and port of the peer.
    second.kill();
    let before = received(&one.namespace);
    let (valid, count) = (valid(), 50_000);
    let mut longer = valid.clone();
    longer.push(0);
    let mut big = valid.clone();
    big.resize(1500, 0);
    big[2..4].copy_from_slice(&1500u16.to_be_bytes());
    let cases: [(&str, &[u8]); 8] = [
        ("empty", &[]),
        ("not_ip", b"\x17rubbish"),
        ("truncated", &valid[..27]),
        ("truncated", &valid[..19]),
        ("truncated", &[0x60; 39]),
        ("malformed", &longer),
        ("malformed", &[0x41; 40]),
        ("too_big", &big),
    ];
    for (reason, datagram) in cases {
        let (before, minimum) = (one.drops(reason), count as u64 / 10);
        flood(&two.namespace, ("192.0.2.2", PORT), datagram, count);
        eventually(reason, || one.drops(reason) > before + minimum);
    }
    flood(&two.namespace, ("192.0.2.2", 8286), &valid, count);
    eventually("port", || one.drops("port") > count as u64 / 10);
    assert_eq!(received(&one.namespace), before, "nothing was delivered");
    flood(&two.namespace, ("192.0.2.2", PORT), &valid, 10);
    eventually("the valid packet is delivered", || {
        received(&one.namespace) >= before + 10
    });
}

/// Random data as TCP segments, because TCP headers have the most checks.
#[test]
fn netns_random_datagrams_of_peer_do_not_stop_relay() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [mut first, second] = relays;
    second.kill();
    two.namespace.run(|| {
        let socket = UdpSocket::bind(("192.0.2.2", PORT)).unwrap();
        let mut state = 1u64;
        for round in 0..100_000usize {
            let mut datagram: Vec<u8> = (0..20 + round % 120)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let length = datagram.len() as u16;
            if round % 2 == 0 {
                datagram[0] = 0x45;
                datagram[2..4].copy_from_slice(&length.to_be_bytes());
                datagram[6] = 0;
                datagram[9] = 6;
            } else {
                datagram[0] = 0x60;
                datagram[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
                datagram[6] = 6;
            }
            let _ = socket.send_to(&datagram, ("192.0.2.1", PORT));
        }
    });
    assert!(!first.has_ended());
    let _second = two.start();
    two.await_ready();
    eventually("pings again", || two.pings(&one.inner(false), ""));
    assert_eq!(one.log().matches("panicked").count(), 0);
}
