//! A slow API server that fails some requests, like one with an overloaded etcd: no block is assigned twice or lost,
//! and retries do not increase the load.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use kube::{Api, Client};
use netweft_crds::NodeNetwork;
use netweft_crds::condition::{READY, is_true};
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::control_plane::ControlPlane;
use crate::held_writes::{forward, serve};
use crate::invariants::InvariantMonitor;
use crate::objects::{create_node, eventually};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, wait_until_assigned};
use crate::simulation::random::Random;

/// Additional duration of every write.
const WRITE_DELAY: Duration = Duration::from_millis(500);
/// One of `FAILS` requests fails.
const FAILS: usize = 20;
/// Duration of a request that fails by timeout.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which requests are counted in a converged cluster.
const OBSERVATION_TIME: Duration = Duration::from_secs(20);

/// A proxy to the API server with delays and failures. Dropping it closes all connections.
struct FaultyProxy {
    url: String,
    state: Arc<ProxyState>,
    _server: JoinSet<()>,
}

struct ProxyState {
    client: Client,
    random: Mutex<Random>,
    requests: AtomicUsize,
    failed: AtomicUsize,
}

impl FaultyProxy {
    async fn start(plane: &ControlPlane, seed: u64) -> Self {
        let state = Arc::new(ProxyState {
            client: plane.client_without_credentials(),
            random: Mutex::new(Random::from_seed(seed)),
            requests: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(handle).with_state(state.clone());
        let (url, server) = serve(router).await;
        Self {
            url,
            state,
            _server: server,
        }
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }

    fn failed(&self) -> usize {
        self.state.failed.load(Ordering::Relaxed)
    }
}

async fn handle(State(state): State<Arc<ProxyState>>, request: Request) -> Response {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let outcome = state.random.lock().unwrap().below(FAILS * 4);
    let failure = match outcome {
        0 => Some(StatusCode::TOO_MANY_REQUESTS),
        1 => Some(StatusCode::INTERNAL_SERVER_ERROR),
        2 => Some(StatusCode::GATEWAY_TIMEOUT),
        3 => {
            // The request succeeds, but the client gets an error.
            drop(forward(&state.client, request).await);
            state.failed.fetch_add(1, Ordering::Relaxed);
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        _ => None,
    };
    if let Some(failure) = failure {
        state.failed.fetch_add(1, Ordering::Relaxed);
        if failure == StatusCode::GATEWAY_TIMEOUT {
            tokio::time::sleep(TIMEOUT).await;
        }
        return failure.into_response();
    }
    if request.method() != Method::GET {
        tokio::time::sleep(WRITE_DELAY).await;
    }
    forward(&state.client, request).await
}

async fn create_nodes(admin: &Client, numbers: std::ops::RangeInclusive<usize>) {
    for number in numbers {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        create_node(admin, &name, &address).await;
    }
}

#[tokio::test]
async fn slow_and_failing_api_server_loses_no_assignment() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let monitor = InvariantMonitor::start(&admin).await;
    let (operator_proxy, agent_proxy) = (
        FaultyProxy::start(&plane, 1).await,
        FaultyProxy::start(&plane, 2).await,
    );
    let operator = Operator::start_with_url(&plane, &operator_proxy.url, "one", &[]).await;
    create_nodes(&admin, 1..=10).await;
    let _agent =
        Agent::start_with_url(&plane, &agent_proxy.url, ("worker-1", "10.1.0.1"), &[]).await;
    wait_until_assigned(&admin, 10).await;
    create_nodes(&admin, 11..=15).await;
    wait_until_assigned(&admin, 15).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    eventually(
        "the agent has reported its status",
        WAIT_TIMEOUT,
        async || {
            let status = networks.get("worker-1").await.unwrap().status?;
            is_true(&status.conditions, READY).then_some(())
        },
    )
    .await;
    let owners = owners(&admin).await;
    assert_eq!(owners.len(), 15, "{owners:?}");
    assert!(
        owners.values().all(|blocks| blocks.len() == 1),
        "{owners:?}"
    );
    assert_eq!(monitor.violations(), [""; 0]);
    assert_eq!(monitor.assignment_count(), 15);
    let failed = (operator_proxy.failed(), agent_proxy.failed());
    assert!(failed.0 > 0, "no request has failed");

    operator.wait_until_idle().await;
    let before = (operator_proxy.requests(), agent_proxy.requests());
    tokio::time::sleep(OBSERVATION_TIME).await;
    let requests = (
        operator_proxy.requests() - before.0,
        agent_proxy.requests() - before.1,
    );
    println!("failed: {failed:?}; requests in {OBSERVATION_TIME:?}: {requests:?}");
    let max_requests = usize::try_from(OBSERVATION_TIME.as_secs()).unwrap() * 2;
    assert!(
        requests.0 <= max_requests && requests.1 <= max_requests,
        "{requests:?}"
    );
}
