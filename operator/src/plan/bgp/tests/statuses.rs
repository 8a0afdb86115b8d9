//! Statuses of BGPPeers and of the NetworkMode in mode underlay.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use netweft_crds::condition::{READY, is_true};
use netweft_crds::{BGPPeerStatus, SessionFault, SessionState};

use crate::testing::{Cluster, at, mode, node, peer, underlay, vxlan};

const TOR: &str = "{peerIP: 10.1.0.254, asNumber: 65001}";

fn with_tor(nodes: usize) -> Cluster {
    let mut cluster = underlay(nodes, "nodeToNodeMesh: false");
    cluster.peers.push(at(0, peer("tor", TOR)));
    cluster.reconcile();
    cluster.agents_report(0);
    cluster
}

fn established(nodes: usize) -> Cluster {
    let mut cluster = with_tor(nodes);
    cluster.agents_report_sessions(4);
    cluster.reconcile();
    cluster
}

fn status(cluster: &Cluster) -> BGPPeerStatus {
    cluster.peers[0].status.clone().unwrap()
}

fn fail(cluster: &mut Cluster, node: &str, state: SessionState, fault: SessionFault) {
    cluster.agent_reports_session_fault(node, "tor", state, fault);
    cluster.reconcile();
}

#[test]
fn peer_is_ready_when_all_selected_nodes_are_established() {
    let mut cluster = with_tor(2);
    assert_eq!(
        cluster.peer_message("tor"),
        "False Establishing: session established on 0 of 2 nodes; waiting for worker-1, worker-2"
    );
    cluster.agents_report_sessions(4);
    cluster.reconcile();
    assert_eq!(
        cluster.peer_message("tor"),
        "True Established: session established on 2 of 2 nodes"
    );
    let status = status(&cluster);
    let (nodes, prefixes) = (status.nodes.unwrap(), status.prefixes.unwrap());
    assert_eq!((nodes.total, nodes.established), (2, 2));
    assert_eq!((prefixes.received, prefixes.advertised), (8, 8));
}

#[test]
fn peer_status_shows_last_error_of_node() {
    let mut cluster = established(3);
    fail(
        &mut cluster,
        "worker-2",
        SessionState::Active,
        SessionFault::ConnectTimeout,
    );
    assert_eq!(
        cluster.peer_message("tor"),
        "False Establishing: session established on 2 of 3 nodes; worker-2: message of ConnectTimeout"
    );
    let status = status(&cluster);
    assert_eq!(status.nodes.unwrap().established, 2);
    assert_eq!(status.prefixes.unwrap().received, 8);
    let error = &status.errors[0];
    assert_eq!(
        (error.node.as_str(), error.reason, error.message.as_str()),
        (
            "worker-2",
            SessionFault::ConnectTimeout,
            "message of ConnectTimeout"
        )
    );
}

#[test]
fn session_fault_needing_manual_fix_is_stalled() {
    for (fault, state, reason) in [
        (
            SessionFault::ASNumberMismatch,
            SessionState::Idle,
            "False SessionFailed",
        ),
        (
            SessionFault::TooManyPrefixes,
            SessionState::Established,
            "False SessionFailed",
        ),
        (
            SessionFault::NoRouteToPeer,
            SessionState::Connect,
            "False Establishing",
        ),
        (
            SessionFault::BIRDUnavailable,
            SessionState::Idle,
            "False Establishing",
        ),
        (
            SessionFault::PasswordMissing,
            SessionState::Idle,
            "False Establishing",
        ),
        (
            SessionFault::ConnectionRefused,
            SessionState::Active,
            "False Establishing",
        ),
        (
            SessionFault::SessionError,
            SessionState::Idle,
            "False Establishing",
        ),
        (
            SessionFault::SessionLost,
            SessionState::Idle,
            "False Establishing",
        ),
        // A router usually advertises more prefixes than blocks of pods.
        (
            SessionFault::PrefixesRejected,
            SessionState::Established,
            "True Established",
        ),
    ] {
        let mut cluster = established(2);
        fail(&mut cluster, "worker-1", state, fault);
        let message = cluster.peer_message("tor");
        assert!(message.starts_with(reason), "{fault:?}: {message}");
        assert!(message.contains("message of"), "{message}");
        let stalled = is_true(&status(&cluster).conditions, "Stalled");
        assert_eq!(stalled, reason.contains("Failed"), "{fault:?}");
    }
}

