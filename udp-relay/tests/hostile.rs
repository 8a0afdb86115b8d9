//! Datagrams that no relay of ours sends.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod lab;

use std::net::UdpSocket;
use std::thread;

use lab::{LINK, Lab, Namespace, PORT, traffic};
use traffic::Pings;

/// Enough to be felt, and soon over.
const FLOOD: usize = 200_000;

/// Packets that the link of `node` has received.
fn received(namespace: &Namespace) -> u64 {
    let text = namespace.ip(&format!("-statistics -json link show {LINK}"));
    let start = text.split_once(r#""rx":{"#).unwrap().1;
    let start = start.split_once(r#""packets":"#).unwrap().1;
    start.split(',').next().unwrap().parse().unwrap()
}

/// A ping from node 2's address in the tunnel to node 1's, as a datagram holds it.
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

/// From a namespace to the relay of node 1, as fast as it goes.
fn flood(from: &Namespace, bind: (&str, u16), datagram: &[u8], count: usize) {
    from.run(|| {
        let socket = UdpSocket::bind(bind).unwrap();
        for _ in 0..count {
            // A full buffer is no reason to stop.
            let _ = socket.send_to(datagram, ("192.0.2.1", PORT));
        }
    });
}

#[test]
fn netns_flood_from_non_peer_delivers_nothing() {
    let (lab, _relays) = Lab::running(false);
    let [one, two] = &lab.nodes[..] else {
        panic!("two nodes")
    };
    // Only what is sent here is counted.
    one.namespace
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").unwrap());
    let before = received(&one.namespace);
    flood(&lab.stranger, ("192.0.2.9", PORT), &valid(), FLOOD);
    assert!(
        one.drops("not_a_peer") > FLOOD as u64 / 10,
        "{}",
        one.drops("not_a_peer")
    );
    assert_eq!(received(&one.namespace), before, "nothing was delivered");
    thread::scope(|scope| {
        let pings = Pings::start(two, &one.inner(true), 2000);
        scope.spawn(|| flood(&lab.stranger, ("192.0.2.9", PORT), &valid(), FLOOD));
        let lost = pings.lost();
        assert!(
            lost <= 20,
            "{lost} of 2000 pings of a real peer were lost during a flood"
        );
    });
}

#[test]
fn netns_invalid_packets_of_peer_are_dropped_by_reason() {
    let (lab, relays) = Lab::running(false);
    let [one, two] = &lab.nodes[..] else {
        panic!("two nodes")
    };
    // The peer is in the hands of somebody else now.
    let [_first, second] = relays;
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
        let (already, wanted) = (one.drops(reason), count as u64 / 10);
        flood(&two.namespace, ("192.0.2.2", PORT), datagram, count);
        lab::eventually(reason, || one.drops(reason) > already + wanted);
    }
    flood(&two.namespace, ("192.0.2.2", 8286), &valid, count);
    lab::eventually("port", || one.drops("port") > count as u64 / 10);
    assert_eq!(received(&one.namespace), before, "nothing was delivered");
    flood(&two.namespace, ("192.0.2.2", PORT), &valid, 10);
    lab::eventually("the valid packet is delivered", || {
        received(&one.namespace) >= before + 10
    });
}

/// Rubbish of all kinds in the place of TCP segments, which is what is looked at most closely.
#[test]
fn netns_random_datagrams_of_peer_do_not_stop_relay() {
    let (lab, relays) = Lab::running(false);
    let [one, two] = &lab.nodes[..] else {
        panic!("two nodes")
    };
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
    lab::eventually("pings again", || two.pings(&one.inner(false), ""));
    assert_eq!(one.log().matches("panicked").count(), 0);
}
