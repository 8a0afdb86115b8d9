//! The operator at work: assignment, loss of a node, loss of the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use netweft_crds::condition::{ASSIGNED, READY, is_true};
use netweft_crds::names::POOL_FINALIZER;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet, SubnetState};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control_plane::{ControlPlane, NAMESPACE, Process, free_port};
use crate::objects::{all, create_node, eventually, object, token};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts an operator with nothing but the rights of its service account.
async fn operator(plane: &ControlPlane, name: &str, grace: &str) -> (Process, u16) {
    let token = token(&plane.admin(), "netweft-operator", None).await;
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_netweft-operator"));
    command.env("KUBECONFIG", plane.kubeconfig(&token));
    command.args([
        "--namespace",
        NAMESPACE,
        "--identity",
        name,
        "--orphan-grace",
        grace,
        "--log",
        "debug,hyper=info,tower=info",
    ]);
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    (
        Process::start(&mut command, &plane.dir.path().join(format!("{name}.log"))),
        port,
    )
}

async fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Blocks by node.
async fn owners(client: &Client) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for subnet in all::<NodeSubnet>(client).await {
        owners
            .entry(subnet.spec.node.clone())
            .or_default()
            .insert(subnet.spec.cidr.to_string());
    }
    owners
}

async fn until_assigned(client: &Client, nodes: usize) -> Vec<NodeNetwork> {
    eventually("every node has its block", PATIENCE, async || {
        let networks = all::<NodeNetwork>(client).await;
        let assigned = networks.iter().filter(|network| {
            network
                .status
                .as_ref()
                .is_some_and(|status| is_true(&status.conditions, ASSIGNED))
        });
        (assigned.count() == nodes).then_some(networks)
    })
    .await
}

/// What an agent would say.
async fn acknowledge(client: &Client, name: &str, used: i64) {
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let network = networks.get(name).await.unwrap();
    let subnets: Vec<_> = network
        .spec
        .subnets
        .iter()
        .map(|cidr| json!({ "cidr": cidr, "used": used, "free": 64 - used }))
        .collect();
    let condition = json!({ "type": READY, "status": "True", "reason": "Programmed", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let patch = Patch::Apply(
        json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork", "status": {
        "observedGeneration": network.metadata.generation, "subnets": subnets, "conditions": [condition] } }),
    );
    networks
        .patch_status(name, &PatchParams::apply("netweft-agent").force(), &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn nodes_get_blocks_and_a_deleted_node_loses_them_after_the_grace() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    for number in 1..=3 {
        create_node(
            &admin,
            &format!("worker-{number}"),
            &format!("10.1.0.{number}"),
        )
        .await;
    }
    let (_process, port) = operator(&plane, "one", "3s").await;
    let networks = until_assigned(&admin, 3).await;
    assert_eq!(
        owners(&admin)
            .await
            .values()
            .map(BTreeSet::len)
            .collect::<Vec<_>>(),
        [1, 1, 1]
    );
    for network in &networks {
        assert_eq!(network.owner_references()[0].name, network.name_any());
        assert_eq!(network.spec.modes[0].send.vxlan.unwrap().vni, 4096);
    }
    assert!(
        get(port, "/readyz")
            .await
            .unwrap()
            .starts_with("HTTP/1.0 200")
    );
    assert!(
        get(port, "/metrics")
            .await
            .unwrap()
            .contains("netweft_operator_leader 1")
    );

    statuses_follow_the_agents(&admin).await;
    events_are_counted(&admin).await;
    node_comes_and_goes(&admin).await;
    pool_is_given_up(&admin).await;
}

