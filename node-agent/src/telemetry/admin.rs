//! The contents of /livez, /readyz and /metrics.

use netweft_telemetry::admin::{CheckResult, Endpoints, Unhealthy, check_heartbeat};

use crate::telemetry::health::{Health, Unready};
use crate::telemetry::metrics::Metrics;

/// The loop that has to come round.
const LOOP: &str = "reconcile loop";

/// The checks and the metrics.
#[must_use]
pub fn endpoints(metrics: Metrics, health: Health) -> Endpoints {
    let alive = health.clone();
    // An agent whose loop hangs is better started again.
    let livez = move || check_heartbeat(LOOP, alive.stalled());
    Endpoints::new(livez, move || Ok(metrics.encode())).with_readyz(move || ready(&health))
}

/// Ready: the local datapath has been programmed, and can still be.
fn ready(health: &Health) -> CheckResult {
    match health.unready() {
        None => Ok(()),
        Some(Unready::Beginning) => Err(
            "the first sync of this agent has not succeeded yet; see the NodeNetwork's conditions"
                .into(),
        ),
        Some(Unready::Failing(since)) => Err(Unhealthy(format!(
            "this node could not be programmed for {} s; see the NodeNetwork's conditions",
            since.as_secs()
        ))),
        Some(Unready::Stalled(since)) => check_heartbeat(LOOP, Some(since)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether /livez and /readyz succeed.
    fn succeed(endpoints: &Endpoints) -> [bool; 2] {
        [endpoints.livez().is_ok(), endpoints.readyz().is_ok()]
    }

    #[test]
    fn readyz_succeeds_only_after_node_can_take_pods() {
        let health = Health::new();
        let endpoints = endpoints(Metrics::new(), health.clone());
        health.beat();
        // What has gone well before the node could take pods does not make it ready.
        health.worked_well();
        let before = endpoints.readyz().unwrap_err();
        assert!(before.0.contains("first sync"), "{before:?}");
        assert_eq!(succeed(&endpoints), [true, false]);
        health.opened();
        assert_eq!(succeed(&endpoints), [true, true]);
    }

    #[test]
    fn stalled_loop_fails_livez_and_readyz() {
        let health = Health::with_limits(Duration::ZERO, Duration::MAX);
        let endpoints = endpoints(Metrics::new(), health.clone());
        health.opened();
        assert_eq!(
            succeed(&endpoints),
            [true, true],
            "it has not begun, and waits for its turn on this node"
        );
        health.beat();
        let why = Err("reconcile loop stalled for 0 s".into());
        assert_eq!((endpoints.livez(), endpoints.readyz()), (why.clone(), why));
    }

    #[tokio::test]
    async fn lasting_failure_fails_readyz_until_success() {
        let lasting = Duration::from_millis(200);
        let health = Health::with_limits(Duration::MAX, lasting);
        let endpoints = endpoints(Metrics::new(), health.clone());
        health.opened();
        tokio::time::sleep(lasting * 2).await;
        assert_eq!(succeed(&endpoints), [true, false]);
        let failing = endpoints.readyz().unwrap_err();
        let said = "this node could not be programmed for";
        assert!(failing.0.contains(said), "{failing:?}");
        health.worked_well();
        assert_eq!(health.unready(), None);
    }

    #[test]
    fn metrics_contain_all_counters() {
        let metrics = Metrics::new();
        metrics.synced(false);
        metrics.synced(true);
        metrics.synced(true);
        metrics.applied("route add");
        metrics.restored("route");
        metrics.reclaimed("link");
        metrics.drifted("parameter");
        let said = endpoints(metrics.clone(), Health::new()).metrics().unwrap();
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
