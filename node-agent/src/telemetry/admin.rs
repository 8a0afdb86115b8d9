//! /livez, /readyz and /metrics.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::telemetry::health::{Health, Unready};
use crate::telemetry::metrics::Metrics;

/// The media type of what [`Metrics::encode`] gives (OpenMetrics 1.0, section 4).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serve until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr, metrics: Metrics, health: Health) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    axum::serve(listener, router(metrics, health)).await
}

fn router(metrics: Metrics, health: Health) -> Router {
    Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .with_state(health)
        .merge(
            Router::new()
                .route("/metrics", get(numbers))
                .with_state(metrics),
        )
}

async fn numbers(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], metrics.encode())
}

/// Alive: the main loop comes round. An agent whose loop hangs is better started again.
async fn alive(State(health): State<Health>) -> (StatusCode, String) {
    match health.stalled() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(since) => (StatusCode::SERVICE_UNAVAILABLE, stalled(since)),
    }
}

/// Ready: the local datapath has been programmed, and can still be.
async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    let why = match health.unready() {
        None => return (StatusCode::OK, "ok\n".to_owned()),
        Some(Unready::Beginning) => {
            "the first sync of this agent has not succeeded yet; see the NodeNetwork's conditions\n"
                .to_owned()
        }
        Some(Unready::Failing(since)) => format!(
            "this node could not be programmed for {} s; see the NodeNetwork's conditions\n",
            since.as_secs()
        ),
        Some(Unready::Stalled(since)) => stalled(since),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why)
}

fn stalled(since: Duration) -> String {
    format!(
        "the main loop has not come round for {} s\n",
        since.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// The status and the text of the answers to each of the three.
    async fn answers(metrics: &Metrics, health: &Health) -> [(u16, String); 3] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = axum::serve(listener, router(metrics.clone(), health.clone()));
        let server = tokio::spawn(server.into_future());
        let mut answers = Vec::new();
        for path in ["livez", "readyz", "metrics"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let status = answer["HTTP/1.0 ".len()..][..3].parse().unwrap();
            answers.push((status, answer));
        }
        server.abort();
        answers.try_into().unwrap()
    }

    fn statuses(answers: &[(u16, String); 3]) -> [u16; 3] {
        answers.each_ref().map(|(status, _)| *status)
    }

    #[tokio::test]
    async fn readyz_succeeds_only_after_node_can_take_pods() {
        let (metrics, health) = (Metrics::new(), Health::new());
        health.beat();
        // What has gone well before the node could take pods does not make it ready.
        health.worked_well();
        let before = answers(&metrics, &health).await;
        assert!(before[1].1.contains("first sync"), "{before:?}");
        assert_eq!(statuses(&before), [200, 503, 200]);
        health.opened();
        assert_eq!(statuses(&answers(&metrics, &health).await), [200, 200, 200]);
    }

    #[tokio::test]
    async fn stalled_loop_fails_livez_and_readyz() {
        let (metrics, health) = (
            Metrics::new(),
            Health::with_limits(Duration::ZERO, Duration::MAX),
        );
        health.opened();
        assert_eq!(
            statuses(&answers(&metrics, &health).await),
            [200, 200, 200],
            "it has not begun, and waits for its turn on this node"
        );
        health.beat();
        let hung = answers(&metrics, &health).await;
        assert_eq!(statuses(&hung), [503, 503, 200]);
        let said = "the main loop has not come round for 0 s";
        assert!(hung[0].1.contains(said), "{hung:?}");
    }

    #[tokio::test]
    async fn lasting_failure_fails_readyz_until_success() {
        let lasting = Duration::from_millis(200);
        let (metrics, health) = (Metrics::new(), Health::with_limits(Duration::MAX, lasting));
        health.opened();
        tokio::time::sleep(lasting * 2).await;
        let failing = answers(&metrics, &health).await;
        assert_eq!(statuses(&failing), [200, 503, 200]);
        let said = "this node could not be programmed for";
        assert!(failing[1].1.contains(said), "{failing:?}");
        health.worked_well();
        assert_eq!(health.unready(), None);
    }

    #[tokio::test]
    async fn metrics_response_has_openmetrics_content_type() {
        let answers = answers(&Metrics::new(), &Health::new()).await;
        let header = format!("content-type: {OPENMETRICS}\r\n");
        assert!(answers[2].1.contains(&header), "{answers:?}");
    }

    #[tokio::test]
    async fn metrics_contain_all_counters() {
        let metrics = Metrics::new();
        metrics.synced(false);
        metrics.synced(true);
        metrics.synced(true);
        metrics.applied("route add");
        metrics.restored("route");
        metrics.reclaimed("link");
        metrics.drifted("parameter");
        let [_, _, (_, said)] = answers(&metrics, &Health::new()).await;
        for line in [
            "syncs_total{result=\"clean\"} 2",
            "syncs_total{result=\"failed\"} 1",
            "kernel_operations_total{kind=\"route add\"} 1",
            "pods_restored_total{kind=\"route\"} 1",
            "pods_reclaimed_total{kind=\"link\"} 1",
            "drift_repairs_total{kind=\"parameter\"} 1",
        ] {
            assert!(
                said.contains(&format!("\nnetweft_agent_{line}\n")),
                "{line}: {said}"
            );
        }
        assert!(
            !said.contains("last_success_timestamp_seconds 0.0"),
            "{said}"
        );
    }
}
