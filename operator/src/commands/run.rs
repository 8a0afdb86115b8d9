//! Starts and stops the parts of the operator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::args::Args;
use crate::controller::Controller;
use crate::controller::apply::Writer;
use crate::controller::crds;
use crate::controller::events::Events;
use crate::controller::pod_owners::PodOwnerLookup;
use crate::controller::reconcile_trigger::ReconcileTrigger;
use crate::controller::secret_watches::SecretWatches;
use crate::controller::snapshot::Settings;
use crate::controller::timers::Timers;
use crate::controller::watches::Stores;
use crate::leader_election;
use crate::telemetry::admin::Health;
use crate::telemetry::metrics::Metrics;
use netweft_common::heartbeat::Heartbeat;
use netweft_telemetry::admin;

/// Time limit of the shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// A reconcile loop without a heartbeat for this time hangs. Its requests have much shorter time limits.
const LIVENESS_DEADLINE: Duration = Duration::from_secs(120);

/// Runs the operator until it receives a stop signal.
///
/// # Errors
/// The operator cannot start: the port is in use, or there is no configuration of an API server. Later failures are
/// retried.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let client = netweft_client::connect(args.api_server.as_deref()).await?;
    let metrics = Arc::new(Metrics::new());
    let health = Health {
        synced: Arc::new(AtomicBool::new(false)),
        heartbeat: Arc::new(Heartbeat::new(LIVENESS_DEADLINE)),
        metrics: metrics.clone(),
    };
    let listener = admin::listen(args.listen, "--listen").await?;
    let endpoints = health.clone().endpoints();
    let mut admin = tokio::spawn(endpoints.serve(listener, stop.clone().cancelled_owned()));
    let mut controller = std::pin::pin!(run_controller(&args, &client, &health, &stop));
    let result = tokio::select! {
        // After a stop signal the admin server ends too, which is no error.
        biased;
        result = &mut controller => result,
        () = stop.cancelled() => {
            // Current writes are completed and the Lease is released, unless the API server does not answer.
            tokio::time::timeout(SHUTDOWN_TIMEOUT, controller).await.unwrap_or(Ok(()))
        }
        ended = &mut admin => {
            let served = ended.context("the admin server (--listen) ended")?;
            served.context("the admin server (--listen) ended")?;
            anyhow::bail!("the admin server (--listen) ended");
        }
    };
    stop.cancel();
    let served = admin.await.context("join the admin server")?;
    served.context("end the admin server (--listen)")?;
    info!("stopped");
    result
}

/// Applies the CRDs, lists all objects, and runs the controller. Each step starts when the previous one is complete.
async fn run_controller(
    args: &Args,
    client: &Client,
    health: &Health,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if args.manage_crds
        && stop
            .run_until_cancelled(crds::apply_until_done(client))
            .await
            .is_none()
    {
        return Ok(());
    }
    let trigger = Arc::new(ReconcileTrigger::default());
    let mut tasks = JoinSet::new();
    let stores = Stores::start(client, &trigger, &mut tasks);
    match stop.run_until_cancelled(stores.wait_until_complete()).await {
        None => return Ok(()),
        Some(complete) => complete.context("list all objects")?,
    }
    health.synced.store(true, Ordering::Relaxed);
    info!("all objects listed");
    let candidate = leader_election::start(client, args);
    let events = Events::start(client, args.identity.clone(), &mut tasks);
    // Without BIRD no agent needs passwords.
    let password_secrets: BTreeSet<String> = args.password_secrets.iter().cloned().collect();
    let password_secrets = if args.bird {
        password_secrets
    } else {
        BTreeSet::new()
    };
    let secrets = SecretWatches::new(client, &args.namespace, &trigger, password_secrets.clone());
    let controller = Controller {
        client: client.clone(),
        stores,
        secrets,
        pod_owners: PodOwnerLookup::start(client, &trigger, &mut tasks),
        trigger,
        is_leader: candidate.is_leader.clone(),
        writer: Writer::new(client.clone(), &args.namespace, health, events),
        heartbeat: health.heartbeat.clone(),
        metrics: health.metrics.clone(),
        timers: Timers::new(args.orphan_grace, args.surplus_delay),
        settings: Settings {
            agent_nodes: args.agent_nodes.clone(),
            ignore_pod_cidrs: args.ignore_node_pod_cidrs,
            udp_relay: args.udp_relay,
            bird: args.bird,
            password_secrets,
        },
    };
    let result = run_with_tasks(&mut tasks, controller.run(stop.clone())).await;
    candidate.release().await;
    tasks.shutdown().await;
    result?;
    anyhow::ensure!(stop.is_cancelled(), "the leader election ended");
    Ok(())
}

/// Runs `main` to its end.
///
/// # Errors
/// One of `tasks` has ended before `main`. The program must be restarted.
async fn run_with_tasks(
    tasks: &mut JoinSet<()>,
    main: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::select! {
        // A task that ends together with `main` is no error.
        biased;
        () = main => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(()) => anyhow::bail!("a background task ended"),
            Err(error) => Err(anyhow::Error::new(error).context("a background task ended")),
        },
    }
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let token = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("received stop signal");
        token.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn ended_or_panicked_background_task_stops_operator() {
        let mut tasks = JoinSet::new();
        tasks.spawn(pending());
        assert!(run_with_tasks(&mut tasks, ready(())).await.is_ok());
        tasks.spawn(ready(()));
        let error = run_with_tasks(&mut tasks, pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "a background task ended");
        tasks.spawn(async { panic!("expected by the test") });
        let error = run_with_tasks(&mut tasks, pending()).await.unwrap_err();
        assert!(format!("{error:#}").contains("panicked"), "{error:#}");
    }
}
