//! /livez, /readyz and /metrics.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Serve until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr, metrics: Metrics) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    axum::serve(listener, router(metrics)).await
}

fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(metrics): State<Metrics>| async move { metrics.encode() }),
        )
        .with_state(metrics)
}

/// Ready: the local datapath has been programmed. It never depends on another node or on a BGP session.
async fn ready(State(metrics): State<Metrics>) -> (StatusCode, &'static str) {
    if metrics.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the first sync of this agent has not succeeded yet; see the NodeNetwork's conditions\n",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// The status and the text of the answers to each of the three.
    async fn answers(metrics: &Metrics) -> [(u16, String); 3] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = axum::serve(listener, router(metrics.clone()));
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

    #[tokio::test]
    async fn a_node_is_ready_when_it_can_take_pods_and_alive_before() {
        let metrics = Metrics::new();
        let statuses = |answers: [(u16, String); 3]| answers.map(|(status, _)| status);
        let [_, (_, said), _] = answers(&metrics).await;
        assert!(said.contains("first sync"), "{said}");
        assert_eq!(statuses(answers(&metrics).await), [200, 503, 200]);
        metrics.ready();
        assert_eq!(statuses(answers(&metrics).await), [200, 200, 200]);
    }

    #[tokio::test]
    async fn what_has_been_counted_is_told() {
        let metrics = Metrics::new();
        metrics.synced(false);
        metrics.synced(true);
        metrics.synced(true);
        metrics.applied("route add");
        metrics.restored("route");
        metrics.reclaimed("link");
        metrics.drifted("parameter");
        let [_, _, (_, said)] = answers(&metrics).await;
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
