//! The lifecycle of a cluster: nodes are created and deleted, agents report, a pool is deleted. The test uses every
//! right that the chart grants, and shows that none is missing.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use netweft_crds::condition::{READY, is_true};
use netweft_crds::names::{PASSWORDS_SECRET, POOL_FINALIZER};
use netweft_crds::{
    BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet, RemainingPods, SubnetState,
};
use serde_json::json;

use crate::agent::Agent;
use crate::audit::AuditedRequests;
use crate::control_plane::{ControlPlane, NAMESPACE};
use crate::objects::{all, create, create_node, delete, delete_crd, eventually, merge};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, wait_until_assigned};

#[tokio::test]
async fn operator_lifecycle_uses_every_rbac_right() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    // The operator must create the CRD again, which needs the right to create CRDs.
    delete_crd(&admin, "bgppeers.netweft.io").await;
    for number in 1..=3 {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        create_node(&admin, &name, &address).await;
    }
    let linux = r#"--agent-nodes={"matchExpressions": [{"key": "os", "operator": "NotIn", "values": ["other"]}]}"#;
    let secrets = "--password-secrets=user-passwords";
    let flags = ["--orphan-grace", "3s", linux, secrets];
    let operator = Operator::start(&plane, "one", &flags).await;
    let networks = wait_until_assigned(&admin, 3).await;
    let owners = owners(&admin).await;
    assert!(
        owners.values().all(|blocks| blocks.len() == 1),
        "{owners:?}"
    );
    for network in &networks {
        assert_eq!(network.owner_references()[0].name, network.name_any());
        assert_eq!(network.spec.modes[0].transport.vxlan.unwrap().vni, 4096);
    }
    assert!(operator.is_ready().await.is_some());
    assert!(
        operator
            .has_metric("netweft_operator_leader 1")
            .await
            .is_some()
    );

    let agents = check_statuses_follow_agents(&plane).await;
    check_network_unavailable_is_cleared(&admin).await;
    add_namespace_selector(&admin).await;
    check_conditions_and_events(&admin).await;
    check_repeated_events(&admin).await;
    check_node_lifecycle(&admin).await;
    check_node_without_agent(&admin).await;
    check_pool_draining(&admin).await;
    check_pool_deletion(&admin, &agents).await;

    let requests = AuditedRequests::of(&plane);
    assert!(requests.forbidden.is_empty(), "{:#?}", requests.forbidden);
    let unused = requests.unused();
    assert!(unused.is_empty(), "granted but unused: {unused:#?}");
}

/// The agents of the nodes 1, 2 and 3, with 1, 2 and 3 pods.
async fn agents(plane: &ControlPlane) -> Vec<Agent> {
    let owners = owners(&plane.admin()).await;
    let mut agents = Vec::new();
    for number in 1..=3 {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        let block: IpNet = owners[&name].first().unwrap().parse().unwrap();
        // The first address of the block belongs to the tunnel.
        let pods: Vec<String> = block
            .hosts()
            .skip(1)
            .take(number)
            .map(|ip| ip.to_string())
            .collect();
        agents.push(Agent::start(plane, &name, &address, &pods).await);
    }
    agents
}

async fn check_statuses_follow_agents(plane: &ControlPlane) -> Vec<Agent> {
    let admin = &plane.admin();
    let modes: Api<NetworkMode> = Api::all(admin.clone());
    let waiting = eventually("the mode waits for its nodes", WAIT_TIMEOUT, async || {
        let status = modes.get("default").await.unwrap().status?;
        status.nodes.filter(|nodes| nodes.total == 3)
    });
    assert_eq!(waiting.await.pending, ["worker-1", "worker-2", "worker-3"]);
    let agents = agents(plane).await;
    eventually("the mode is ready", WAIT_TIMEOUT, async || {
        let status = modes.get("default").await.unwrap().status?;
        is_true(&status.conditions, READY).then_some(())
    })
    .await;
    let pools: Api<IPPool> = Api::all(admin.clone());
    let pool = eventually("the pool counts addresses", WAIT_TIMEOUT, async || {
        let pool = pools.get("default-v4").await.unwrap();
        let usage = pool.status.as_ref()?.usage?;
        (usage.addresses.used == 6 && usage.blocks.used == 3).then_some(pool)
    })
    .await;
    assert_eq!(pool.finalizers(), [POOL_FINALIZER]);
    agents
}

