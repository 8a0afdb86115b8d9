//! The rights of an agent's token: read what the agent needs, and write the status of its own NodeNetwork.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, NAMESPACE};
use crate::objects::{create_node, eventually, object, token};

const TIMEOUT: Duration = Duration::from_secs(30);
const NODES: [(&str, &str); 2] = [("worker-1", "10.1.0.1"), ("worker-2", "10.1.0.2")];

/// Method, path and body of a request. OWN and OTHER are replaced by names of nodes.
type ForbiddenRequest = (&'static str, &'static str, Value);

/// Requests that an agent must not make.
fn forbidden() -> Vec<ForbiddenRequest> {
    [
        networks(),
        blocks(),
        user_objects(),
        cluster_objects(),
        privilege_escalation(),
    ]
    .concat()
}

/// NodeNetworks of other nodes, and the spec of its own.
fn networks() -> Vec<ForbiddenRequest> {
    const OTHER: &str = "/apis/netweft.io/v1alpha1/nodenetworks/OTHER";
    const OTHER_STATUS: &str = "/apis/netweft.io/v1alpha1/nodenetworks/OTHER/status";
    const OWN: &str = "/apis/netweft.io/v1alpha1/nodenetworks/OWN";
    const OWN_STATUS: &str = "/apis/netweft.io/v1alpha1/nodenetworks/OWN/status";
    const ALL: &str = "/apis/netweft.io/v1alpha1/nodenetworks";
    let spec = json!({ "spec": { "subnets": ["10.244.9.0/26"] } });
    let network = netweft_object("NodeNetwork", "OWN", &json!({}));
    vec![
        ("PATCH", OTHER_STATUS, status()),
        ("PATCH", OTHER, spec.clone()),
        ("DELETE", OTHER, Value::Null),
        ("PATCH", OWN, spec),
        ("PUT", OWN_STATUS, network.clone()),
        ("POST", ALL, network),
        ("DELETE", OWN, Value::Null),
        ("DELETE", ALL, Value::Null),
    ]
}

fn blocks() -> Vec<ForbiddenRequest> {
    const ALL: &str = "/apis/netweft.io/v1alpha1/nodesubnets";
    const ONE: &str = "/apis/netweft.io/v1alpha1/nodesubnets/10-244-0-0-26";
    let spec =
        json!({ "cidr": "10.244.9.0/26", "pool": "default-v4", "node": "OWN", "state": "Active" });
    let block = netweft_object("NodeSubnet", "10-244-9-0-26", &spec);
    vec![
        ("POST", ALL, block.clone()),
        ("PUT", ONE, block),
        ("PATCH", ONE, json!({ "spec": { "state": "Orphaned" } })),
        ("DELETE", ONE, Value::Null),
    ]
}

/// Objects of users.
fn user_objects() -> Vec<ForbiddenRequest> {
    const POOLS: &str = "/apis/netweft.io/v1alpha1/ippools";
    const POOL: &str = "/apis/netweft.io/v1alpha1/ippools/default-v4";
    const POOL_STATUS: &str = "/apis/netweft.io/v1alpha1/ippools/default-v4/status";
    const MODES: &str = "/apis/netweft.io/v1alpha1/networkmodes";
    const MODE_STATUS: &str = "/apis/netweft.io/v1alpha1/networkmodes/default/status";
    const PEERS: &str = "/apis/netweft.io/v1alpha1/bgppeers";
    let pool = netweft_object("IPPool", "new", &json!({ "cidr": "10.9.0.0/16" }));
    let peer = netweft_object("BGPPeer", "new", &json!({ "peerSelector": {} }));
    vec![
        ("POST", POOLS, pool),
        ("PATCH", POOL, json!({ "spec": { "disabled": true } })),
        ("PATCH", POOL_STATUS, status()),
        ("DELETE", POOL, Value::Null),
        ("GET", MODES, Value::Null),
        ("PATCH", MODE_STATUS, status()),
        ("GET", PEERS, Value::Null),
        ("POST", PEERS, peer),
    ]
}

/// Objects of the cluster.
fn cluster_objects() -> Vec<ForbiddenRequest> {
    const LEASE: &str =
        "/apis/coordination.k8s.io/v1/namespaces/netweft-system/leases/netweft-operator";
    const PROXY: &str = "/api/v1/namespaces/kube-system/configmaps/kube-proxy";
    const SECRETS: &str = "/api/v1/namespaces/netweft-system/secrets";
    const SECRET: &str = "/api/v1/namespaces/netweft-system/secrets/netweft-bgp-passwords";
    let labels = json!({ "metadata": { "labels": { "changed": "by-agent" } } });
    vec![
        ("GET", "/api/v1/secrets", Value::Null),
        ("GET", SECRETS, Value::Null),
        ("GET", SECRET, Value::Null),
        ("GET", "/api/v1/pods", Value::Null),
        ("GET", "/api/v1/namespaces/netweft-system/pods", Value::Null),
        ("GET", "/api/v1/nodes", Value::Null),
        ("GET", "/api/v1/nodes/OWN", Value::Null),
        ("PATCH", "/api/v1/nodes/OWN", labels.clone()),
        ("PATCH", "/api/v1/nodes/OTHER/status", labels),
        ("GET", PROXY, Value::Null),
        ("GET", LEASE, Value::Null),
        ("DELETE", LEASE, Value::Null),
        (
            "POST",
            "/apis/events.k8s.io/v1/namespaces/default/events",
            json!({}),
        ),
        ("GET", "/metrics", Value::Null),
    ]
}

