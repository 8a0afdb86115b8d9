//! What is refused when it is written, and what the refusal says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::objects::{applied, create_node, eventually, object, token, verdict};

fn pool(spec: &Value) -> Value {
    json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "IPPool", "metadata": { "name": "new" }, "spec": spec })
}

fn mode(spec: &Value) -> Value {
    json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NetworkMode", "metadata": { "name": "new" }, "spec": spec })
}

fn peer(spec: &Value) -> Value {
    json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "BGPPeer", "metadata": { "name": "new" }, "spec": spec })
}

fn subnet(name: &str, cidr: &str) -> Value {
    json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeSubnet", "metadata": { "name": name },
        "spec": { "cidr": cidr, "pool": "p", "node": "n", "state": "Active" } })
}

/// Objects and what has to be in the refusal.
fn refused_pools() -> Vec<(Value, &'static str)> {
    vec![
        (
            pool(&json!({ "cidr": "10.9.0.1/16" })),
            "no host bits, for example 10.244.0.0/16",
        ),
        (
            pool(&json!({ "cidr": "169.254.0.0/16" })),
            "must not be link-local",
        ),
        (
            pool(&json!({ "cidr": "10.9.0.0/16", "blockSize": 19 })),
            "spec.blockSize must be 20 to 30",
        ),
        (
            pool(&json!({ "cidr": "10.9.0.0/28" })),
            "smaller than one block",
        ),
        (
            pool(&json!({ "cidr": "10.9.0.0/16", "reserved": ["ten"] })),
            "spec.reserved must hold addresses or CIDRs",
        ),
        (
            pool(&json!({ "cidr": "10.244.128.0/17" })),
            "overlaps IPPool default-v4 (10.244.0.0/16): choose a range outside",
        ),
        (
            pool(&json!({ "cidr": "10.0.0.0/8" })),
            "overlaps IPPool default-v4 (10.244.0.0/16): choose a range outside",
        ),
    ]
}

fn refused_modes_peers_and_subnets() -> Vec<(Value, &'static str)> {
    vec![
        (
            mode(&json!({ "mode": "overlay" })),
            "spec.overlay belongs to spec.mode overlay",
        ),
        (
            mode(&json!({ "mode": "host-gw", "underlay": {} })),
            "spec.underlay belongs to spec.mode underlay",
        ),
        (
            mode(
                &json!({ "mode": "overlay", "overlay": { "encapsulation": "ipip", "vxlan": { "vni": 1 } } }),
            ),
            "spec.overlay.vxlan belongs to encapsulation vxlan",
        ),
        (
            mode(
                &json!({ "mode": "overlay", "overlay": { "encapsulation": "vxlan", "vxlan": { "vni": 0 } } }),
            ),
            "spec.overlay.vxlan.vni must be 1 to 16777215",
        ),
        (
            mode(&json!({ "mode": "host-gw", "mtu": 576 })),
            "spec.mtu must be 0 (measured) or 1280 to 65535",
        ),
        (
            mode(
                &json!({ "mode": "host-gw", "nodeAddress": { "cidr": "10.0.0.0/8", "interface": "eth1" } }),
            ),
            "spec.nodeAddress takes exactly one of",
        ),
        (peer(&json!({})), "spec takes exactly one of peerIP"),
        (
            peer(&json!({ "peerIP": "10.1.0.1" })),
            "spec.asNumber belongs to spec.peerIP",
        ),
        (
            subnet("10-244-3-0-26", "10.244.3.64/26"),
            "metadata.name must be spec.cidr",
        ),
        (
            subnet("fd00--40-122", "fd00::40/122"),
            "metadata.name must be spec.cidr",
        ),
    ]
}

fn accepted() -> Vec<Value> {
    vec![
        pool(&json!({ "cidr": "10.9.0.0/16" })),
        pool(&json!({ "cidr": "fd00:9::/64", "reserved": ["fd00:9::7", "fd00:9::/80"] })),
        mode(
            &json!({ "mode": "overlay", "overlay": { "encapsulation": "udp", "udp": { "port": 8285 } } }),
        ),
        mode(&json!({ "mode": "host-gw", "nodeAddress": { "interface": "eth1" } })),
        mode(&json!({ "mode": "underlay" })),
        peer(&json!({ "peerIP": "10.1.0.1", "asNumber": 65001 })),
        peer(&json!({ "peerSelector": {} })),
        subnet("10-244-3-64-26", "10.244.3.64/26"),
        subnet(
            "fd00-0000-0000-0000-0000-0000-0000-0040-122",
            "fd00::40/122",
        ),
    ]
}

#[tokio::test]
async fn bad_objects_are_refused_in_words_that_say_what_to_write_instead() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    // Policies take effect a moment after they are written.
    eventually("the policy is in force", PATIENCE, async || {
        verdict(&admin, pool(&json!({ "cidr": "10.0.0.0/8" })))
            .await
            .err()
    })
    .await;
    for good in accepted() {
        assert_eq!(verdict(&admin, good.clone()).await, Ok(()), "{good}");
    }
    for (bad, words) in refused_pools()
        .into_iter()
        .chain(refused_modes_peers_and_subnets())
    {
        let refusal = verdict(&admin, bad.clone())
            .await
            .expect_err(&bad.to_string());
        assert!(refusal.contains(words), "{bad}: {refusal}");
    }
    samples_are_accepted(&admin).await;
    identity_is_immutable(&admin).await;
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

