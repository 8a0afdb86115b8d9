//! Relays that take over from each other, by handover or after a kill.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod relay_network;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use netweft_udp_relay::config::RelayConfig;
use nix::sys::signal::Signal;
use relay_network::verified_traffic::{Pings, Stream};
use relay_network::{LINK, RelayNetwork, eventually};

#[test]
fn netns_takeover_by_successor_loses_no_packet() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [mut serving, _second] = relays;
    let stream = Stream::start(one, two, false, Duration::from_millis(1));
    let back = Stream::start(two, one, true, Duration::from_millis(1));
    let pings = Pings::start(one, &two.inner(true), 8000);
    for round in 1..=12 {
        let successor = one.start();
        one.await_log("successor serves, standing by", round);
        one.await_log("serving taken_over=true", round);
        one.await_ready();
        serving.stop();
        serving = successor;
    }
    assert_eq!(pings.lost(), 0);
    assert!(stream.end() > 10 << 20);
    assert!(back.end() > 10 << 20);
    assert_eq!(one.drops("link_refused") + one.drops("send_failed"), 0);
}

#[test]
fn netns_killed_successor_is_replaced_by_predecessor() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [mut first, _second] = relays;
    let stream = Stream::start(one, two, false, Duration::from_millis(1));
    for round in 1..=3 {
        let successor = one.start();
        one.await_log("successor serves, standing by", round);
        one.await_ready();
        let pings = Pings::start(one, &two.inner(false), 1000);
        successor.kill();
        one.await_log("successor exited, serving again", round);
        one.await_ready();
        // Packets that the killed relay has read and not sent are lost.
        assert!(pings.lost() <= 5);
    }
    assert!(stream.end() > 0);
    assert!(!first.has_ended());
    // The relay refuses a third relay while a successor serves.
    let second = one.start();
    one.await_log("successor serves, standing by", 4);
    one.await_ready();
    let third = one.start();
    one.await_log("successor serves, standing by", 5);
    one.await_ready();
    second.kill();
    one.await_log("another relay serves, standing by", 1);
    assert!(one.pings(&two.inner(false), ""));
    third.kill();
    one.await_log("successor exited, serving again", 4);
    one.await_ready();
    assert!(one.pings(&two.inner(false), ""));
}

/// The descriptors of the predecessor must not keep a removed link or receive datagrams.
#[test]
fn netns_config_changes_after_takeover_reach_both_relays() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [_first, _peer] = relays;
    let successor = one.start();
    one.await_log("successor serves, standing by", 1);
    one.await_ready();
    for port in [8286, 8285] {
        for node in &network.nodes {
            let mut config = node.config();
            config.tunnels[0].port = port;
            node.configure(&config);
        }
        eventually("pings over the other port", || {
            one.pings(&two.inner(false), "")
        });
        assert_eq!(Pings::start(two, &one.inner(false), 200).lost(), 0);
    }
    one.configure(&RelayConfig::default());
    eventually("the link is removed", || !one.namespace.has_link(LINK));
    one.configure(&one.config());
    eventually("the link is created again", || one.namespace.has_link(LINK));
    one.await_ready();
    one.set_up_link();
    eventually("pings again", || one.pings(&two.inner(false), ""));
    assert_eq!(Pings::start(two, &one.inner(true), 200).lost(), 0);
    successor.kill();
    one.await_log("successor exited, serving again", 1);
    one.await_ready();
    assert!(one.pings(&two.inner(false), ""));
}

#[test]
fn netns_stopped_relay_fails_probes_until_continued() {
    let (network, relays) = RelayNetwork::running(false);
    let one = &network.nodes[0];
    assert_eq!(one.alive(), (true, String::new()));
    relays[0].signal(Signal::SIGSTOP);
    for (succeeds, error) in [one.alive(), one.ready()] {
        let expected = "request the readiness of the relay";
        assert!(!succeeds && error.contains(expected), "{error}");
    }
    relays[0].signal(Signal::SIGCONT);
    eventually("the relay answers", || one.alive().0);
    let [first, _second] = relays;
    first.kill();
    let (succeeds, error) = one.alive();
    assert!(
        !succeeds && error.contains("no relay serves on this node"),
        "{error}"
    );
}

#[test]
fn netns_killed_relay_leaves_link_to_successor() {
    let (network, relays) = RelayNetwork::running(false);
    let [one, two] = &network.nodes;
    let [first, _second] = relays;
    let index = one.namespace.index_of(LINK);
    let routes = |v6: &str| one.namespace.ip(&format!("{v6} route show dev {LINK}"));
    let without_flags = |text: String| text.replace(" linkdown", "").replace(" dead", "");
    let before = (routes("-4"), routes("-6"));
    first.kill();
    assert!(!one.ready().0);
    assert_eq!(
        (without_flags(routes("-4")), without_flags(routes("-6"))),
        (without_flags(before.0), without_flags(before.1))
    );
    let next = one.start();
    one.await_ready();
    assert_eq!(one.namespace.index_of(LINK), index);
    for v6 in [false, true] {
        eventually("pings again", || one.pings(&two.inner(v6), ""));
    }
    next.stop();
    assert!(one.namespace.has_link(LINK));
    let _last = one.start();
    one.await_ready();
    assert_eq!(one.namespace.index_of(LINK), index);
    eventually("pings again", || one.pings(&two.inner(false), ""));
}

#[test]
fn netns_handover_socket_accepts_only_root() {
    let (network, _relays) = RelayNetwork::running(false);
    let one = &network.nodes[0];
    let socket = one.dir().join("udp-relay.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // A socket file that every user may open.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(one.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    // A copy of the program in a folder that every user can read.
    let program = one.dir().join("relay");
    fs::copy(env!("CARGO_BIN_EXE_netweft-udp-relay"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command
        .arg(&program)
        .arg("ready")
        .arg("--run-dir")
        .arg(one.dir());
    let output = one.namespace.run(|| command.output().unwrap());
    assert!(!output.status.success());
    one.await_log("user 65534 connected to udp-relay.sock; only root may", 1);
    one.await_ready();
}

/// A readiness probe of a new container must not accept the relay of the old container.
#[test]
fn netns_readiness_ignores_relay_of_other_container() {
    let (network, _relays) = RelayNetwork::running(false);
    let one = &network.nodes[0];
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork"])
        .arg(env!("CARGO_BIN_EXE_netweft-udp-relay"));
    command.arg("ready").arg("--run-dir").arg(one.dir());
    let output = one.namespace.run(|| command.output().unwrap());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("the relay of another container serves"),
        "{text}"
    );
}
