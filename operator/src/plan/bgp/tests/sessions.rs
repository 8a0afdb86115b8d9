//! Sessions of the NetworkMode: AS numbers, router IDs, mesh, route reflectors.

use netweft_crds::names::router_id;

use crate::testing::{Cluster, at, labelled, mode, node, pool, underlay, vxlan};

fn second_pool(cluster: &mut Cluster, more: &str) {
    cluster.pools.push(at(0, pool("v6", "fd00::/48", more)));
}

/// Three nodes of two racks, and a reflector.
fn racks(parameters: &str) -> Cluster {
    let mut cluster = underlay(0, parameters);
    cluster.nodes = vec![
        at(1, labelled("a", &["10.1.0.1"], "rack", "r1")),
        at(2, labelled("b", &["10.1.0.2"], "rack", "r1")),
        at(3, labelled("c", &["10.2.0.3"], "rack", "r2")),
        at(4, labelled("r", &["10.3.0.4"], "role", "reflector")),
    ];
    cluster.reconcile();
    cluster
}

const REFLECTORS: &str =
    "routeReflectors: [{nodeSelector: {matchLabels: {role: reflector}}, clusterID: 10.0.0.250}]";

#[test]
fn mesh_has_session_between_every_node_pair() {
    let mut cluster = underlay(3, "asNumber: 64999, listenPort: 1179");
    cluster.reconcile();
    let bgp = cluster.networks[0].spec.bgp.clone().unwrap();
    assert_eq!(
        (
            bgp.as_number,
            bgp.router_id.to_string(),
            bgp.listen_port,
            bgp.cluster_id
        ),
        (64999, "10.1.0.1".to_owned(), 1179, None)
    );
    assert_eq!(
        cluster.sessions("worker-2"),
        [
            "mesh-worker-1: 10.1.0.2 AS64999 -> 10.1.0.1 1179 AS64999",
            "mesh-worker-3: 10.1.0.2 AS64999 -> 10.1.0.3 1179 AS64999",
        ]
    );
}

#[test]
fn mesh_session_copies_all_mode_settings() {
    let mut cluster = underlay(
        2,
        "holdTime: 9s, keepaliveTime: 3s, connectRetryTime: 1s, gracefulRestart: {enabled: false, restartTime: 7s}",
    );
    cluster.reconcile();
    insta::assert_yaml_snapshot!(cluster.networks[0].spec.bgp);
}

#[test]
fn sessions_of_family_need_pool_and_addresses_of_family() {
    let mut cluster = underlay(0, "");
    cluster.nodes = vec![
        node("both", &["10.1.0.1", "fd01::1"]),
        node("four", &["10.1.0.2"]),
        node("six", &["fd01::3"]),
        node("too", &["10.1.0.4", "fd01::4"]),
    ];
    cluster.reconcile();
    let names = |cluster: &Cluster, node: &str| -> Vec<String> {
        let sessions = cluster.sessions(node).into_iter();
        sessions
            .map(|session| session.split(':').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&cluster, "both"), ["mesh-four", "mesh-too"]);
    assert!(names(&cluster, "six").is_empty());
    second_pool(&mut cluster, "");
    cluster.reconcile();
    assert_eq!(
        names(&cluster, "both"),
        ["mesh-four", "mesh-six-ipv6", "mesh-too", "mesh-too-ipv6"]
    );
    assert_eq!(names(&cluster, "six"), ["mesh-both-ipv6", "mesh-too-ipv6"]);
    let six = &cluster.networks[2].spec.bgp.as_ref().unwrap();
    assert_eq!(six.router_id, router_id("six", 0));
}

#[test]
fn pool_of_other_mode_creates_no_bgp_sessions() {
    let mut cluster = underlay(0, "");
    cluster.modes.push(at(1, vxlan("tunnel", 5)));
    cluster.nodes = vec![
        node("a", &["10.1.0.1", "fd01::1"]),
        node("b", &["10.1.0.2", "fd01::2"]),
    ];
    second_pool(&mut cluster, "networkMode: tunnel");
    cluster.reconcile();
    assert_eq!(cluster.sessions("a").len(), 1);
}

#[test]
fn as_number_follows_first_matching_label_rule() {
    let cluster = racks(
        "asNumbers: [{nodeSelector: {matchLabels: {rack: r2}}, asNumber: 65102}, {nodeSelector: {matchExpressions: [{key: rack, operator: Exists}]}, asNumber: 65101}]",
    );
    assert_eq!(
        cluster.sessions("a"),
        [
            "mesh-b: 10.1.0.1 AS65101 -> 10.1.0.2 179 AS65101",
            "mesh-c: 10.1.0.1 AS65101 -> 10.2.0.3 179 AS65102 255 hops",
            "mesh-r: 10.1.0.1 AS65101 -> 10.3.0.4 179 AS64512 255 hops",
        ]
    );
}

