//! The admin server, with /livez and /metrics, on a separate thread.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netweft_common::heartbeat::Heartbeat;
use netweft_telemetry::admin::{Endpoints, check_heartbeat, listen};
use tracing::error;

use crate::metrics::Metrics;

/// Interval between attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the thread. If the thread ends, the process exits.
///
/// # Errors
/// The runtime or the thread cannot be created.
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
            let _exit = ExitOnDrop;
            runtime.block_on(serve(address, endpoints(metrics, heartbeat)));
        })?;
    Ok(())
}

/// Exits the process at the end of the thread, also after a panic. The kubelet then starts a relay with an admin server. The link
/// queues packets meanwhile.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        error!("admin server ended, the relay exits");
        std::process::exit(1);
    }
}

/// During a takeover the predecessor still has the port. Attempts to listen are therefore repeated without a log line.
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
        let reason = "control loop stalled for 0 s";
        assert_eq!(endpoints.livez(), Err(reason.into()));
        let metrics = endpoints.metrics().unwrap();
        assert!(metrics.contains("netweft_udp_relay_serving 0"), "{metrics}");
    }
}
