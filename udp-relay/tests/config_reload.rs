//! Changes of the relay's configuration, and the relay's links.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod relay_network;

use std::fs;
use std::time::Duration;

use netweft_udp_relay::config::{PeerConfig, RelayConfig};
use relay_network::verified_traffic::{self, Pings, Stream};
use relay_network::{LINK, RelayNetwork, eventually};

#[test]
fn netns_peer_changes_lose_no_packet() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let stream = Stream::start(one, two, true, Duration::from_millis(1));
    let pings = Pings::start(one, &two.inner(false), 3000);
    for round in 0..100u8 {
        let mut config = one.config();
        let others = (0..round).map(|n| PeerConfig {
            address: [192, 0, 2, 100 + n].into(),
            blocks: vec![format!("10.245.{n}.0/24").parse().unwrap()],
        });
        config.tunnels[0].peers.extend(others);
        one.configure(&config);
        std::thread::sleep(Duration::from_millis(25));
    }
    assert_eq!(pings.lost(), 0);
    assert!(stream.end() > 10 << 20);
    one.await_log("changed tunnel", 50);
}

#[test]
fn netns_removed_peer_gets_and_delivers_no_packets() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let mut config = one.config();
    config.tunnels[0].peers.clear();
    one.configure(&config);
    eventually("pings without answers", || {
        !one.pings(&two.inner(false), "")
    });
    assert!(one.drops("no_peer") > 0);
    assert!(!two.pings(&one.inner(false), ""));
    assert!(one.drops("not_a_peer") > 0);
    one.configure(&one.config());
    eventually("pings with answers again", || {
        one.pings(&two.inner(false), "")
    });
}

#[test]
fn netns_port_and_address_change_keeps_link() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let index = one.namespace.index_of(LINK);
    let (mut first, mut second) = (one.config(), two.config());
    one.namespace.ip("address add 192.0.2.51/24 dev eth0");
    first.tunnels[0].local = "192.0.2.51".parse().unwrap();
    second.tunnels[0].peers[0].address = "192.0.2.51".parse().unwrap();
    first.tunnels[0].port = 9999;
    second.tunnels[0].port = 9999;
    one.configure(&first);
    two.configure(&second);
    eventually("pings over the new port", || {
        one.pings(&two.inner(true), "")
    });
    assert_eq!(one.namespace.index_of(LINK), index);
    verified_traffic::tcp(one, two, false, 5 << 20);
}

#[test]
fn netns_removed_tunnel_deletes_its_link() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    one.configure(&RelayConfig::default());
    eventually("the link is removed", || !one.namespace.has_link(LINK));
    RelayConfig::remove(two.dir()).unwrap();
    eventually("the link is removed", || !two.namespace.has_link(LINK));
    one.configure(&one.config());
    eventually("the link is created again", || one.namespace.has_link(LINK));
    // A relay also deletes the link of a killed relay, and no foreign link.
    let [first, _second] = relays;
    first.kill();
    one.namespace.ip("link add nw-udp1 type bridge");
    one.configure(&RelayConfig::default());
    assert!(one.namespace.has_link(LINK));
    let _relay = one.start();
    eventually("the link is removed", || !one.namespace.has_link(LINK));
    assert!(one.namespace.has_link("nw-udp1"));
}

#[test]
fn netns_foreign_link_of_same_name_is_not_touched() {
    let network = RelayNetwork::new(false);
    let one = &network.nodes[0];
    one.namespace.ip(&format!("link add {LINK} type bridge"));
    one.configure(&one.config());
    let _relay = one.start();
    let message = "exists and is not a TUN link of netweft: rename or delete the link";
    one.await_log(message, 1);
    let (ready, error) = one.ready();
    assert!(!ready && error.contains(message), "{error}");
    assert!(
        one.namespace
            .ip(&format!("-details link show {LINK}"))
            .contains("bridge")
    );
    one.namespace.ip(&format!("link delete {LINK}"));
    one.await_ready();
    assert!(
        one.namespace
            .ip(&format!("-details link show {LINK}"))
            .contains("tun type tun")
    );
    assert_eq!(one.log().matches(message).count(), 1, "logged once");
}

#[test]
fn netns_deleted_tun_link_is_recreated() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    one.namespace.ip(&format!("link delete {LINK}"));
    eventually("the link is created again", || one.namespace.has_link(LINK));
    one.await_log("opened tunnel", 2);
    one.set_up_link();
    eventually("pings again", || one.pings(&two.inner(false), ""));
}

#[test]
fn netns_invalid_config_keeps_tunnels_and_fails_readiness() {
    let (network, _relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    fs::write(one.dir().join("udp.json"), "{").unwrap();
    eventually("not ready", || !one.ready().0);
    assert!(
        one.ready().1.contains("parse udp.json"),
        "{}",
        one.ready().1
    );
    assert!(one.pings(&two.inner(false), ""));
    fs::write(one.dir().join("udp.json"), r#"{"version":9}"#).unwrap();
    eventually("not ready", || {
        one.ready().1.contains("has version 9, this relay reads 1")
    });
    assert!(one.pings(&two.inner(false), ""));
    one.configure(&one.config());
    one.await_ready();
}
