//! Sessions of BGPPeers.

use crate::testing::{Cluster, at, labelled, node, peer, pool, underlay};

/// Two nodes of rack r1 and one of r2, without a mesh.
fn racks() -> Cluster {
    let mut cluster = underlay(0, "nodeToNodeMesh: false, listenPort: 1179");
    cluster.nodes = vec![
        at(1, labelled("a", &["10.1.0.1"], "rack", "r1")),
        at(2, labelled("b", &["10.1.0.2"], "rack", "r1")),
        at(3, labelled("c", &["10.2.0.3"], "rack", "r2")),
    ];
    cluster
}

fn cluster_with_peers(mut cluster: Cluster, peers: &[(&str, &str)]) -> Cluster {
    for (number, (name, spec)) in peers.iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        cluster.peers.push(at(number, peer(name, spec)));
    }
    cluster.reconcile();
    cluster
}

const R1: &str = "nodeSelector: {matchLabels: {rack: r1}}";
const TOR: &str = "peerIP: 10.1.0.254, asNumber: 65001";

#[test]
fn router_peer_has_session_with_each_selected_node() {
    let cluster = cluster_with_peers(
        racks(),
        &[(
            "tor",
            &format!("{{{R1}, {TOR}, peerPort: 1790, localASNumber: 65101}}"),
        )],
    );
    let sessions = ["a", "b", "c"].map(|name| cluster.sessions(name)).concat();
    assert_eq!(
        sessions,
        [
            "tor: 10.1.0.1 AS65101 -> 10.1.0.254 1790 AS65001",
            "tor: 10.1.0.2 AS65101 -> 10.1.0.254 1790 AS65001",
        ]
    );
    let session = &cluster.networks[0].spec.bgp.as_ref().unwrap().sessions[0];
    assert_eq!(
        (
            session.node,
            session.bgp_peer.as_deref(),
            session.max_prefixes
        ),
        (false, Some("tor"), 20_000)
    );
}

#[test]
fn next_hop_self_between_nodes_is_refused() {
    let spec = "{peerSelector: {}, nextHopMode: self}";
    let cluster = cluster_with_peers(underlay(2, "nodeToNodeMesh: false"), &[("nodes", spec)]);
    let message = cluster.peer_message("nodes");
    assert!(
        message.starts_with("False Invalid: spec.nextHopMode self is for routers"),
        "{message}"
    );
}

#[test]
fn peer_session_copies_all_peer_settings() {
    let spec = "{peerIP: 10.1.0.254, asNumber: 65001, sourceAddress: 10.1.0.7, ttlSecurity: 2, holdTime: 9s, keepaliveTime: 3s, \
        connectRetryTime: 1s, bfd: {minReceive: 10ms, minTransmit: 20ms, multiplier: 4}, \
        gracefulRestart: {enabled: true, restartTime: 9s}, maxPrefixes: 7, nextHopMode: self, communities: ['1:2', '1:2:3'], \
        filters: {import: [{action: accept, cidr: 10.0.0.0/8, maxLength: 24}], export: [{action: reject, cidr: 10.9.0.0/16, minLength: 20}]}, \
        password: {secretKeyRef: {name: s, key: k}}}";
    let cluster = cluster_with_peers(underlay(1, ""), &[("tor", spec)]);
    insta::assert_yaml_snapshot!(cluster.networks[0].spec.bgp);
}

#[test]
fn ebgp_multihop_applies_only_to_ebgp_sessions() {
    for (more, hops) in [
        ("asNumber: 65001", None),
        ("asNumber: 65001, ebgpMultihop: 3", Some(3)),
        ("asNumber: 64512, ebgpMultihop: 3", None),
    ] {
        let spec = format!("{{peerIP: 10.1.0.254, {more}}}");
        let cluster = cluster_with_peers(underlay(1, ""), &[("tor", &spec)]);
        let session = &cluster.networks[0].spec.bgp.as_ref().unwrap().sessions[0];
        assert_eq!(session.multihop, hops, "{more}");
    }
}

#[test]
fn router_peer_has_sessions_only_with_nodes_of_its_family() {
    let mut cluster = racks();
    cluster.nodes[1] = at(2, labelled("b", &["10.1.0.2", "fd01::2"], "rack", "r1"));
    let cluster = cluster_with_peers(cluster, &[("tor", "{peerIP: 'fd01::ff', asNumber: 65001}")]);
    assert!(cluster.sessions("a").is_empty());
    assert_eq!(
        cluster.sessions("b"),
        ["tor: fd01::2 AS64512 -> fd01::ff 179 AS65001"]
    );
}

#[test]
fn node_has_no_session_with_itself() {
    let cluster = cluster_with_peers(
        racks(),
        &[("b", "{peerIP: 10.1.0.2, asNumber: 64512, peerPort: 1179}")],
    );
    assert!(cluster.sessions("b").is_empty());
    let session = cluster.networks[0]
        .spec
        .bgp
        .clone()
        .unwrap()
        .sessions
        .remove(0);
    assert!(
        session.node,
        "the other end is a node: both have to agree on hops"
    );
}

