//! Slow responses to lookups of pods and to Events do not delay plans.

use std::future::pending;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::NodeNetwork;
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::held_writes::{forward, serve};
use crate::objects::{create_node, eventually};
use crate::operator::{Operator, WAIT_TIMEOUT, wait_until_assigned};

/// Never responds to lookups of pods and to Events.
async fn respond(State(client): State<Client>, request: Request) -> Response {
    let path = request.uri().path();
    if path.contains("/pods/") || path.ends_with("/events") {
        return pending().await;
    }
    forward(&client, request).await
}

#[tokio::test]
async fn slow_pod_and_event_requests_delay_no_plan() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let router = Router::new().fallback(respond);
    let (url, _server) = serve(router.with_state(plane.client_without_credentials())).await;
    let operator = Operator::start_with_url(&plane, &url, "one", &[]).await;
    wait_until_assigned(&admin, 1).await;
    let pods = ["a", "b"].map(|name| json!({ "pool": "p", "namespace": "default", "name": name }));
    let patch = Patch::Merge(json!({ "status": { "drainingPods": pods } }));
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let params = PatchParams::default();
    let patched = networks.patch_status("worker-1", &params, &patch).await;
    patched.unwrap();
    // At this time the lookup of the pods' owners has started.
    operator.wait_until_idle().await;
    let start = Instant::now();
    create_node(&admin, "worker-2", "10.1.0.2").await;
    eventually("the next node has its block", WAIT_TIMEOUT, async || {
        let network = networks.get_opt("worker-2").await.unwrap()?;
        (!network.spec.subnets.is_empty()).then_some(())
    })
    .await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}
