//! An API server that is slow and fails now and then, as one is whose etcd has trouble: nothing is assigned twice or lost, and nobody
//! makes it worse by asking again and again.

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
use crate::ledger::Ledger;
use crate::objects::{create_node, eventually};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, until_assigned};
use crate::simulation::random::Random;

/// How long every write takes longer.
const SLOW: Duration = Duration::from_millis(500);
/// One request in so many fails.
const FAILS: usize = 20;
/// How long a request that will fail by timeout takes.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long it is looked how much is asked when nothing happens.
const DURATION: Duration = Duration::from_secs(20);

/// A rough way to the API server; with it end all connections over it.
struct Rough {
    url: String,
    road: Arc<Road>,
    _server: JoinSet<()>,
}

struct Road {
    client: Client,
    chance: Mutex<Random>,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

impl Rough {
    async fn to(plane: &ControlPlane, seed: u64) -> Self {
        let road = Arc::new(Road {
            client: plane.client_of_anybody(),
            chance: Mutex::new(Random::of(seed)),
            asked: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(pass).with_state(road.clone());
        let (url, server) = serve(router).await;
        Self {
            url,
            road,
            _server: server,
        }
    }

    fn asked(&self) -> usize {
        self.road.asked.load(Ordering::Relaxed)
    }

    fn failed(&self) -> usize {
        self.road.failed.load(Ordering::Relaxed)
    }
}

async fn pass(State(road): State<Arc<Road>>, request: Request) -> Response {
    road.asked.fetch_add(1, Ordering::Relaxed);
    let drawn = road.chance.lock().unwrap().below(FAILS * 4);
    let failure = match drawn {
        0 => Some(StatusCode::TOO_MANY_REQUESTS),
        1 => Some(StatusCode::INTERNAL_SERVER_ERROR),
        2 => Some(StatusCode::GATEWAY_TIMEOUT),
        3 => {
            // It is carried out, and nobody hears of it.
            drop(forward(&road.client, request).await);
            road.failed.fetch_add(1, Ordering::Relaxed);
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        _ => None,
    };
    if let Some(failure) = failure {
        road.failed.fetch_add(1, Ordering::Relaxed);
        if failure == StatusCode::GATEWAY_TIMEOUT {
            tokio::time::sleep(TIMEOUT).await;
        }
        return failure.into_response();
    }
    if request.method() != Method::GET {
        tokio::time::sleep(SLOW).await;
    }
    forward(&road.client, request).await
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
    let ledger = Ledger::begin(&admin).await;
    let (of_operator, of_agent) = (Rough::to(&plane, 1).await, Rough::to(&plane, 2).await);
    let operator = Operator::start_by(&plane, &of_operator.url, "one", &[]).await;
    create_nodes(&admin, 1..=10).await;
    let _agent = Agent::start_by(&plane, &of_agent.url, ("worker-1", "10.1.0.1"), &[]).await;
    until_assigned(&admin, 10).await;
    create_nodes(&admin, 11..=15).await;
    until_assigned(&admin, 15).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    eventually("the agent has told its status", WAIT_TIMEOUT, async || {
        let status = networks.get("worker-1").await.unwrap().status?;
        is_true(&status.conditions, READY).then_some(())
    })
    .await;
    let owners = owners(&admin).await;
    assert_eq!(owners.len(), 15, "{owners:?}");
    assert!(
        owners.values().all(|blocks| blocks.len() == 1),
        "{owners:?}"
    );
    assert_eq!(ledger.breaches(), [""; 0]);
    assert_eq!(ledger.blocks(), 15);
    let failed = (of_operator.failed(), of_agent.failed());
    assert!(failed.0 > 0, "no request has failed");

    operator.until_at_rest().await;
    let before = (of_operator.asked(), of_agent.asked());
    tokio::time::sleep(DURATION).await;
    let asked = (of_operator.asked() - before.0, of_agent.asked() - before.1);
    println!("failed: {failed:?}; asked in {DURATION:?}: {asked:?}");
    let most = usize::try_from(DURATION.as_secs()).unwrap() * 2;
    assert!(asked.0 <= most && asked.1 <= most, "{asked:?}");
}