/// A cloud provider sets NetworkUnavailable of a Node, and the operator clears it.
async fn check_network_unavailable_is_cleared(admin: &Client) {
    let nodes: Api<Node> = Api::all(admin.clone());
    let condition = |type_: &str| json!({ "type": type_, "status": "True", "reason": "Test", "message": "set by the test" });
    let conditions = ["NetworkUnavailable", "Other"].map(condition);
    let patch = Patch::Strategic(json!({ "status": { "conditions": conditions } }));
    let parameters = PatchParams::default();
    nodes
        .patch_status("worker-1", &parameters, &patch)
        .await
        .unwrap();
    eventually("the Node is available", WAIT_TIMEOUT, async || {
        let conditions = nodes.get("worker-1").await.unwrap().status?.conditions?;
        let status = |type_: &str| {
            let found = conditions.iter().find(|it| it.type_ == type_);
            found.map(|it| (it.status.clone(), it.reason.clone().unwrap_or_default()))
        };
        assert_eq!(status("Other").unwrap().0, "True");
        (status("NetworkUnavailable")? == ("False".to_owned(), "NetweftIsUp".to_owned()))
            .then_some(())
    })
    .await;
}

/// Agents watch namespaces only while a pool has a namespaceSelector. This one selects all namespaces.
async fn add_namespace_selector(admin: &Client) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    merge(
        &pools,
        "default-v4",
        json!({ "spec": { "namespaceSelector": {} } }),
    )
    .await;
}

/// The operator writes conditions and Events for all kinds.
async fn check_conditions_and_events(admin: &Client) {
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), NAMESPACE);
    let secret = json!({ "metadata": { "name": "user-passwords", "labels": { "netweft.io/bgp-password": "true" } }, "stringData": { "tor": "a-password" } });
    create(&secrets, secret).await;
    let password = json!({ "secretKeyRef": { "name": "user-passwords", "key": "tor" } });
    let peer = json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "BGPPeer", "metadata": { "name": "tor" },
        "spec": { "peerIP": "10.1.0.254", "asNumber": 65001, "password": password } });
    let peers: Api<BGPPeer> = Api::all(admin.clone());
    create(&peers, peer).await;
    eventually(
        "the password is in the agents' Secret",
        WAIT_TIMEOUT,
        async || {
            let secret = secrets.get_opt(PASSWORDS_SECRET).await.unwrap()?;
            secret.data?.get("tor").cloned()
        },
    )
    .await;
    for (kind, name, reason) in [
        ("BGPPeer", "tor", "NotFound"),
        ("IPPool", "default-v4", "Allocatable"),
        ("NetworkMode", "default", "Programmed"),
        ("NodeNetwork", "worker-1", "SubnetsAssigned"),
    ] {
        let what = format!("{kind} {name} has an Event {reason}");
        eventually(&what, WAIT_TIMEOUT, async || {
            let of_it = |event: &Event| {
                event.reason.as_deref() == Some(reason)
                    && event.regarding.as_ref().is_some_and(|object| {
                        object.kind.as_deref() == Some(kind) && object.name.as_deref() == Some(name)
                    })
            };
            events(admin).await.into_iter().find(of_it)
        })
        .await;
    }
}

async fn events(admin: &Client) -> Vec<Event> {
    let events: Api<Event> = Api::namespaced(admin.clone(), "default");
    events.list(&ListParams::default()).await.unwrap().items
}

/// Repeated Events are counted in a series.
async fn check_repeated_events(admin: &Client) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    for (disabled, reason) in [
        (true, "Disabled"),
        (false, "Allocatable"),
        (true, "Disabled"),
        (false, "Allocatable"),
    ] {
        let patch = json!({ "spec": { "disabled": disabled } });
        merge(&pools, "default-v4", patch).await;
        eventually("the pool has the condition", WAIT_TIMEOUT, async || {
            let status = pools.get("default-v4").await.unwrap().status?;
            let mut conditions = status.conditions.iter();
            conditions.find(|c| c.type_ == READY && c.reason == reason)?;
            Some(())
        })
        .await;
    }
    eventually("the Event is counted", WAIT_TIMEOUT, async || {
        let counted = |event: &Event| {
            let twice = event
                .series
                .as_ref()
                .is_some_and(|series| series.count == 2);
            twice && event.reason.as_deref() == Some("Disabled")
        };
        events(admin).await.into_iter().find(counted)
    })
    .await;
}