async fn identity_is_immutable(admin: &Client) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    for (spec, words) in [
        (json!({ "cidr": "10.5.0.0/16" }), "spec.cidr is immutable"),
        (json!({ "blockSize": 27 }), "spec.blockSize is immutable"),
        (
            json!({ "podInterface": "bridge" }),
            "spec.podInterface is immutable",
        ),
    ] {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let refusal = pools
            .patch("default-v4", &PatchParams::default(), &patch)
            .await
            .unwrap_err()
            .to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
    // What may change still can, the policy against overlap notwithstanding.
    let patch = Patch::Merge(json!({ "spec": { "natOutgoing": false } }));
    pools
        .patch("default-v4", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let subnets: Api<NodeSubnet> = Api::all(admin.clone());
    let created = object(subnet("10-244-3-64-26", "10.244.3.64/26"));
    subnets
        .create(&PostParams::default(), &created)
        .await
        .unwrap();
    let patch = Patch::Merge(json!({ "spec": { "node": "other" } }));
    let refusal = subnets
        .patch("10-244-3-64-26", &PatchParams::default(), &patch)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("spec.cidr, spec.pool and spec.node are immutable"),
        "{refusal}"
    );
}

/// What stands in `examples/` is what users copy: every object is accepted as it is, on top of the chart's
/// defaults.
async fn samples_are_accepted(admin: &Client) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for sample in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            assert_eq!(
                applied(admin, sample.clone()).await,
                Ok(()),
                "{}: {sample}",
                path.display()
            );
            kinds.push(sample["kind"].as_str().unwrap().to_owned());
        }
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "BGPPeer",
            "IPPool",
            "NetworkMode",
            "NodeNetwork",
            "NodeSubnet"
        ]
    );
}

async fn write_status(client: &Client, name: &str) -> Result<(), String> {
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let patch = Patch::Apply(json!({
        "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork", "status": { "observedGeneration": 1 },
    }));
    let params = PatchParams::apply("netweft-agent").force();
    networks
        .patch_status(name, &params, &patch)
        .await
        .map(|_| ())
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn an_agent_can_write_its_own_status_and_nothing_else() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    for (node, address) in [("worker-1", "10.1.0.1"), ("worker-2", "10.1.0.2")] {
        create_node(&admin, node, address).await;
        networks
            .create(
                &PostParams::default(),
                &object(json!({ "apiVersion": "netweft.io/v1alpha1",
            "kind": "NodeNetwork", "metadata": { "name": node }, "spec": {} })),
            )
            .await
            .unwrap();
    }
    let agent = plane.client(&token(&admin, "netweft-agent", Some("worker-1")).await);
    eventually("the policy is in force", PATIENCE, async || {
        write_status(&agent, "worker-2").await.err()
    })
    .await;

    write_status(&agent, "worker-1").await.unwrap();
    let refusal = write_status(&agent, "worker-2").await.unwrap_err();
    let words = "the netweft-agent of node worker-1 may write the status of NodeNetwork worker-1 only, not of worker-2";
    assert!(refusal.contains(words), "{refusal}");

    let unbound = plane.client(&token(&admin, "netweft-agent", None).await);
    let refusal = write_status(&unbound, "worker-1").await.unwrap_err();
    assert!(
        refusal.contains("this token of netweft-agent names no node"),
        "{refusal}"
    );

    // Were it given more rights by mistake, the policy would still hold.
    give_everything_to_the_agent(&admin).await;
    let written = eventually("the new right is in force", PATIENCE, async || {
        let patch = Patch::Merge(json!({ "spec": { "subnets": ["10.244.9.0/26"] } }));
        let networks: Api<NodeNetwork> = Api::all(agent.clone());
        let error = networks
            .patch("worker-1", &PatchParams::default(), &patch)
            .await
            .err()?
            .to_string();
        (!error.contains("cannot patch resource")).then_some(error)
    });
    let refusal = written.await;
    assert!(
        refusal.contains("may write the status of its node's NodeNetwork and nothing else"),
        "{refusal}"
    );
}

async fn give_everything_to_the_agent(admin: &Client) {
    use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
    let binding = object(json!({
        "metadata": { "name": "mistake" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "netweft-agent", "namespace": "netweft-system" }],
    }));
    let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
}

#[tokio::test]
async fn two_writers_keep_their_own_conditions_of_a_node_network() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    networks
        .create(
            &PostParams::default(),
            &object(json!({ "apiVersion": "netweft.io/v1alpha1",
        "kind": "NodeNetwork", "metadata": { "name": "worker-1" }, "spec": {} })),
        )
        .await
        .unwrap();
    for (manager, type_) in [
        ("netweft-operator", "Assigned"),
        ("netweft-agent", "Ready"),
        ("netweft-operator", "Assigned"),
    ] {
        let condition = json!({ "type": type_, "status": "True", "reason": "Test", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let patch = Patch::Apply(
            json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork",
            "status": { "conditions": [condition] } }),
        );
        networks
            .patch_status("worker-1", &PatchParams::apply(manager).force(), &patch)
            .await
            .unwrap();
    }
    let conditions: Vec<Condition> = networks
        .get("worker-1")
        .await
        .unwrap()
        .status
        .unwrap()
        .conditions;
    let mut types: Vec<_> = conditions
        .iter()
        .map(|condition| condition.type_.as_str())
        .collect();
    types.sort_unstable();
    assert_eq!(types, ["Assigned", "Ready"]);
}
