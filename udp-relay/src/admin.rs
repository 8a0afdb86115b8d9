//! /livez and /metrics, from a thread of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use netweft_common::heartbeat::Heartbeat;
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::metrics::Metrics;

/// How long between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// The media type of what [`Metrics::encode`] gives (OpenMetrics 1.0, section 4).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Starts the thread. It serves until the process ends, and ends the process should it not.
///
/// # Errors
/// There are no threads left.
pub fn start(
    listen: SocketAddr,
    metrics: Metrics,
    heartbeat: Arc<Heartbeat>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            let _end = End;
            runtime.block_on(serve(listen, metrics, heartbeat));
        })?;
    Ok(())
}

/// The end of the thread, also by a panic: the kubelet starts a relay that can be asked how it is. Packets wait in the links.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        error!("the HTTP server has ended; the relay ends too, to be started again");
        std::process::exit(1);
    }
}

/// During a take-over the predecessor still has the port, so listening is tried again, without a word.
async fn serve(listen: SocketAddr, metrics: Metrics, heartbeat: Arc<Heartbeat>) {
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    info!(%listen, "serving /livez and /metrics");
    if let Err(error) = axum::serve(listener, router(metrics, heartbeat)).await {
        error!(%error, "no longer serving /livez and /metrics");
    }
}

fn router(metrics: Metrics, heartbeat: Arc<Heartbeat>) -> Router {
    let livez = Router::new().route("/livez", get(alive));
    let numbers = Router::new().route("/metrics", get(numbers));
    livez
        .with_state(heartbeat)
        .merge(numbers.with_state(metrics))
}

/// Alive: the control loop comes round.
async fn alive(State(heartbeat): State<Arc<Heartbeat>>) -> (StatusCode, String) {
    match heartbeat.stalled() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(since) => {
            let since = since.as_secs();
            let why = format!("the control loop has not come round for {since} s\n");
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

async fn numbers(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], metrics.encode())
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn answer(path: &str, heartbeat: &Arc<Heartbeat>) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Metrics::new(), Arc::clone(heartbeat));
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn stalled_loop_fails_livez() {
        let heartbeat = Arc::new(Heartbeat::new(Duration::ZERO));
        let alive = answer("livez", &heartbeat).await;
        assert!(alive.starts_with("HTTP/1.0 200"), "{alive}");
        heartbeat.beat();
        let stalled = answer("livez", &heartbeat).await;
        assert!(stalled.starts_with("HTTP/1.0 503"), "{stalled}");
        assert!(stalled.contains("the control loop has not come round for 0 s"));
    }

    #[tokio::test]
    async fn metrics_response_has_openmetrics_content_type() {
        let heartbeat = Arc::new(Heartbeat::new(Duration::ZERO));
        let answer = answer("metrics", &heartbeat).await;
        let header = format!("content-type: {OPENMETRICS}\r\n");
        assert!(answer.contains(&header), "{answer}");
    }
}
