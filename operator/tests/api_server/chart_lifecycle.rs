//! The chart is installed, upgraded from a version with an older schema, uninstalled and installed again. Objects of
//! users survive each step.

use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client};
use netweft_crds::condition::{READY, is_true};
use netweft_crds::{IPPool, NodeSubnet};
use serde_json::{Value, json};

use crate::control_plane::{CHART, ControlPlane};
use crate::objects::{all, apply_object, create_node, dynamic_api, eventually, merge};
use crate::operator::{Operator, WAIT_TIMEOUT, wait_until_assigned};

#[tokio::test]
async fn user_objects_survive_upgrade_uninstall_and_reinstall() {
    let plane = ControlPlane::start().await;
    let admin = plane.admin();
    let old = older_chart(plane.dir.path());
    let old = old.to_str().unwrap();
    plane.helm(&["install", "netweft", old, "--create-namespace"]);
    for object in user_objects() {
        apply_object(&admin, &object).await;
    }
    create_node(&admin, "worker-1", "10.1.0.1").await;
    // An operator of the older version does not change the CRDs.
    let operator = Operator::start(&plane, "old", &["--manage-crds", "false"]).await;
    wait_until_assigned(&admin, 1).await;
    wait_until_pools_are_ready(&admin).await;
    operator.stop();
    // The operator has written a finalizer and statuses, and has kept a field that is unknown to it.
    let before = object_contents(&admin).await;
    let edge = before
        .iter()
        .find(|object| object["metadata"]["name"] == "edge");
    assert_eq!(edge.unwrap()["spec"]["colour"], "blue", "{before:#?}");

    plane.helm(&["upgrade", "netweft", CHART]);
    let operator = Operator::start(&plane, "new", &[]).await;
    eventually(
        "the operator has applied its CRDs",
        WAIT_TIMEOUT,
        async || operator.is_ready().await,
    )
    .await;
    assert_schema_is_updated(&admin).await;
    let expected = after_upgrade(before);
    assert_eq!(object_contents(&admin).await, expected, "after the upgrade");
    wait_until_pools_are_ready(&admin).await;
    operator.stop();

    let output = plane.helm(&["uninstall", "netweft"]);
    for kept in ["[IPPool] default-v4", "[NetworkMode] default"] {
        assert!(output.contains(kept), "{output}");
    }
    assert_eq!(
        object_contents(&admin).await,
        expected,
        "after uninstalling"
    );

    // Changes by the user between two installations stay.
    let pools: Api<IPPool> = Api::all(admin.clone());
    let patch = json!({ "spec": { "reserved": ["10.244.7.7"] } });
    merge(&pools, "default-v4", patch).await;
    let changed = object_contents(&admin).await;
    plane.helm(&["install", "netweft", CHART]);
    assert_eq!(
        object_contents(&admin).await,
        changed,
        "after installing again"
    );
    let operator = Operator::start(&plane, "again", &[]).await;
    eventually("the operator is ready", WAIT_TIMEOUT, async || {
        operator.is_ready().await
    })
    .await;
    wait_until_pools_are_ready(&admin).await;
    assert_eq!(object_contents(&admin).await, changed, "with an operator");
    operator.stop();
}

/// The chart with older CRDs: a missing field, an obsolete field and an obsolete rule.
fn older_chart(directory: &Path) -> PathBuf {
    let chart = directory.join("older");
    copy(Path::new(CHART), &chart);
    let file = chart.join("crds/ippools.yaml");
    let mut definition: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let spec =
        &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let fields = spec["properties"].as_object_mut().unwrap();
    fields.remove("disableBGPExport").unwrap();
    fields.insert("colour".to_owned(), json!({ "type": "string" }));
    let rules = spec["x-kubernetes-validations"].as_array_mut().unwrap();
    rules.push(json!({ "rule": "!has(self.natOutgoingExclude)", "message": "obsolete rule" }));
    std::fs::write(&file, serde_saphyr::to_string(&definition).unwrap()).unwrap();
    chart
}

/// Copies a directory with its content.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn user_objects() -> Vec<Value> {
    const API_VERSION: &str = "netweft.io/v1alpha1";
    vec![
        json!({ "apiVersion": API_VERSION, "kind": "IPPool", "metadata": { "name": "edge", "labels": { "team": "a" } },
            "spec": { "cidr": "10.9.0.0/16", "blockSize": 27, "networkMode": "edge", "colour": "blue" } }),
        json!({ "apiVersion": API_VERSION, "kind": "NetworkMode", "metadata": { "name": "edge" },
            "spec": { "mode": "overlay", "overlay": { "encapsulation": "vxlan", "vxlan": { "vni": 7 } } } }),
        json!({ "apiVersion": API_VERSION, "kind": "BGPPeer", "metadata": { "name": "tor", "annotations": { "by": "a" } },
            "spec": { "peerIP": "10.1.0.254", "asNumber": 65001 } }),
    ]
}

/// Identity and content of users' objects and blocks, without fields that the API server changes.
async fn object_contents(admin: &Client) -> Vec<Value> {
    let mut found = Vec::new();
    for kind in ["IPPool", "NetworkMode", "BGPPeer", "NodeSubnet"] {
        let api = dynamic_api(admin, &json!({ "kind": kind }));
        let objects = api.list(&ListParams::default()).await.unwrap();
        found.extend(
            objects
                .items
                .iter()
                .map(|object| identity_and_spec(kind, object)),
        );
    }
    found
}

fn identity_and_spec(kind: &str, object: &DynamicObject) -> Value {
    let of_user =
        |labels: &&String| !labels.contains("helm.sh/") && !labels.contains("app.kubernetes.io/");
    let labels = object.metadata.labels.iter().flatten();
    let labels = labels.filter(|(key, _)| of_user(key));
    json!({
        "kind": kind,
        "metadata": { "name": object.metadata.name, "uid": object.metadata.uid, "labels": labels.collect::<Vec<_>>(),
            "finalizers": object.metadata.finalizers, "created": object.metadata.creation_timestamp },
        "spec": object.data["spec"],
    })
}

/// After the upgrade the obsolete field cannot be read, and the new field has its default.
fn after_upgrade(mut objects: Vec<Value>) -> Vec<Value> {
    for object in objects
        .iter_mut()
        .filter(|object| object["kind"] == "IPPool")
    {
        let spec = object["spec"].as_object_mut().unwrap();
        spec.remove("colour");
        spec.insert("disableBGPExport".to_owned(), false.into());
    }
    objects
}

async fn assert_schema_is_updated(admin: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    let pools = definitions.get("ippools.netweft.io").await.unwrap();
    let schema = serde_json::to_value(&pools.spec.versions[0].schema).unwrap();
    let spec = &schema["openAPIV3Schema"]["properties"]["spec"];
    assert!(spec["properties"]["disableBGPExport"].is_object());
    assert!(spec["properties"]["colour"].is_null());
    let rules = spec["x-kubernetes-validations"].to_string();
    assert!(!rules.contains("obsolete rule"), "{rules}");
}

async fn wait_until_pools_are_ready(admin: &Client) {
    eventually(
        "the pools are ready, and the node has a block of one",
        WAIT_TIMEOUT,
        async || {
            let pools = all::<IPPool>(admin).await;
            let ready = pools.iter().filter_map(|pool| pool.status.as_ref());
            let ready = ready.filter(|status| is_true(&status.conditions, READY));
            let blocks = all::<NodeSubnet>(admin).await.len();
            (ready.count() == 2 && blocks == 1).then_some(())
        },
    )
    .await;
}
