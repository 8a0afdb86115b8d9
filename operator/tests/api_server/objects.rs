//! Objects and helpers of the scenarios.

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

/// Applies an object as a user does.
pub async fn applied_for_good(client: &Client, value: &Value) {
    let name = value["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("a-user");
    let api = any(client, value);
    api.patch(name, &params, &Patch::Apply(value))
        .await
        .unwrap();
}

/// Objects of the kind of `value`, of ours unless it says otherwise.
pub fn any(client: &Client, value: &Value) -> Api<DynamicObject> {
    let of = value["apiVersion"]
        .as_str()
        .unwrap_or("netweft.io/v1alpha1");
    let (group, version) = of.split_once('/').unwrap();
    let gvk = GroupVersionKind::gvk(group, version, value["kind"].as_str().unwrap());
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

/// An object of ours or of Kubernetes that the tests read and write.
pub trait Kind: Clone + Debug + DeserializeOwned + Serialize {}
impl<K: Clone + Debug + DeserializeOwned + Serialize> Kind for K {}

/// Creates an object. An API server that has just learnt of an admission policy refuses what the policy is about until it has
/// listed the policy's parameters.
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

/// Asks for the deletion of an object.
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
    let stated = nodes
        .patch_status(name, &params, &Patch::Merge(patch))
        .await;
    stated.unwrap();
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
    give_everything_to(admin, "netweft-agent").await;
}

/// Makes a service account an administrator, and the account if there is none.
pub async fn give_everything_to(admin: &Client, account: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let new = object(json!({ "metadata": { "name": account } }));
    drop(accounts.create(&PostParams::default(), &new).await);
    let binding = json!({
        "metadata": { "name": "mistake" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
    create(&bindings, binding).await;
}

/// The definitions of all kinds.
pub fn definitions(admin: &Client) -> Api<CustomResourceDefinition> {
    Api::all(admin.clone())
}

/// Lets an administrator delete what the network needs: takes away what forbids it.
pub async fn forbid_no_deletion(admin: &Client) {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(admin.clone());
    let params = DeleteParams::default();
    drop(bindings.delete("netweft-records", &params).await);
}

/// Deletes a definition and waits until it is gone: one that is about to go could still be applied to.
pub async fn delete_definition(admin: &Client, name: &str) {
    forbid_no_deletion(admin).await;
    let definitions = definitions(admin);
    eventually("deleting is allowed", Duration::from_secs(30), async || {
        definitions
            .delete(name, &DeleteParams::default())
            .await
            .ok()
    })
    .await;
    eventually(
        "the definition is gone",
        Duration::from_secs(60),
        async || {
            let found = definitions.get_opt(name).await.unwrap();
            found.is_none().then_some(())
        },
    )
    .await;
}