#[test]
fn reflector_clients_have_sessions_only_with_reflectors() {
    let mut cluster = racks(&format!("nodeToNodeMesh: false, {REFLECTORS}"));
    let clients = ["a", "b", "c"].map(|name| cluster.sessions(name));
    assert_eq!(
        clients.concat(),
        [
            "mesh-r: 10.1.0.1 AS64512 -> 10.3.0.4 179 AS64512",
            "mesh-r: 10.1.0.2 AS64512 -> 10.3.0.4 179 AS64512",
            "mesh-r: 10.2.0.3 AS64512 -> 10.3.0.4 179 AS64512",
        ]
    );
    let reflector = cluster.networks[3].spec.bgp.clone().unwrap();
    assert_eq!(reflector.cluster_id, Some("10.0.0.250".parse().unwrap()));
    assert!(
        reflector
            .sessions
            .iter()
            .all(|session| session.reflector_client)
    );
    // Reflectors are peers of each other, not clients.
    cluster.nodes[2] = at(3, labelled("c", &["10.2.0.3"], "role", "reflector"));
    cluster.reconcile();
    assert_eq!(
        cluster.sessions("r"),
        [
            "mesh-a: 10.3.0.4 AS64512 -> 10.1.0.1 179 AS64512 client",
            "mesh-b: 10.3.0.4 AS64512 -> 10.1.0.2 179 AS64512 client",
            "mesh-c: 10.3.0.4 AS64512 -> 10.2.0.3 179 AS64512",
        ]
    );
}

#[test]
fn mesh_with_reflectors_makes_other_nodes_clients() {
    let cluster = racks(REFLECTORS);
    assert_eq!(cluster.sessions("a").len(), 3);
    let of_reflector = cluster.sessions("r");
    assert!(
        of_reflector
            .iter()
            .all(|session| session.ends_with(" client")),
        "{of_reflector:?}"
    );
}

/// Only iBGP peers can be clients of a route reflector (RFC 4456).
#[test]
fn node_with_other_as_number_is_no_reflector_client() {
    let cluster = racks(&format!(
        "nodeToNodeMesh: false, asNumbers: [{{nodeSelector: {{matchLabels: {{rack: r2}}}}, asNumber: 65102}}], {REFLECTORS}"
    ));
    assert_eq!(
        cluster.sessions("r").last().unwrap(),
        "mesh-c: 10.3.0.4 AS64512 -> 10.2.0.3 179 AS65102 255 hops"
    );
}

#[test]
fn no_underlay_mode_in_use_removes_bgp() {
    let mut cluster = underlay(2, "");
    cluster.reconcile();
    cluster.modes.push(at(1, vxlan("tunnel", 5)));
    cluster.pools[0].spec.network_mode = "tunnel".to_owned();
    cluster.finish_rollout();
    assert!(
        cluster
            .networks
            .iter()
            .all(|network| network.spec.bgp.is_none())
    );
}

/// An invalid edit does not affect running traffic.
#[test]
fn invalid_mode_or_pool_keeps_bgp_sessions() {
    let mut cluster = underlay(2, "");
    cluster.reconcile();
    let before = cluster.networks.clone();
    let broken = "{mode: underlay, nodeAddress: {}}";
    cluster.modes[0] = at(0, mode("default", broken));
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.bgp, before[0].spec.bgp);
    assert!(before[0].spec.bgp.is_some());
    // The pool is invalid, the mode is valid.
    cluster.modes[0] = at(0, mode("default", "{mode: underlay}"));
    cluster.pools[0].spec.reserved = vec!["ten".to_owned()];
    cluster.reconcile();
    assert_eq!(cluster.networks[0].spec.bgp, before[0].spec.bgp);
}

/// The node keeps its last address and its sessions.
#[test]
fn node_losing_its_address_keeps_bgp_sessions() {
    let mut cluster = underlay(2, "");
    cluster.reconcile();
    let before = cluster.networks[1].spec.bgp.clone();
    cluster.nodes[0] = node("worker-1", &[]);
    cluster.reconcile();
    assert_eq!(cluster.networks[1].spec.bgp, before);
}

#[test]
fn nodes_with_same_address_have_no_mutual_session() {
    let mut cluster = underlay(2, "");
    cluster.nodes.push(node("duplicate", &["10.1.0.1"]));
    cluster.reconcile();
    assert_eq!(
        cluster.sessions("duplicate"),
        ["mesh-worker-2: 10.1.0.1 AS64512 -> 10.1.0.2 179 AS64512"]
    );
}

/// An IPv6 session with node `x`, and an IPv4 session with a node named `x-ipv6`.
#[test]
fn session_names_of_node_are_unique() {
    let mut cluster = underlay(0, "");
    second_pool(&mut cluster, "");
    cluster.nodes = vec![
        at(1, node("a", &["10.1.0.1", "fd01::1"])),
        at(2, node("x", &["fd01::2"])),
        at(3, node("x-ipv6", &["10.1.0.3"])),
    ];
    cluster.reconcile();
    assert_eq!(
        cluster.sessions("a"),
        [
            "mesh-x-ipv6: fd01::1 AS64512 -> fd01::2 179 AS64512",
            "mesh-x-ipv6-2: 10.1.0.1 AS64512 -> 10.1.0.3 179 AS64512",
        ]
    );
}

#[test]
fn node_and_peer_order_does_not_affect_sessions() {
    let mut cluster = racks(REFLECTORS);
    cluster.peers = vec![
        at(
            2,
            crate::testing::peer("tor", "{peerIP: 10.1.0.9, asNumber: 1}"),
        ),
        at(
            1,
            crate::testing::peer("too", "{peerIP: 10.1.0.9, asNumber: 2}"),
        ),
    ];
    cluster.reconcile();
    let before = cluster.networks.clone();
    cluster.nodes.reverse();
    cluster.peers.reverse();
    assert!(cluster.plan().is_empty());
    assert_eq!(before, cluster.networks);
}
