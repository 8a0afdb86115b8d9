use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::task::JoinSet;

use crate::controller::apply::*;
use crate::testing::{cluster, error_response, node, responding_client};

fn writer(client: Client) -> Writer {
    let health = Health {
        synced: Arc::new(AtomicBool::new(true)),
        heartbeat: Arc::new(Heartbeat::new(Duration::from_secs(60))),
        metrics: Arc::new(Metrics::new()),
    };
    let events = Events::start(&client, None, &mut JoinSet::new());
    Writer::new(client, "default", &health, events)
}

/// The NodeSubnet was deleted by another leader, which may assign the block to another node.
#[tokio::test]
async fn node_network_omits_block_with_failed_subnet_write() {
    let mut cluster = cluster(2);
    cluster.reconcile();
    for (n, old) in (1..).zip(&mut cluster.nodes) {
        *old = node(&format!("worker-{n}"), &[&format!("10.9.0.{n}")]);
    }
    let plan = cluster.plan();
    let [first, second] = &plan.subnets.update[..] else {
        panic!("both blocks are sent elsewhere: {plan:?}");
    };
    assert_eq!(first.spec.node, "worker-1");
    let written = serde_json::to_string(second).unwrap();
    let (deleted, requests) = (first.name_any(), Arc::new(Mutex::new(Vec::new())));
    let log = requests.clone();
    let client = responding_client(move |path| {
        log.lock().unwrap().push(path.to_owned());
        if path.ends_with(&deleted) {
            error_response(StatusCode::NOT_FOUND, "NotFound")
        } else if path.contains("/nodesubnets/") {
            (StatusCode::OK, written.clone())
        } else {
            error_response(StatusCode::FORBIDDEN, "Forbidden")
        }
    });
    writer(client.await).apply(&plan).await;
    let mut requests = requests.lock().unwrap().clone();
    requests.retain(|path| path.contains("/nodenetworks/") && !path.ends_with("/status"));
    assert_eq!(
        requests,
        ["/apis/netweft.io/v1alpha1/nodenetworks/worker-2"]
    );
}
