//! /livez and /metrics, from a thread of their own.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// How long between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the thread. It serves until the process ends.
///
/// # Errors
/// There are no threads left.
pub fn start(listen: SocketAddr, metrics: Metrics) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(serve(listen, metrics)))?;
    Ok(())
}

/// During a take-over the predecessor still has the port, so listening is tried again, without a word.
async fn serve(listen: SocketAddr, metrics: Metrics) {
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    info!(%listen, "serving /livez and /metrics");
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/metrics",
            get(|State(metrics): State<Metrics>| async move { metrics.encode() }),
        )
        .with_state(metrics);
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "no longer serving /livez and /metrics");
    }
}