async fn check_node_lifecycle(admin: &Client) {
    let nodes: Api<Node> = Api::all(admin.clone());
    let before = owners(admin).await;
    // A new node does not affect other nodes.
    create_node(admin, "worker-0", "10.1.0.9").await;
    wait_until_assigned(admin, 4).await;
    let with = owners(admin).await;
    assert!(
        before.iter().all(|(node, blocks)| with[node] == *blocks),
        "{before:?} {with:?}"
    );
    delete(&nodes, "worker-0").await;
    eventually("the block is orphaned", WAIT_TIMEOUT, async || {
        let subnets = all::<NodeSubnet>(admin).await;
        subnets
            .into_iter()
            .find(|s| s.spec.node == "worker-0" && s.spec.state == SubnetState::Orphaned)
    })
    .await;
    eventually("the block is released", WAIT_TIMEOUT, async || {
        (!owners(admin).await.contains_key("worker-0")).then_some(())
    })
    .await;
    assert_eq!(owners(admin).await, before);
    // The garbage collector does not run here.
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    delete(&networks, "worker-0").await;
}

/// If the agent does not run on a Node any more, its NodeNetwork is deleted, provided that the node has no block.
async fn check_node_without_agent(admin: &Client) {
    let nodes: Api<Node> = Api::all(admin.clone());
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    // Without an address the node gets no block.
    create(&nodes, json!({ "metadata": { "name": "other" } })).await;
    eventually("the Node has a NodeNetwork", WAIT_TIMEOUT, async || {
        networks.get_opt("other").await.unwrap()
    })
    .await;
    let labels = json!({ "metadata": { "labels": { "os": "other" } } });
    merge(&nodes, "other", labels).await;
    eventually("the NodeNetwork is deleted", WAIT_TIMEOUT, async || {
        networks
            .get_opt("other")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    delete(&nodes, "other").await;
}

/// Reports pods in a draining pool like an agent. The operator looks up their owners and reports them.
async fn check_pool_draining(admin: &Client) {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
    create(&accounts, json!({ "metadata": { "name": "default" } })).await;
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    create(
        &pods,
        json!({ "metadata": { "name": "web-5d4f-x", "labels": { "pod-template-hash": "5d4f" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "u",
                "controller": true }] },
            "spec": { "automountServiceAccountToken": false, "containers": [{ "name": "c", "image": "i" }] } }),
    )
    .await;
    let of = |name: &str| json!({ "pool": "default-v4", "namespace": "default", "name": name });
    let patch =
        Patch::Merge(json!({ "status": { "drainingPods": [of("web-5d4f-x"), of("deleted")] } }));
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let parameters = PatchParams::default();
    networks
        .patch_status("worker-1", &parameters, &patch)
        .await
        .unwrap();
    let pools: Api<IPPool> = Api::all(admin.clone());
    let remaining = async || {
        let pool = pools.get("default-v4").await.unwrap();
        let remaining = pool.status.unwrap().remaining_pods.into_iter();
        let line =
            |entry: RemainingPods| format!("{} {:?} {}", entry.node, entry.owner, entry.count);
        remaining.map(line).collect::<Vec<_>>()
    };
    assert_eq!(remaining().await, Vec::<String>::new());
    merge(
        &pools,
        "default-v4",
        json!({ "spec": { "disabled": true } }),
    )
    .await;
    eventually(
        "the pool lists the remaining pods",
        WAIT_TIMEOUT,
        async || {
            let expected = ["worker-1 None 1", "worker-1 Some(\"Deployment/web\") 1"];
            (remaining().await == expected).then_some(())
        },
    )
    .await;
}

async fn check_pool_deletion(admin: &Client, agents: &[Agent]) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    delete(&pools, "default-v4").await;
    eventually(
        "the pool reports what it waits for",
        WAIT_TIMEOUT,
        async || {
            let status = pools.get("default-v4").await.unwrap().status?;
            let mut conditions = status.conditions.iter();
            conditions.find(|c| c.reason == "InUse" && c.message.contains("worker-1"))?;
            Some(())
        },
    )
    .await;
    // A block without pods is withdrawn, and released when the agent has acknowledged that.
    let (first, others) = agents.split_first().unwrap();
    others.iter().for_each(Agent::remove_pods);
    eventually(
        "all blocks but one are released",
        WAIT_TIMEOUT,
        async || {
            let owners = owners(admin).await;
            owners.into_keys().eq(["worker-1".to_owned()]).then_some(())
        },
    )
    .await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let secret = networks.get("worker-1").await.unwrap();
    assert_eq!(
        secret.spec.subnets.len(),
        1,
        "pods have addresses of the block"
    );
    first.remove_pods();
    eventually("the pool is deleted", WAIT_TIMEOUT, async || {
        let pool = pools.get_opt("default-v4").await.unwrap();
        pool.is_none().then_some(())
    })
    .await;
    assert!(owners(admin).await.is_empty());
}
