//! The admin server: `/livez` (the loop comes round), `/readyz` (every kind has been listed) and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::telemetry::metrics::Metrics;
use netweft_common::heartbeat::Heartbeat;

/// What the admin server tells.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether every kind has been listed. Leadership is not asked for: the follower is as ready as it can be.
    pub synced: Arc<AtomicBool>,
    /// The loop's; a program whose loop hangs is better started again.
    pub heartbeat: Arc<Heartbeat>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Opens the port, so that a port that is taken ends the program with a clear message.
///
/// # Errors
/// When the port cannot be had.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} (--listen)"))
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    info!(address = ?listener.local_addr().ok(), "admin server listens");
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        error!(%error, "admin server ended");
    }
}

async fn livez(State(health): State<Health>) -> (StatusCode, String) {
    match health.heartbeat.stalled() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(since) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the loop has not come round for {} s\n", since.as_secs()),
        ),
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.synced.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not all objects have been listed yet\n",
        )
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match health.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The status of the answer to each of the three.
    async fn answers(health: &Health) -> [u16; 3] {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, health.clone(), stop.clone()));
        let mut statuses = [0; 3];
        for (status, path) in statuses.iter_mut().zip(["livez", "readyz", "metrics"]) {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            *status = answer["HTTP/1.0 ".len()..][..3].parse().unwrap();
        }
        stop.cancel();
        server.await.unwrap();
        statuses
    }

    fn health(limit: Duration) -> Health {
        Health {
            synced: Arc::new(AtomicBool::new(false)),
            heartbeat: Arc::new(Heartbeat::new(limit)),
            metrics: Arc::new(Metrics::new()),
        }
    }

    #[tokio::test]
    async fn readyz_fails_before_all_objects_are_listed() {
        let health = health(Duration::from_secs(60));
        assert_eq!(answers(&health).await, [200, 503, 200]);
        health.synced.store(true, Ordering::Relaxed);
        assert_eq!(answers(&health).await, [200, 200, 200]);
    }

    #[tokio::test]
    async fn stalled_loop_fails_livez() {
        let health = health(Duration::ZERO);
        // One that has not begun waits for the API server, and no restart would help.
        assert_eq!(answers(&health).await, [200, 503, 200]);
        health.heartbeat.beat();
        assert_eq!(answers(&health).await, [503, 503, 200]);
    }

    #[tokio::test]
    async fn taken_listen_port_is_named_in_error() {
        let taken = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = format!("{:#}", listen(address).await.unwrap_err());
        assert!(
            error.starts_with(&format!("listen on {address} (--listen): ")),
            "{error}"
        );
    }
}