async fn statuses_follow_the_agents(admin: &Client) {
    let modes: Api<NetworkMode> = Api::all(admin.clone());
    let waits = eventually("the mode waits for its nodes", PATIENCE, async || {
        let status = modes.get("default").await.unwrap().status?;
        status.nodes.filter(|nodes| nodes.total == 3)
    });
    assert_eq!(
        waits.await.waiting_for,
        ["worker-1", "worker-2", "worker-3"]
    );
    for number in 1..=3 {
        acknowledge(admin, &format!("worker-{number}"), number).await;
    }
    eventually("the mode is ready", PATIENCE, async || {
        let status = modes.get("default").await.unwrap().status?;
        is_true(&status.conditions, READY).then_some(())
    })
    .await;
    let pools: Api<IPPool> = Api::all(admin.clone());
    let pool = eventually("the pool counts addresses", PATIENCE, async || {
        let pool = pools.get("default-v4").await.unwrap();
        let usage = pool.status.as_ref()?.usage?;
        (usage.addresses.used == 6 && usage.blocks.used == 3).then_some(pool)
    })
    .await;
    assert_eq!(pool.finalizers(), [POOL_FINALIZER]);
    let peer = json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "BGPPeer", "metadata": { "name": "tor" },
        "spec": { "peerIP": "10.1.0.254", "asNumber": 65001 } });
    let peers: Api<BGPPeer> = Api::all(admin.clone());
    peers
        .create(&PostParams::default(), &object(peer))
        .await
        .unwrap();
    eventually(
        "the peer is told that it is not supported, by an event too",
        PATIENCE,
        async || {
            let events: Api<Event> = Api::namespaced(admin.clone(), "default");
            let events = events
                .list(&kube::api::ListParams::default())
                .await
                .unwrap();
            events.into_iter().find(|event| {
                event.reason.as_deref() == Some("NotYetSupported")
                    && event
                        .regarding
                        .as_ref()
                        .and_then(|object| object.name.as_deref())
                        == Some("tor")
            })
        },
    )
    .await;
}

/// What is told again is the same event, counted.
async fn events_are_counted(admin: &Client) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    for (disabled, reason) in [
        (true, "Disabled"),
        (false, "Allocatable"),
        (true, "Disabled"),
        (false, "Allocatable"),
    ] {
        let patch = Patch::Merge(json!({ "spec": { "disabled": disabled } }));
        pools
            .patch("default-v4", &PatchParams::default(), &patch)
            .await
            .unwrap();
        eventually("the pool follows", PATIENCE, async || {
            let status = pools.get("default-v4").await.unwrap().status?;
            status
                .conditions
                .iter()
                .any(|c| c.type_ == READY && c.reason == reason)
                .then_some(())
        })
        .await;
    }
    eventually("the event has been counted", PATIENCE, async || {
        let events: Api<Event> = Api::namespaced(admin.clone(), "default");
        let events = events
            .list(&kube::api::ListParams::default())
            .await
            .unwrap();
        let mut disabled = events
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some("Disabled"));
        disabled.find(|event| {
            event
                .series
                .as_ref()
                .is_some_and(|series| series.count == 2)
        })
    })
    .await;
}

async fn node_comes_and_goes(admin: &Client) {
    let nodes: Api<Node> = Api::all(admin.clone());
    let before = owners(admin).await;
    // A joining node changes nothing for the others.
    create_node(admin, "worker-0", "10.1.0.9").await;
    until_assigned(admin, 4).await;
    let with = owners(admin).await;
    assert!(
        before.iter().all(|(node, blocks)| with[node] == *blocks),
        "{before:?} {with:?}"
    );
    nodes
        .delete("worker-0", &DeleteParams::default())
        .await
        .unwrap();
    eventually("its block is orphaned", PATIENCE, async || {
        let subnets = all::<NodeSubnet>(admin).await;
        subnets
            .into_iter()
            .find(|s| s.spec.node == "worker-0" && s.spec.state == SubnetState::Orphaned)
    })
    .await;
    eventually("its block is given back", PATIENCE, async || {
        (!owners(admin).await.contains_key("worker-0")).then_some(())
    })
    .await;
    assert_eq!(owners(admin).await, before);
    // Nothing collects garbage here.
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    networks
        .delete("worker-0", &DeleteParams::default())
        .await
        .unwrap();
}