#[test]
fn selected_peer_nodes_have_sessions_at_both_ends() {
    let spec = format!("{{{R1}, peerSelector: {{matchLabels: {{rack: r2}}}}}}");
    let cluster = cluster_with_peers(racks(), &[("across", &spec)]);
    let sessions = ["a", "b", "c"].map(|name| cluster.sessions(name)).concat();
    assert_eq!(
        sessions,
        [
            "across-c: 10.1.0.1 AS64512 -> 10.2.0.3 1179 AS64512",
            "across-c: 10.1.0.2 AS64512 -> 10.2.0.3 1179 AS64512",
            "across-a: 10.2.0.3 AS64512 -> 10.1.0.1 1179 AS64512",
            "across-b: 10.2.0.3 AS64512 -> 10.1.0.2 1179 AS64512",
        ]
    );
}

#[test]
fn peer_node_expects_local_as_number() {
    let spec =
        format!("{{{R1}, peerSelector: {{matchLabels: {{rack: r2}}}}, localASNumber: 65101}}");
    let cluster = cluster_with_peers(racks(), &[("across", &spec)]);
    assert_eq!(
        cluster.sessions("a"),
        ["across-c: 10.1.0.1 AS65101 -> 10.2.0.3 1179 AS64512 255 hops"]
    );
    assert_eq!(
        cluster.sessions("c")[0],
        "across-a: 10.2.0.3 AS64512 -> 10.1.0.1 1179 AS65101 255 hops"
    );
}

#[test]
fn nodes_in_both_selectors_share_one_session_per_family() {
    let mut cluster = racks();
    cluster.pools.push(at(0, pool("v6", "fd00::/48", "")));
    cluster.nodes[0] = at(1, node("a", &["10.1.0.1", "fd01::1"]));
    cluster.nodes[1] = at(2, node("b", &["10.1.0.2", "fd01::2"]));
    let cluster = cluster_with_peers(cluster, &[("all", "{peerSelector: {}}")]);
    assert_eq!(
        cluster.sessions("a"),
        [
            "all-b: 10.1.0.1 AS64512 -> 10.1.0.2 1179 AS64512",
            "all-b-ipv6: fd01::1 AS64512 -> fd01::2 1179 AS64512",
            "all-c: 10.1.0.1 AS64512 -> 10.2.0.3 1179 AS64512",
        ]
    );
}

#[test]
fn peer_session_replaces_mesh_session_to_same_address() {
    let spec = "{peerSelector: {matchLabels: {kubernetes.io/hostname: worker-1}}, nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}}";
    let cluster = cluster_with_peers(underlay(3, ""), &[("pair", spec)]);
    assert_eq!(
        cluster.sessions("worker-1"),
        [
            "mesh-worker-3: 10.1.0.1 AS64512 -> 10.1.0.3 179 AS64512",
            "pair-worker-2: 10.1.0.1 AS64512 -> 10.1.0.2 179 AS64512",
        ]
    );
    // The address counts, too, at the end of the router session.
    let spec = "{peerIP: 10.1.0.1, asNumber: 64512, nodeSelector: {matchLabels: {kubernetes.io/hostname: worker-2}}}";
    let cluster = cluster_with_peers(underlay(2, ""), &[("one", spec)]);
    let ends = ["worker-1", "worker-2"]
        .map(|name| cluster.sessions(name))
        .concat();
    assert_eq!(
        ends,
        [
            "mesh-worker-2: 10.1.0.1 AS64512 -> 10.1.0.2 179 AS64512",
            "one: 10.1.0.2 AS64512 -> 10.1.0.1 179 AS64512",
        ]
    );
}

#[test]
fn older_peer_wins_session_to_same_address() {
    let cluster = cluster_with_peers(
        racks(),
        &[
            ("tor", &format!("{{{R1}, {TOR}}}")),
            ("any", &format!("{{{TOR}}}")),
            ("other-port", &format!("{{{TOR}, peerPort: 1790}}")),
        ],
    );
    assert_eq!(
        cluster.sessions("a"),
        [
            "other-port: 10.1.0.1 AS64512 -> 10.1.0.254 1790 AS65001",
            "tor: 10.1.0.1 AS64512 -> 10.1.0.254 179 AS65001",
        ]
    );
    assert_eq!(cluster.sessions("c").len(), 2);
    assert_eq!(
        cluster.peer_message("any"),
        "False Conflict: BGPPeer tor, which is older, already has a session of Node a with the same address and port; delete one of the two BGPPeers, or select other nodes"
    );
}

#[test]
fn node_pair_session_has_both_ends_or_none() {
    let cluster = cluster_with_peers(
        racks(),
        &[
            (
                "older",
                "{peerIP: 10.1.0.1, peerPort: 1179, asNumber: 64512, nodeSelector: {matchLabels: {rack: r1}}}",
            ),
            ("pairs", "{peerSelector: {}}"),
        ],
    );
    // b has a session of the older BGPPeer with a, so a has none of the younger BGPPeer with b.
    let names = |node: &str| cluster.sessions(node).join(" ");
    assert!(names("b").contains("older: "), "{}", names("b"));
    assert!(!names("a").contains("pairs-b"), "{}", names("a"));
    assert!(names("a").contains("pairs-c"), "{}", names("a"));
}
