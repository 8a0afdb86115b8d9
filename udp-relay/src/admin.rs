//! /livez and /metrics, from a thread of their own.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netweft_common::heartbeat::Heartbeat;
use netweft_telemetry::admin::{Endpoints, check_heartbeat, listen};
use tracing::error;

use crate::metrics::Metrics;

/// How long between two attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the thread. It serves until the process ends, and ends the process should it not.
///
/// # Errors
/// There are no threads left.
pub fn start(
    address: SocketAddr,
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
            runtime.block_on(serve(address, endpoints(metrics, heartbeat)));
        })?;
    Ok(())
}

/// The end of the thread, also by a panic: the kubelet starts a relay that can be asked how it is. Packets wait in the links.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        error!("admin server ended, the relay exits");
        std::process::exit(1);
    }
}

/// During a take-over the predecessor still has the port, so listening is tried again, without a word.
async fn serve(address: SocketAddr, endpoints: Endpoints) {
    let listener = loop {
        match listen(address, "--admin-address").await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    };
    if let Err(error) = endpoints.serve(listener, pending()).await {
        error!(%error, "admin server failed");
    }
}

fn endpoints(metrics: Metrics, heartbeat: Arc<Heartbeat>) -> Endpoints {
    Endpoints::new(
        move || check_heartbeat("control loop", heartbeat.stalled()),
        move || Ok(metrics.encode()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_loop_fails_livez() {
        let heartbeat = Arc::new(Heartbeat::new(Duration::ZERO));
        let endpoints = endpoints(Metrics::new(), Arc::clone(&heartbeat));
        assert_eq!(endpoints.livez(), Ok(()));
        heartbeat.beat();
        let why = "control loop stalled for 0 s";
        assert_eq!(endpoints.livez(), Err(why.into()));
        let metrics = endpoints.metrics().unwrap();
        assert!(metrics.contains("netweft_udp_relay_serving 0"), "{metrics}");
    }
}
