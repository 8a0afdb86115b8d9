use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::task::JoinSet;

use crate::controller::apply::*;
use crate::testing::{answering, cluster, node, refusal};

fn writer(client: Client) -> Writer {
    let health = Health {
        synced: Arc::new(AtomicBool::new(true)),
        heartbeat: Arc::new(Heartbeat::new(Duration::from_secs(60))),
        metrics: Arc::new(Metrics::new()),
    };
    let events = Events::start(&client, None, &mut JoinSet::new());
    Writer::new(client, "default", &health, events)
}

/// As when it has just been deleted by another, which may be about to give it to somebody else.
#[tokio::test]
async fn node_network_omits_block_with_failed_subnet_write() {
    let mut cluster = cluster(2);
    cluster.settle();
    for (n, old) in (1..).zip(&mut cluster.nodes) {
        *old = node(&format!("worker-{n}"), &[&format!("10.9.0.{n}")]);
    }
    let plan = cluster.plan();
    let [first, second] = &plan.subnets.update[..] else {
        panic!("both blocks are sent to elsewhere: {plan:?}");
    };
    assert_eq!(first.spec.node, "worker-1");
    let written = serde_json::to_string(second).unwrap();
    let (gone, asked) = (first.name_any(), Arc::new(Mutex::new(Vec::new())));
    let log = asked.clone();
    let client = answering(move |path| {
        log.lock().unwrap().push(path.to_owned());
        if path.ends_with(&gone) {
            refusal(StatusCode::NOT_FOUND, "NotFound")
        } else if path.contains("/nodesubnets/") {
            (StatusCode::OK, written.clone())
        } else {
            refusal(StatusCode::FORBIDDEN, "Forbidden")
        }
    });
    writer(client.await).carry_out(&plan).await;
    let mut asked = asked.lock().unwrap().clone();
    asked.retain(|path| path.contains("/nodenetworks/") && !path.ends_with("/status"));
    assert_eq!(asked, ["/apis/netweft.io/v1alpha1/nodenetworks/worker-2"]);
}
