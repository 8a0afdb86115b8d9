//! The endpoints /livez, /readyz and /metrics.

use netweft_telemetry::admin::{CheckResult, Endpoints, Unhealthy, check_heartbeat};

use crate::telemetry::health::{Health, Unready};
use crate::telemetry::metrics::Metrics;

/// The name of the main loop in messages.
const LOOP: &str = "reconcile loop";

/// The checks and the metrics.
#[must_use]
pub fn endpoints(metrics: Metrics, health: Health) -> Endpoints {
    let alive = health.clone();
    // Kubelet restarts an agent whose loop is stalled.
    let livez = move || check_heartbeat(LOOP, alive.stalled());
    Endpoints::new(livez, move || Ok(metrics.encode())).with_readyz(move || ready(&health))
}

/// The agent is ready if the node has been programmed, and its reconciles do not fail.
fn ready(health: &Health) -> CheckResult {
    match health.unready() {
        None => Ok(()),
        Some(Unready::Starting) => Err(
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
        // A success before the node accepts pods does not make it ready.
        health.succeeded();
        let before = endpoints.readyz().unwrap_err();
        assert!(before.0.contains("first sync"), "{before:?}");
        assert_eq!(succeed(&endpoints), [true, false]);
        health.accepts_pods();
        assert_eq!(succeed(&endpoints), [true, true]);
    }

    #[test]
    fn stalled_loop_fails_livez_and_readyz() {
        let health = Health::with_limits(Duration::ZERO, Duration::MAX);
        let endpoints = endpoints(Metrics::new(), health.clone());
        health.accepts_pods();
        assert_eq!(
            succeed(&endpoints),
            [true, true],
            "the loop has not started and waits for the instance lock"
        );
        health.beat();
        let stalled: CheckResult = Err("reconcile loop stalled for 0 s".into());
        assert_eq!(endpoints.livez(), stalled);
        assert_eq!(endpoints.readyz(), stalled);
    }

    #[tokio::test]
    async fn lasting_failure_fails_readyz_until_success() {
        let limit = Duration::from_millis(200);
        let health = Health::with_limits(Duration::MAX, limit);
        let endpoints = endpoints(Metrics::new(), health.clone());
        health.accepts_pods();
        tokio::time::sleep(limit * 2).await;
        assert_eq!(succeed(&endpoints), [true, false]);
        let failing = endpoints.readyz().unwrap_err();
        let expected = "this node could not be programmed for";
        assert!(failing.0.contains(expected), "{failing:?}");
        health.succeeded();
        assert_eq!(health.unready(), None);
    }

    #[test]
    fn metrics_contain_all_counters_and_problems() {
        let metrics = Metrics::new();
        metrics.synced(false);
        metrics.synced(true);
        metrics.synced(true);
        metrics.applied("route add");
        metrics.restored("route");
        metrics.reclaimed("link");
        metrics.drifted("parameter");
        metrics.set_problems([("invalid", 3), ("note", 0)]);
        let text = endpoints(metrics, Health::new()).metrics().unwrap();
        for line in [
            "syncs_total{result=\"clean\"} 2",
            "syncs_total{result=\"failed\"} 1",
            "kernel_operations_total{kind=\"route add\"} 1",
            "pods_restored_total{kind=\"route\"} 1",
            "pods_reclaimed_total{kind=\"link\"} 1",
            "drift_repairs_total{kind=\"parameter\"} 1",
            "problems{kind=\"invalid\"} 3",
            "problems{kind=\"note\"} 0",
        ] {
            assert!(
                text.contains(&format!("\nnetweft_agent_{line}\n")),
                "{line}: {text}"
            );
        }
        assert!(
            !text.contains("last_success_timestamp_seconds 0.0"),
            "{text}"
        );
    }
}