async fn pool_is_given_up(admin: &Client) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    pools
        .delete("default-v4", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the pool says what it waits for", PATIENCE, async || {
        let status = pools.get("default-v4").await.unwrap().status?;
        status
            .conditions
            .iter()
            .any(|c| c.reason == "InUse" && c.message.contains("worker-1"))
            .then_some(())
    })
    .await;
    // No pod is left on any node: the blocks are withdrawn, and go when the agents have seen that.
    for number in 1..=3 {
        acknowledge(admin, &format!("worker-{number}"), 0).await;
    }
    eventually("the blocks are withdrawn", PATIENCE, async || {
        all::<NodeNetwork>(admin)
            .await
            .iter()
            .all(|network| network.spec.subnets.is_empty())
            .then_some(())
    })
    .await;
    assert_eq!(owners(admin).await.len(), 3);
    for number in 1..=3 {
        acknowledge(admin, &format!("worker-{number}"), 0).await;
    }
    eventually("the pool is gone", PATIENCE, async || {
        pools
            .get_opt("default-v4")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(owners(admin).await.is_empty());
}

async fn leader(client: &Client) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    leases
        .get_opt("netweft-operator")
        .await
        .unwrap()?
        .spec?
        .holder_identity
}

#[tokio::test]
async fn another_operator_takes_over_and_no_block_is_assigned_twice() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let (mut first, _) = operator(&plane, "first", "10m").await;
    eventually("the first leads", PATIENCE, async || {
        leader(&admin).await.filter(|name| name == "first")
    })
    .await;
    let (mut second, port) = operator(&plane, "second", "10m").await;
    until_assigned(&admin, 1).await;
    eventually(
        "the second is ready without leading",
        PATIENCE,
        async || {
            get(port, "/readyz")
                .await
                .filter(|answer| answer.starts_with("HTTP/1.0 200"))
        },
    )
    .await;

    // A leader that is stopped, replaced and resumed believes in its lease for a while.
    first.signal("STOP");
    for number in 2..=20 {
        create_node(
            &admin,
            &format!("worker-{number}"),
            &format!("10.1.0.{number}"),
        )
        .await;
    }
    until_assigned(&admin, 20).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("second"));
    first.signal("CONT");
    for number in 21..=40 {
        create_node(
            &admin,
            &format!("worker-{number}"),
            &format!("10.1.0.{number}"),
        )
        .await;
    }
    until_assigned(&admin, 40).await;
    one_block_each(&admin, 40).await;

    // kill -9 of the leader.
    second.kill();
    create_node(&admin, "worker-41", "10.1.0.41").await;
    until_assigned(&admin, 41).await;
    assert_eq!(leader(&admin).await.as_deref(), Some("first"));
    one_block_each(&admin, 41).await;

    // A leader that is told to stop gives the lease back.
    first.signal("TERM");
    first.wait(Duration::from_secs(15));
    assert_eq!(leader(&admin).await, None);
}

async fn one_block_each(client: &Client, nodes: usize) {
    let owners = owners(client).await;
    assert_eq!(owners.len(), nodes);
    let blocks: BTreeSet<_> = owners.values().flatten().collect();
    assert_eq!(
        blocks.len(),
        owners.values().map(BTreeSet::len).sum::<usize>()
    );
    assert!(
        owners.values().all(|blocks| blocks.len() == 1),
        "{owners:?}"
    );
}

#[tokio::test]
async fn the_operator_brings_its_own_definitions() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    // One is missing, one is of another version.
    definitions
        .delete("bgppeers.netweft.io", &DeleteParams::default())
        .await
        .unwrap();
    let names = Patch::Merge(json!({ "spec": { "names": { "shortNames": ["old"] } } }));
    definitions
        .patch("ippools.netweft.io", &PatchParams::default(), &names)
        .await
        .unwrap();
    let (_process, port) = operator(&plane, "one", "10m").await;
    eventually("it has listed its kinds", PATIENCE, async || {
        get(port, "/readyz")
            .await
            .filter(|answer| answer.starts_with("HTTP/1.0 200"))
    })
    .await;
    assert!(all::<BGPPeer>(&admin).await.is_empty());
    let names = definitions
        .get("ippools.netweft.io")
        .await
        .unwrap()
        .spec
        .names;
    assert!(names.short_names.unwrap().contains(&"ipp".to_owned()));
}