#[test]
fn peer_status_lists_ten_oldest_errors() {
    let mut cluster = established(12);
    for network in &mut cluster.networks {
        let session = &mut network.status.as_mut().unwrap().sessions[0];
        session.state = SessionState::Idle;
        session.fault = Some(SessionFault::SessionLost);
        let number: i64 = network.metadata.name.as_deref().unwrap()[7..]
            .parse()
            .unwrap();
        session.last_transition_time = Some(Time(Timestamp::from_second(100 - number).unwrap()));
    }
    cluster.reconcile();
    let listed: Vec<_> = status(&cluster)
        .errors
        .into_iter()
        .map(|error| error.node)
        .collect();
    let expected: Vec<_> = (3..=12).rev().map(|n| format!("worker-{n}")).collect();
    assert_eq!(listed, expected);
    assert!(
        cluster.peer_message("tor").ends_with("(and 11 nodes more)"),
        "{}",
        cluster.peer_message("tor")
    );
}

/// Agents may omit the time of a transition. Time alone changes nothing.
#[test]
fn session_error_keeps_its_timestamp() {
    let mut cluster = established(1);
    fail(
        &mut cluster,
        "worker-1",
        SessionState::Idle,
        SessionFault::SessionLost,
    );
    let since = status(&cluster).errors[0].last_transition_time.clone();
    cluster.clock += 1000;
    assert!(cluster.plan().is_empty());
    fail(
        &mut cluster,
        "worker-1",
        SessionState::Idle,
        SessionFault::NoRouteToPeer,
    );
    assert!(status(&cluster).errors[0].last_transition_time > since);
}

#[test]
fn session_report_of_old_peer_address_is_ignored() {
    let mut cluster = established(1);
    cluster.peers[0].spec.peer_ip = Some("10.1.0.253".parse().unwrap());
    cluster.reconcile();
    assert!(!is_true(&status(&cluster).conditions, READY));
}

#[test]
fn peer_nodes_are_counted_at_both_ends() {
    let mut cluster = underlay(3, "nodeToNodeMesh: false");
    let one = "{matchLabels: {kubernetes.io/hostname: worker-1}}";
    cluster.peers.push(peer(
        "star",
        &format!("{{nodeSelector: {one}, peerSelector: {{}}}}"),
    ));
    cluster.reconcile();
    cluster.agents_report(0);
    cluster.agents_report_sessions(1);
    // The selected node has two sessions. One of them is down.
    cluster.agent_reports_session_fault(
        "worker-1",
        "star-worker-2",
        SessionState::Idle,
        SessionFault::SessionLost,
    );
    cluster.reconcile();
    let nodes = status(&cluster).nodes.unwrap();
    assert_eq!((nodes.total, nodes.established), (3, 2));
}

#[test]
fn peer_without_possible_sessions_reports_reason() {
    let hosts = |name: &str| format!("{{matchLabels: {{kubernetes.io/hostname: {name}}}}}");
    for (spec, expected) in [
        (
            format!(
                "{{peerIP: 10.1.0.254, asNumber: 1, nodeSelector: {}}}",
                hosts("none")
            ),
            "False NotFound: spec.nodeSelector matches no Node; correct the selector, or label Nodes",
        ),
        (
            format!("{{peerSelector: {}}}", hosts("none")),
            "False NotFound: spec.peerSelector matches no Node; correct the selector, or label Nodes",
        ),
        (
            format!(
                "{{peerSelector: {0}, nodeSelector: {0}}}",
                hosts("worker-1")
            ),
            "False NotFound: spec.nodeSelector and spec.peerSelector match only the same single Node; correct the selector, or label Nodes",
        ),
        (
            format!(
                "{{peerIP: 10.1.0.1, asNumber: 1, nodeSelector: {}}}",
                hosts("worker-1")
            ),
            "False NotFound: the only Node that spec.nodeSelector matches has the address spec.peerIP itself; correct the selector, or label Nodes",
        ),
        (
            "{peerIP: 'fd00::1', asNumber: 1}".to_owned(),
            "False NoNodeAddress: no selected Node has an address of the IP family of the session: worker-1, worker-2",
        ),
        (
            "{peerSelector: {matchExpressions: [{key: a, operator: Near}]}}".to_owned(),
            "False Invalid: spec.peerSelector: ",
        ),
        (
            "{nodeSelector: {matchExpressions: [{key: a, operator: Near}]}, peerSelector: {}}"
                .to_owned(),
            "False Invalid: spec.nodeSelector: ",
        ),
        (
            "{peerIP: 10.1.0.254}".to_owned(),
            "False Invalid: spec takes either peerIP and asNumber",
        ),
    ] {
        let mut cluster = underlay(2, "");
        cluster.peers.push(peer("tor", &spec));
        cluster.reconcile();
        let message = cluster.peer_message("tor");
        assert!(message.starts_with(expected), "{spec}: {message}");
    }
}

