//! Puts the parts together and takes them apart again.

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
use crate::controller::changes::Changes;
use crate::controller::crds;
use crate::controller::events::Events;
use crate::controller::pod_owners::Lookup;
use crate::controller::secret_watches::Secrets;
use crate::controller::snapshot::Settings;
use crate::controller::timers::Timers;
use crate::controller::watches::Stores;
use crate::leader_election;
use crate::telemetry::admin::Health;
use crate::telemetry::metrics::Metrics;
use netweft_common::heartbeat::Heartbeat;
use netweft_telemetry::admin;

/// How long the end may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// A loop that has not come round for so long hangs. Every request it waits for is given up long before.
const LIVENESS_DEADLINE: Duration = Duration::from_secs(120);

/// Runs the operator until it is told to stop.
///
/// # Errors
/// When it cannot even begin: no port, no way to reach an API server. What fails later is tried again.
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
    let mut work = std::pin::pin!(work(&args, &client, &health, &stop));
    let result = tokio::select! {
        // Told to stop, the admin server ends too: that is in order.
        biased;
        result = &mut work => result,
        () = stop.cancelled() => {
            // What is being written is written, and the lease given back; but not if nobody answers.
            tokio::time::timeout(SHUTDOWN_TIMEOUT, work).await.unwrap_or(Ok(()))
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

/// From the definitions to the loop, each step only when the one before it is complete.
async fn work(
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
    let changed = Arc::new(Changes::default());
    let mut tasks = JoinSet::new();
    let stores = Stores::start(client, &changed, &mut tasks);
    match stop.run_until_cancelled(stores.wait_until_complete()).await {
        None => return Ok(()),
        Some(complete) => complete.context("list all objects")?,
    }
    health.synced.store(true, Ordering::Relaxed);
    info!("all objects listed");
    let candidate = leader_election::start(client, args);
    let events = Events::start(client, args.identity.clone(), &mut tasks);
    let secrets = Secrets::new(client, &args.namespace, &changed, args.bird);
    let controller = Controller {
        client: client.clone(),
        stores,
        secrets,
        owners: Lookup::start(client, &changed, &mut tasks),
        changed,
        leads: candidate.is_leader.clone(),
        writer: Writer::new(client.clone(), &args.namespace, health, events),
        heartbeat: health.heartbeat.clone(),
        metrics: health.metrics.clone(),
        timers: Timers::new(args.orphan_grace, args.surplus_delay),
        settings: Settings {
            agent_nodes: args.agent_nodes.clone(),
            ignore_pod_cidrs: args.ignore_node_pod_cidrs,
            udp_relay: args.udp_relay,
            bird: args.bird,
        },
    };
    let result = beside(&mut tasks, controller.run(stop.clone())).await;
    candidate.release().await;
    tasks.shutdown().await;
    result?;
    anyhow::ensure!(stop.is_cancelled(), "the lease is no longer looked after");
    Ok(())
}

/// Runs `main` to its end.
///
/// # Errors
/// One of `tasks`, all of which are to last as long, has ended before: the program had better be started again.
async fn beside(tasks: &mut JoinSet<()>, main: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        // What ends in the same moment because `main` has ended is in order.
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
        assert!(beside(&mut tasks, ready(())).await.is_ok());
        tasks.spawn(ready(()));
        let error = beside(&mut tasks, pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "a background task ended");
        tasks.spawn(async { panic!("as the test says") });
        let error = beside(&mut tasks, pending()).await.unwrap_err();
        assert!(format!("{error:#}").contains("panicked"), "{error:#}");
    }
}
