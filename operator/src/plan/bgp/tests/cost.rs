//! Cost of BGP in large clusters: size of objects, and planning time.

use std::time::{Duration, Instant};

use netweft_crds::NodeNetwork;

use crate::testing::{Cluster, at, labelled, node, peer, underlay};

/// The limit of etcd is 1.5 MiB. Half of it is for the status and the managed fields.
const ROOM: usize = 700 * 1024;

fn nodes(count: usize) -> Vec<k8s_openapi::api::core::v1::Node> {
    (0..count)
        .map(|n| {
            let address = format!("10.{}.{}.{}", 1 + n / 62500, n / 250 % 250, n % 250 + 1);
            let name = format!("worker-{n:05}.rack-{}.example.org", n / 40);
            let created = i64::try_from(n).unwrap();
            match n {
                0 | 1 => at(created, labelled(&name, &[&address], "role", "reflector")),
                _ => at(created, node(&name, &[&address])),
            }
        })
        .collect()
}

fn size(network: &NodeNetwork) -> usize {
    serde_json::to_string(network).unwrap().len()
}

fn sessions(network: &NodeNetwork) -> usize {
    network.spec.bgp.as_ref().unwrap().sessions.len()
}

/// The median of five runs, because of other load on the machine.
fn time_to_plan(cluster: &Cluster) -> Duration {
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let _ = cluster.plan();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

const REFLECTORS: &str = "nodeToNodeMesh: false, routeReflectors: [{nodeSelector: {matchLabels: {role: reflector}}, clusterID: 10.0.0.250}]";

#[test]
fn route_reflector_plan_for_200_nodes_is_small() {
    let mut cluster = underlay(0, REFLECTORS);
    cluster.nodes = nodes(200);
    cluster.reconcile();
    let sizes: Vec<_> = cluster.networks.iter().map(size).collect();
    let (clients, reflectors) = (&sizes[2..], &sizes[..2]);
    assert!(clients.iter().all(|size| *size < 2048), "{clients:?}");
    assert!(
        reflectors.iter().all(|size| *size < 100 * 1024),
        "{reflectors:?}"
    );
    let sessions = |n: usize| sessions(&cluster.networks[n]);
    assert_eq!(
        (sessions(0), sessions(1), sessions(2), sessions(199)),
        (199, 199, 2, 2)
    );
    // A new node adds one session to each reflector, and none to other nodes.
    cluster.nodes = nodes(201);
    let plan = cluster.plan();
    assert_eq!(
        (plan.networks.create.len(), plan.networks.update.len()),
        (1, 2)
    );
    let time = time_to_plan(&cluster);
    assert!(time < Duration::from_millis(500), "{time:?}");
}

#[test]
fn mesh_plan_for_50_nodes_is_small_and_fast() {
    let mut cluster = underlay(0, "");
    cluster.nodes = nodes(50);
    cluster.reconcile();
    assert!(
        cluster
            .networks
            .iter()
            .all(|network| sessions(network) == 49)
    );
    let largest = cluster.networks.iter().map(size).max().unwrap();
    assert!(largest < 32 * 1024, "{largest}");
    let time = time_to_plan(&cluster);
    assert!(time < Duration::from_millis(500), "{time:?}");
}

#[test]
fn router_peer_plan_for_5000_nodes_is_fast() {
    let mut cluster = underlay(0, "nodeToNodeMesh: false");
    cluster.pools[0].spec.cidr = "10.128.0.0/9".parse().unwrap();
    cluster.nodes = nodes(5000);
    for (number, name) in ["spine-1", "spine-2"].iter().enumerate() {
        let spec = format!(
            "{{peerIP: 10.100.0.{number}, asNumber: 65001, nodeSelector: {{matchExpressions: [{{key: role, operator: DoesNotExist}}]}}}}"
        );
        cluster.peers.push(peer(name, &spec));
    }
    let start = Instant::now();
    let plan = cluster.plan();
    let time = start.elapsed();
    let sessions = plan
        .networks
        .create
        .iter()
        .flat_map(|n| &n.spec.bgp.as_ref().unwrap().sessions);
    assert_eq!(sessions.count(), 2 * 4998);
    assert!(time < Duration::from_secs(10), "{time:?}");
}

/// An oversized mesh is limited and reported. The oldest nodes keep their sessions.
#[test]
fn oversized_mesh_is_limited_to_oldest_nodes() {
    let mut cluster = underlay(0, "");
    cluster.pools[0].spec.cidr = "10.128.0.0/9".parse().unwrap();
    cluster.nodes = nodes(520);
    cluster.step();
    let sessions = |n: usize| sessions(&cluster.networks[n]);
    assert_eq!(
        (sessions(0), sessions(499), sessions(500), sessions(519)),
        (499, 499, 0, 0)
    );
    assert!(cluster.networks.iter().all(|network| size(network) < ROOM));
    cluster.step();
    let message = cluster.mode_message("default");
    let expected =
        "; too many nodes for a session between any two: worker-00500.rack-12.example.org, ";
    assert!(
        message.contains(expected) && message.contains("use routeReflectors or BGPPeers"),
        "{message}"
    );
}

#[test]
fn route_reflector_sessions_are_limited() {
    let mut cluster = underlay(0, REFLECTORS);
    cluster.pools[0].spec.cidr = "10.128.0.0/9".parse().unwrap();
    cluster.nodes = nodes(2100);
    cluster.step();
    let largest = cluster.networks.iter().map(size).max().unwrap();
    assert!(largest > ROOM / 2 && largest < ROOM, "{largest}");
}