#[test]
fn nodes_without_address_of_peer_family_are_named() {
    let mut cluster = underlay(2, "nodeToNodeMesh: false");
    cluster.nodes.push(node("dual", &["10.1.0.9", "fd01::9"]));
    cluster
        .peers
        .push(peer("tor", "{peerIP: 'fd01::1', asNumber: 65001}"));
    cluster.reconcile();
    cluster.agents_report(0);
    cluster.agents_report_sessions(1);
    cluster.reconcile();
    assert_eq!(
        cluster.peer_message("tor"),
        "True Established: session established on 1 of 1 node; no address of the IP family of the session on worker-1, worker-2"
    );
}

#[test]
fn peer_without_bgp_nodes_reports_what_is_missing() {
    let message = |cluster: &mut Cluster| {
        cluster.peers = vec![peer("tor", TOR)];
        cluster.reconcile();
        cluster.peer_message("tor")
    };
    let mut none = crate::testing::cluster(1);
    assert_eq!(
        message(&mut none),
        "False NotFound: no node runs a BGP speaker, because no NetworkMode has mode underlay; create a NetworkMode and set spec.networkMode of an IPPool to it"
    );
    none.modes.push(at(1, mode("topology", "{mode: underlay}")));
    assert_eq!(
        message(&mut none),
        "False NotFound: no node runs a BGP speaker, because no usable IPPool has spec.networkMode topology"
    );
    none.modes[1] = at(
        1,
        mode(
            "topology",
            "{mode: underlay, nodeAddress: {interface: eth1}}",
        ),
    );
    assert!(
        message(&mut none).starts_with("False NotYetSupported: no node runs a BGP speaker, because NetworkMode topology cannot be used: spec.nodeAddress"),
    );
}

#[test]
fn older_underlay_mode_wins_over_younger() {
    let mut cluster = underlay(2, "asNumber: 64999");
    cluster.modes.push(at(5, mode("aaa", "{mode: underlay}")));
    cluster.modes.push(at(6, vxlan("tunnel", 5)));
    cluster.reconcile();
    assert_eq!(
        cluster.mode_message("aaa"),
        "False Conflict: spec.mode underlay is already used by NetworkMode default, which is older; a node has one BGP speaker: set spec.networkMode of the IPPools to that mode"
    );
    assert_eq!(
        cluster.networks[0].spec.bgp.as_ref().unwrap().as_number,
        64999
    );
}

/// The readiness of nodes and of the mode depends on the kernel's state, not on sessions.
#[test]
fn underlay_mode_is_ready_without_sessions() {
    let cluster = with_tor(2);
    let mut cluster = cluster;
    cluster.reconcile();
    assert_eq!(
        cluster.mode_message("default"),
        "True Programmed: 2 of 2 nodes programmed"
    );
    fail_all(&mut cluster);
    assert_eq!(
        cluster.mode_message("default"),
        "True Programmed: 2 of 2 nodes programmed"
    );
}

fn fail_all(cluster: &mut Cluster) {
    cluster.agents_report_sessions(0);
    for name in ["worker-1", "worker-2"] {
        cluster.agent_reports_session_fault(
            name,
            "tor",
            SessionState::Idle,
            SessionFault::NoRouteToPeer,
        );
    }
    cluster.reconcile();
}
