//! Objects that the API server accepts. `refused` tests the others.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use netweft_crds::{IPPool, NodeNetwork};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::objects::{object, token, try_apply, try_create};

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

/// Objects at the limits of the rules, and typical objects.
fn accepted() -> Vec<Value> {
    [accepted_pools(), accepted_modes(), accepted_peers()].concat()
}

fn accepted_pools() -> Vec<Value> {
    vec![
        pool(&json!({ "cidr": "10.9.0.0/16" })),
        pool(&json!({ "cidr": "10.9.0.0/20", "blockSize": 20 })),
        pool(&json!({ "cidr": "fd00:9::/64", "reserved": ["fd00:9::7", "fd00:9::/80"] })),
        pool(
            &json!({ "cidr": "10.9.0.0/16", "networkMode": "rack-1.example", "natOutgoingExclude": ["fd00::/8"],
            "nodeSelector": { "matchExpressions": [{ "key": "gpu", "operator": "DoesNotExist" }] },
            "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "NotIn", "values": ["a"] }] } }),
        ),
    ]
}

/// Objects that the operator writes.
fn accepted_subnets() -> Vec<Value> {
    vec![
        subnet("10-244-3-64-26", "10.244.3.64/26"),
        subnet(
            "fd00-0000-0000-0000-0000-0000-0000-0040-122",
            "fd00::40/122",
        ),
    ]
}

fn accepted_modes() -> Vec<Value> {
    vec![
        mode(
            &json!({ "mode": "overlay", "overlay": { "encapsulation": "udp", "udp": { "port": 65535 } } }),
        ),
        mode(
            &json!({ "mode": "overlay", "overlay": { "encapsulation": "vxlan", "vxlan": { "vni": 16_777_215, "port": 1 } } }),
        ),
        mode(
            &json!({ "mode": "host-gw", "mtu": 1280, "nodeAddress": { "interface": "eth0.100" } }),
        ),
        mode(&json!({ "mode": "host-gw", "nodeAddress": { "interface": "enp*s0f?" } })),
        mode(&json!({ "mode": "host-gw", "nodeAddress": { "reaches": "2001:db8::1" } })),
        mode(&json!({ "mode": "host-gw", "nodeAddress": { "cidr": "fd00::/16" } })),
        mode(
            &json!({ "mode": "host-gw", "nodeAddress": { "ipv4": { "interface": "eth1" }, "ipv6": { "from": "internal-ip" } } }),
        ),
        mode(
            &json!({ "mode": "host-gw", "nodeAddress": { "ipv4": { "reaches": "10.1.0.1" }, "ipv6": { "cidr": "fd00::/16" } } }),
        ),
        mode(&json!({ "mode": "host-gw", "nodeAddress": { "ipv6": { "reaches": "fd00::1" } } })),
        mode(&json!({ "mode": "underlay" })),
        mode(
            &json!({ "mode": "underlay", "underlay": { "asNumber": 4_294_967_294_u32, "holdTime": "3s", "keepaliveTime": "1s",
            "gracefulRestart": { "enabled": true, "restartTime": "1h8m15s" },
            "asNumbers": [{ "nodeSelector": {}, "asNumber": 1 }] } }),
        ),
    ]
}

fn accepted_peers() -> Vec<Value> {
    vec![
        peer(&json!({ "peerIP": "10.1.0.1", "asNumber": 65001 })),
        peer(
            &json!({ "peerIP": "10.1.0.1", "asNumber": 4_200_000_000_u32, "localASNumber": 4_294_967_294_u32 }),
        ),
        peer(
            &json!({ "peerIP": "fd00::1", "asNumber": 65001, "sourceAddress": "fd00::2", "ebgpMultihop": 255,
            "holdTime": "1m30s", "keepaliveTime": "500ms1s",
            "bfd": { "minReceive": "10ms", "minTransmit": "1m", "multiplier": 255 } }),
        ),
        peer(&json!({ "peerSelector": {}, "maxPrefixes": 1, "ttlSecurity": 254 })),
    ]
}

/// The label of Nodes in examples.
const NODE_LABEL: &str = "node-restriction.kubernetes.io/netweft-example";
#[tokio::test]
async fn admission_accepts_valid_objects() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    for object in accepted() {
        assert_eq!(try_create(&admin, object.clone()).await, Ok(()), "{object}");
    }
    let operator = plane.client(&token(&admin, "netweft-operator", None).await);
    for object in [accepted_subnets(), documented_records()].concat() {
        assert_eq!(
            try_create(&operator, object.clone()).await,
            Ok(()),
            "{object}"
        );
    }
    examples_are_accepted(&admin).await;
    // Mutable fields of a pool can change, although a policy forbids overlapping pools.
    let pools: Api<IPPool> = Api::all(admin);
    let patch = Patch::Merge(json!({ "spec": { "natOutgoing": false, "blockSize": 26 } }));
    pools
        .patch("default-v4", &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Users apply the objects in `examples/`: each is accepted unchanged in addition to the chart's defaults, and does not
/// affect existing objects.
async fn examples_are_accepted(admin: &Client) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for example in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            let name = example["metadata"]["name"].as_str().unwrap();
            assert!(name.starts_with("example-"), "{}", path.display());
            let (kind, spec) = (example["kind"].as_str().unwrap(), &example["spec"]);
            // The example affects only namespaces and nodes with the example's label.
            let label = match kind {
                "IPPool" => &spec["namespaceSelector"]["matchLabels"]["netweft.io/example"],
                "BGPPeer" => &spec["nodeSelector"]["matchLabels"][NODE_LABEL],
                _ => &Value::String(String::new()),
            };
            assert!(label.is_string(), "{}", path.display());
            // A kubelet can set every other label of its own Node, and so choose the sessions of the node.
            let selectors = text.split("nodeSelector:").skip(1);
            let restricted = selectors
                .filter(|selector| selector.contains(NODE_LABEL))
                .count();
            let all = text.matches("nodeSelector:").count();
            assert!(kind == "IPPool" || restricted == all, "{}", path.display());
            kinds.insert(kind.to_owned());
            assert_eq!(
                try_apply(admin, example.clone()).await,
                Ok(()),
                "{}: {example}",
                path.display()
            );
        }
    }
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["BGPPeer", "IPPool", "NetworkMode"]
    );
}

/// The objects in `docs/records.md`.
fn documented_records() -> Vec<Value> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/records.md");
    let text = std::fs::read_to_string(page).unwrap();
    let blocks = text
        .split("```")
        .filter_map(|block| block.strip_prefix("yaml\n"));
    let records: Vec<Value> = blocks
        .map(|block| serde_saphyr::from_str(block).unwrap())
        .collect();
    let kinds: Vec<_> = records.iter().map(|record| &record["kind"]).collect();
    assert_eq!(kinds, ["NodeSubnet", "NodeNetwork"]);
    records
}

#[tokio::test]
async fn node_network_conditions_of_two_writers_coexist() {
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
