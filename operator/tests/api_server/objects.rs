//! Objects and helpers for the tests.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, ClusterResourceScope, DynamicObject, GroupVersionKind};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::control_plane::NAMESPACE;

/// Parses an object from JSON.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Creates an object in a dry run. Returns the error of the API server.
pub async fn try_create(client: &Client, value: Value) -> Result<(), String> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let result = dynamic_api(client, &value)
        .create(&params, &object(value))
        .await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

/// Applies an object in a dry run, like `kubectl apply`. Returns the error of the API server.
pub async fn try_apply(client: &Client, value: Value) -> Result<(), String> {
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply("a-user").force()
    };
    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
    let result = dynamic_api(client, &value)
        .patch(&name, &params, &Patch::Apply(value))
        .await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

/// Applies an object as a user does.
pub async fn apply_object(client: &Client, value: &Value) {
    let name = value["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("a-user");
    let api = dynamic_api(client, value);
    api.patch(name, &params, &Patch::Apply(value))
        .await
        .unwrap();
}

/// The API of the kind of `value`, by default in netweft's group.
pub fn dynamic_api(client: &Client, value: &Value) -> Api<DynamicObject> {
    let of = value["apiVersion"]
        .as_str()
        .unwrap_or("netweft.io/v1alpha1");
    let (group, version) = of.split_once('/').unwrap();
    let gvk = GroupVersionKind::gvk(group, version, value["kind"].as_str().unwrap());
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

/// An object that the tests read and write.
pub trait Kind: Clone + Debug + DeserializeOwned + Serialize {}
impl<K: Clone + Debug + DeserializeOwned + Serialize> Kind for K {}

/// Creates an object. The API server refuses requests to which a new admission policy applies until it has listed the
/// parameters of the policy, so these are repeated.
pub async fn create<K: Kind>(api: &Api<K>, value: Value) {
    let object = object(value);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let created = api.create(&PostParams::default(), &object).await;
        match created {
            Err(error)
                if error
                    .to_string()
                    .contains("not yet synced to use for admission")
                    && Instant::now() < end =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            created => {
                created.unwrap();
                return;
            }
        }
    }
}

/// Merges `patch` into an object.
pub async fn merge<K: Kind>(api: &Api<K>, name: &str, patch: Value) {
    let params = PatchParams::default();
    let patched = api.patch(name, &params, &Patch::Merge(patch)).await;
    patched.unwrap();
}

/// Requests the deletion of an object.
pub async fn delete<K: Kind>(api: &Api<K>, name: &str) {
    let deleted = api.delete(name, &DeleteParams::default()).await;
    deleted.unwrap();
}

/// Creates a Node with an address.
pub async fn create_node(client: &Client, name: &str, address: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    create(&nodes, json!({ "metadata": { "name": name } })).await;
    let status = json!({ "addresses": [{ "type": "InternalIP", "address": address }] });
    let (params, patch) = (PatchParams::default(), json!({ "status": status }));
    let patched = nodes
        .patch_status(name, &params, &Patch::Merge(patch))
        .await;
    patched.unwrap();
}

/// A token of a service account: bound to a pod on `node`, or bound to no pod.
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

/// Waits until `check` returns a value.
pub async fn eventually<T>(
    condition: &str,
    timeout: Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "{condition}: not within {timeout:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Gives the agents' service account all rights, so that only admission policies limit it.
pub async fn grant_all_rights_to_agents(admin: &Client) {
    grant_all_rights(admin, "netweft-agent").await;
}

/// Gives a service account all rights. Creates the account if it does not exist.
pub async fn grant_all_rights(admin: &Client, account: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let new = object(json!({ "metadata": { "name": account } }));
    drop(accounts.create(&PostParams::default(), &new).await);
    let binding = json!({
        "metadata": { "name": "all-rights" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
    create(&bindings, binding).await;
}

/// The API of CRDs.
pub fn crd_api(admin: &Client) -> Api<CustomResourceDefinition> {
    Api::all(admin.clone())
}

/// Removes the admission policy that forbids an administrator to delete objects that the network needs.
pub async fn allow_deletion(admin: &Client) {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(admin.clone());
    let params = DeleteParams::default();
    drop(bindings.delete("netweft-records", &params).await);
}

/// Deletes a CRD and waits until it is deleted: a CRD that is being deleted could still be applied.
pub async fn delete_crd(admin: &Client, name: &str) {
    allow_deletion(admin).await;
    let crds = crd_api(admin);
    eventually(
        "the CRD can be deleted",
        Duration::from_secs(30),
        async || crds.delete(name, &DeleteParams::default()).await.ok(),
    )
    .await;
    eventually("the CRD is deleted", Duration::from_secs(60), async || {
        let found = crds.get_opt(name).await.unwrap();
        found.is_none().then_some(())
    })
    .await;
}
