//! Responses of the admin server: `/livez` (the main loop runs), `/readyz` (every kind has been listed) and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netweft_common::heartbeat::Heartbeat;
use netweft_telemetry::admin::{Endpoints, Unhealthy, check_heartbeat};

use crate::telemetry::metrics::Metrics;

/// The state that the admin server reports.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether every kind has been listed. Leadership does not matter: a standby operator is ready.
    pub synced: Arc<AtomicBool>,
    /// Heartbeat of the reconcile loop. A program whose loop hangs must be restarted.
    pub heartbeat: Arc<Heartbeat>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Health {
    /// The health checks and the metrics.
    #[must_use]
    pub fn endpoints(self) -> Endpoints {
        let Self {
            synced,
            heartbeat,
            metrics,
        } = self;
        Endpoints::new(
            move || check_heartbeat("reconcile loop", heartbeat.stalled()),
            move || metrics.text(),
        )
        .with_readyz(move || {
            let synced = synced.load(Ordering::Relaxed);
            synced
                .then_some(())
                .ok_or_else(|| Unhealthy::from("not all objects have been listed yet"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health(limit: Duration) -> (Health, Endpoints) {
        let health = Health {
            synced: Arc::new(AtomicBool::new(false)),
            heartbeat: Arc::new(Heartbeat::new(limit)),
            metrics: Arc::new(Metrics::new()),
        };
        (health.clone(), health.endpoints())
    }

    #[test]
    fn readyz_fails_before_all_objects_are_listed() {
        let (health, endpoints) = health(Duration::from_secs(60));
        let why = "not all objects have been listed yet";
        assert_eq!(endpoints.readyz(), Err(why.into()));
        assert_eq!(endpoints.livez(), Ok(()));
        health.synced.store(true, Ordering::Relaxed);
        assert_eq!(endpoints.readyz(), Ok(()));
        assert!(
            endpoints
                .metrics()
                .unwrap()
                .contains("netweft_operator_leader 0")
        );
    }

    #[test]
    fn stalled_loop_fails_livez() {
        let (health, endpoints) = health(Duration::ZERO);
        // A loop that has not started waits for the API server. A restart would not help.
        assert_eq!(endpoints.livez(), Ok(()));
        health.heartbeat.beat();
        let why = "reconcile loop stalled for 0 s";
        assert_eq!(endpoints.livez(), Err(why.into()));
    }
}
