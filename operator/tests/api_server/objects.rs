//! Objects and helpers of the scenarios.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, ClusterResourceScope, DynamicObject, GroupVersionKind};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::control_plane::NAMESPACE;

/// An object from JSON.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// What the API server says to the creation of an object; it is only asked.
pub async fn verdict(client: &Client, value: Value) -> Result<(), String> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let result = any(client, &value).create(&params, &object(value)).await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

/// What the API server says to `kubectl apply` of an object; it is only asked.
pub async fn applied(client: &Client, value: Value) -> Result<(), String> {
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply("a-user").force()
    };
    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
    let result = any(client, &value)
        .patch(&name, &params, &Patch::Apply(value))
        .await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

/// Objects of the kind of `value`.
pub fn any(client: &Client, value: &Value) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("netweft.io", "v1alpha1", value["kind"].as_str().unwrap());
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

/// Creates a Node with an address.
pub async fn create_node(client: &Client, name: &str, address: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = object(json!({ "metadata": { "name": name } }));
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status =
        json!({ "status": { "addresses": [{ "type": "InternalIP", "address": address }] } });
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

/// A token of a service account, as its pod would have it if it ran on `node`, or one that is bound to no pod.
pub async fn token(client: &Client, account: &str, node: Option<&str>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let bound = match node {
        None => Value::Null,
        Some(node) => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
            let pod = object(json!({
                "metadata": { "name": format!("{account}-{node}") },
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": account,
                    "containers": [{ "name": "c", "image": "none" }],
                },
            }));
            let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
            json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid })
        }
    };
    let request: TokenRequest =
        object(json!({ "spec": { "audiences": [], "boundObjectRef": bound } }));
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    answer.status.unwrap().token
}

/// All objects of a kind.
pub async fn all<K>(client: &Client) -> Vec<K>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug,
{
    Api::<K>::all(client.clone())
        .list(&kube::api::ListParams::default())
        .await
        .unwrap()
        .items
}

/// Waits until `check` has something to say.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Makes the agents' roles a mistake: by them, an agent may do everything.
pub async fn give_everything_to_the_agents(admin: &Client) {
    let binding = object(json!({
        "metadata": { "name": "mistake" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "netweft-agent", "namespace": NAMESPACE }],
    }));
    let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
}
