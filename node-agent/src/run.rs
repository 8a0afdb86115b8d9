//! `netweft-agent run`: wires the source, the kernel and the reconciler, and decides when to look.

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use kube::{Client, Config};
use netweft_netstate::events::Events;
use netweft_netstate::rtnl::Rtnl;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::admin;
use crate::args::RunArgs;
use crate::bird::{Observed, Places, Watcher};
use crate::metrics::Metrics;
use crate::prober::{Answers, Prober};
use crate::reconcile::{Paths, Reconciler};
use crate::report::Reporter;
use crate::requests;
use crate::source::Source;

/// Everything is looked at this often even when nothing seems to have happened: a lost notice must not last.
const RESYNC: Duration = Duration::from_secs(60);
/// Notices come in bursts; one look answers them all.
const SETTLE: Duration = Duration::from_millis(50);

/// Run until a signal asks to stop. What is in the kernel stays there.
///
/// # Errors
/// The agent cannot start, or its HTTP server fails.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        node,
        inputs,
        run_dir,
        cni_conf_dir,
        sysctl_dir,
        bird,
        bgp_passwords,
        listen,
        log_format: _,
    } = args;
    std::fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let (source, reporter) = match inputs {
        Some(folder) => (Source::files(&folder, &node), Reporter::file(&run_dir)),
        None => {
            let client = client().await?;
            (Source::api(&client, &node), Reporter::api(client))
        }
    };
    let kernel = Rtnl::new().context("open netlink")?;
    let events = Events::new().context("listen to netlink")?;
    let metrics = Metrics::new();
    let (watcher, bird) = Watcher::new(Places {
        dir: run_dir.join("bird"),
        program: bird,
        passwords: bgp_passwords,
    });
    let (prober, trials) = Prober::new();
    let requests = requests::Watch::new(&run_dir);
    let paths = Paths {
        run_dir,
        cni_conf_dir,
        sysctl_dir,
    };
    let reconciler = Reconciler::new(
        node,
        kernel,
        (bird, trials),
        paths,
        (reporter, metrics.clone()),
    );
    let notices = Notices {
        objects: source.changes(),
        sessions: reconciler.sessions(),
        trials: reconciler.trials(),
        kernel: events,
        requests,
    };
    tokio::select! {
        served = admin::serve(listen, metrics) => served.with_context(|| format!("serve on {listen}")),
        () = reconcile_forever(reconciler, source, notices) => Ok(()),
        () = watcher.run() => Ok(()),
        () = prober.run() => Ok(()),
        () = asked_to_stop() => {
            info!("stopping; the kernel's state stays as it is");
            Ok(())
        }
    }
}

async fn client() -> anyhow::Result<Client> {
    let config = Config::infer().await.context("find the API server")?;
    Client::try_from(config).context("make a client of the API server")
}

async fn reconcile_forever(mut reconciler: Reconciler<Rtnl>, source: Source, mut notices: Notices) {
    let mut retry = None;
    let mut resync = Instant::now() + RESYNC;
    loop {
        if let Some(objects) = source.snapshot() {
            retry = reconciler
                .reconcile(&objects)
                .await
                .map(|delay| Instant::now() + delay);
        }
        let trigger = notices.next(retry, resync).await;
        debug!(?trigger, "looking again");
        if trigger == Trigger::Resync {
            reconciler.doubt();
            resync = Instant::now() + RESYNC;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    Objects,
    Kernel,
    Sessions,
    Trials,
    Requests,
    Retry,
    Resync,
}

/// All that tells of changes.
struct Notices {
    objects: watch::Receiver<u64>,
    sessions: watch::Receiver<Observed>,
    trials: watch::Receiver<Answers>,
    kernel: Events,
    requests: requests::Watch,
}

impl Notices {
    /// Waits for the first that happens.
    async fn next(&mut self, retry: Option<Instant>, resync: Instant) -> Trigger {
        let trigger = tokio::select! {
            // The sender lives as long as the process; if it ever ended, the timers would go on.
            Ok(()) = self.objects.changed() => Trigger::Objects,
            // As well as that of the watcher, which runs beside this loop.
            Ok(()) = self.sessions.changed() => Trigger::Sessions,
            Ok(()) = self.trials.changed() => Trigger::Trials,
            heard = self.kernel.next() => {
                if let Err(error) = heard {
                    renew(&mut self.kernel, &error);
                }
                Trigger::Kernel
            }
            () = self.requests.changed() => Trigger::Requests,
            () = sleep_until(retry.unwrap_or(resync)) => if retry.is_some() { Trigger::Retry } else { Trigger::Resync },
            () = sleep_until(resync) => Trigger::Resync,
        };
        if matches!(trigger, Trigger::Objects | Trigger::Kernel) {
            tokio::time::sleep(SETTLE).await;
            self.objects.mark_unchanged();
            drain(&mut self.kernel);
        }
        trigger
    }
}

/// Forget the notices that have come meanwhile: the look that follows answers them.
fn drain(events: &mut Events) {
    const AT_MOST: usize = 10_000;
    for _ in 0..AT_MOST {
        match events.next().now_or_never() {
            Some(Ok(())) => {}
            Some(Err(error)) => return renew(events, &error),
            None => return,
        }
    }
}

/// A broken subscription is replaced; until that succeeds the resync looks.
fn renew(events: &mut Events, broken: &netweft_netstate::error::Error) {
    warn!(error = %broken, "netlink subscription broken, making a new one");
    match Events::new() {
        Ok(renewed) => *events = renewed,
        Err(error) => error!(%error, "cannot listen to netlink"),
    }
}

async fn asked_to_stop() {
    let wait = async |kind| match signal(kind) {
        Ok(mut stream) => stream.recv().await.unwrap_or(()),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}