/// Privilege escalation.
fn privilege_escalation() -> Vec<ForbiddenRequest> {
    const OPERATOR: &str =
        "/api/v1/namespaces/netweft-system/serviceaccounts/netweft-operator/token";
    const AGENT: &str = "/api/v1/namespaces/netweft-system/serviceaccounts/netweft-agent/token";
    const POLICY: &str =
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/netweft-agent-identity";
    let token = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    vec![
        ("POST", OPERATOR, token.clone()),
        ("POST", AGENT, token),
        (
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({}),
        ),
        ("DELETE", POLICY, Value::Null),
        (
            "GET",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            Value::Null,
        ),
    ]
}

fn netweft_object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "netweft.io/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn status() -> Value {
    json!({ "status": { "observedGeneration": 1 } })
}

#[tokio::test]
async fn agent_may_write_only_its_own_status() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let operator = plane.client(&token(&admin, "netweft-operator", None).await);
    create_targets(&admin, &operator).await;
    for (own, other) in [("worker-1", "worker-2"), ("worker-2", "worker-1")] {
        let agent = plane.client(&token(&admin, "netweft-agent", Some(own)).await);
        eventually("the policy is in force", TIMEOUT, async || {
            write_status(&agent, other).await.err()
        })
        .await;
        check_needed_requests(&agent, own).await;
        for (method, path, body) in forbidden() {
            let for_nodes = |text: String| text.replace("OWN", own).replace("OTHER", other);
            let path = for_nodes(path.to_owned());
            let body = (!body.is_null()).then(|| for_nodes(body.to_string()));
            let response = send(&agent, method, &path, body).await;
            assert_eq!(response.0, 403, "{own}: {method} {path}: {}", response.1);
        }
    }
}

/// The API server's own list of rights, so that rights beyond the requests above are found, too.
#[tokio::test]
async fn agent_has_only_listed_rbac_rights() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let agent = plane.client(&token(&admin, "netweft-agent", Some("worker-1")).await);
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let unprivileged = object(json!({ "metadata": { "name": "unprivileged" } }));
    accounts
        .create(&PostParams::default(), &unprivileged)
        .await
        .unwrap();
    let unprivileged = plane.client(&token(&admin, "unprivileged", None).await);
    for namespace in [NAMESPACE, "default", "kube-system"] {
        let mut own = rights(&agent, namespace).await;
        for right in rights(&unprivileged, namespace).await {
            own.remove(&right);
        }
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        assert_eq!(
            own,
            [
                "list ippools.netweft.io",
                "list namespaces.",
                "list nodenetworks.netweft.io",
                "list nodesubnets.netweft.io",
                "patch nodenetworks/status.netweft.io",
                "watch ippools.netweft.io",
                "watch namespaces.",
                "watch nodenetworks.netweft.io",
                "watch nodesubnets.netweft.io",
            ],
            "{namespace}"
        );
    }
}

/// The rights of an account in a namespace, and outside of namespaces, from the API server.
async fn rights(client: &Client, namespace: &str) -> BTreeSet<String> {
    let review: SelfSubjectRulesReview = object(json!({ "spec": { "namespace": namespace } }));
    let reviews: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let response = reviews.create(&PostParams::default(), &review).await;
    let mut rights = BTreeSet::new();
    for rule in response.unwrap().status.unwrap().resource_rules {
        let groups = rule.api_groups.unwrap_or_default();
        let resources = rule.resources.unwrap_or_default();
        for (group, resource) in groups
            .iter()
            .flat_map(|group| resources.iter().map(move |resource| (group, resource)))
        {
            let verbs = rule.verbs.iter();
            rights.extend(verbs.map(|verb| format!("{verb} {resource}.{group}")));
        }
    }
    rights
}

/// Creates the objects, so that the forbidden requests would succeed otherwise.
async fn create_targets(admin: &Client, operator: &Client) {
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    for (node, address) in NODES {
        create_node(admin, node, address).await;
        let network = object(
            json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork",
            "metadata": { "name": node }, "spec": {} }),
        );
        networks
            .create(&PostParams::default(), &network)
            .await
            .unwrap();
    }
    // Only the operator may create NodeSubnets.
    let subnets: Api<NodeSubnet> = Api::all(operator.clone());
    let subnet = object(
        json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeSubnet",
        "metadata": { "name": "10-244-0-0-26" },
        "spec": { "cidr": "10.244.0.0/26", "pool": "default-v4", "node": "worker-1", "state": "Active" } }),
    );
    subnets
        .create(&PostParams::default(), &subnet)
        .await
        .unwrap();
}

/// The requests that an agent needs succeed with the same token.
async fn check_needed_requests(agent: &Client, own: &str) {
    let all = ListParams::default();
    Api::<IPPool>::all(agent.clone()).list(&all).await.unwrap();
    Api::<NodeSubnet>::all(agent.clone())
        .list(&all)
        .await
        .unwrap();
    Api::<NodeNetwork>::all(agent.clone())
        .list(&all)
        .await
        .unwrap();
    write_status(agent, own).await.unwrap();
}

async fn write_status(client: &Client, name: &str) -> Result<(), String> {
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let patch = Patch::Apply(json!({
        "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork", "status": { "observedGeneration": 1 },
    }));
    let params = PatchParams::apply("netweft-agent").force();
    let written = networks.patch_status(name, &params, &patch).await;
    written.map(|_| ()).map_err(|error| error.to_string())
}

/// Sends a request. Returns status code and body of the response.
async fn send(client: &Client, method: &str, path: &str, body: Option<String>) -> (u16, String) {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = axum::http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    let request = request
        .body(Body::from(body.unwrap_or_default().into_bytes()))
        .unwrap();
    let (parts, body) = client.send(request).await.unwrap().into_parts();
    let text = body.collect_bytes().await.unwrap();
    (
        parts.status.as_u16(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
