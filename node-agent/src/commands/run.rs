//! `netweft-agent run`: wires the source, the kernel and the reconciler, and decides when to look.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use netweft_common::heartbeat::HEARTBEAT_INTERVAL;
use netweft_netstate::events::Events;
use netweft_netstate::rtnl::Rtnl;
use netweft_telemetry::admin::{Endpoints, listen};
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument, debug, error_span, info, warn};

use crate::apply::nft;
use crate::bird;
use crate::bird::{Observed, Places, Watcher};
use crate::commands::args::RunArgs;
use crate::commands::install::Plugins;
use crate::commands::instance_lock::InstanceLock;
use crate::firewall::Firewall;
use crate::inputs::file_events::Watch;
use crate::inputs::source::Source;
use crate::probes::responder::Responder;
use crate::probes::sender::{ProbeResults, Prober};
use crate::reconcile::{Reconciler, Tasks};
use crate::status::problem::{Problem, Problems};
use crate::status::publisher::StatusPublisher;
use crate::status::sink::StatusSink;
use crate::telemetry::admin;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// Everything is looked at this often even when nothing seems to have happened: a lost notice must not last.
const RESYNC: Duration = Duration::from_secs(60);
/// Notices come in bursts; one look answers them all. What has drifted is put right after no longer than this, when all was
/// quiet before.
const SETTLE: Duration = Duration::from_millis(5);
/// The least time between a look and the next, and how many times as long as the look has kept the CPU: while things go on
/// happening, looking takes at most a quarter of one.
const DEBOUNCE: (Duration, u32) = (Duration::from_millis(20), 3);

/// Run until a signal asks to stop. What is in the kernel stays there.
///
/// # Errors
/// The agent cannot start, or a part of it has ended.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        // First, so that signals are taken before anything is waited for: to PID 1 the kernel delivers none that it does not take.
        () = asked_to_stop() => {
            info!("stopping, kernel state stays unchanged");
            Ok(())
        }
        ended = serve(args) => ended,
    }
}

/// Starts all parts. Every one of them works until the process ends, so the end of one is an error.
async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        node,
        inputs,
        paths,
        plugins,
        bird,
        bgp_passwords,
        listen,
        ignore_other_networks,
    } = args;
    let run_dir = &paths.run_dir;
    std::fs::create_dir_all(run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let alone = InstanceLock::acquire(run_dir).await?;
    let (mut source, client) = Source::open(inputs.as_deref(), &node).await?;
    let mut ends = source.ends();
    let reporter = client.map_or_else(|| StatusSink::file(run_dir), StatusSink::api);
    let (metrics, health) = (Metrics::new(), Health::new());
    let (watcher, link) = Watcher::new(Places {
        dir: run_dir.join(bird::DIR),
        program: bird,
        passwords: bgp_passwords,
    });
    let (prober, probes) = Prober::new(listen.port());
    let (responder, responding) = Responder::new(listen.port());
    let (firewall, findings) = Firewall::new(&paths);
    let (status, publisher) = StatusPublisher::new(node.clone(), reporter, health.clone());
    let (counts, beats) = (metrics.clone(), health.clone());
    let main_loop = on_own_thread(async move || {
        // Held by the thread that changes the node, so that the next agent waits for its end.
        let _alone = alone;
        let kernel = Rtnl::new().context("open netlink")?;
        let links = (link, probes, findings, responding);
        let files = Watch::new(&paths, plugins.cni_bin_dir.as_deref());
        let notices = Notices::new(&source, &links, files)?;
        let kept = plugins.cni_bin_dir.as_deref();
        let kept = kept.map(|to| Plugins::new(&plugins.plugins, to));
        let told = (status, counts, beats.clone());
        let reconciler = Reconciler::new(node, kernel, links, (paths, kept), told)
            .ignoring_other_networks(ignore_other_networks);
        reconcile_forever(reconciler, source, notices, beats).await
    });
    tokio::select! {
        served = serve_admin(listen, admin::endpoints(metrics, health)) => {
            served?;
            bail!("the admin server (--listen) has ended")
        }
        ended = main_loop => ended,
        () = publisher.run() => bail!("the task that writes the status has ended"),
        () = watcher.run() => bail!("the task that watches BIRD has ended"),
        () = prober.run() => bail!("the prober of standby datapaths has ended"),
        () = responder.run() => bail!("the task that answers other agents has ended"),
        () = firewall.run() => bail!("the task that reads the firewall's ruleset has ended"),
        what = ends.recv() => bail!("the task that watches {} has ended", what.unwrap_or_default()),
    }
}

async fn serve_admin(address: SocketAddr, endpoints: Endpoints) -> anyhow::Result<()> {
    let listener = listen(address, "--listen").await?;
    Ok(endpoints.serve(listener, pending()).await?)
}

/// Runs the main loop on a thread of its own: a system call that hangs, for example one that waits for the kernel's RTNL lock, must
/// not keep the others from telling that it does.
fn on_own_thread<W>(work: W) -> impl Future<Output = anyhow::Result<()>>
where
    W: AsyncFnOnce() -> anyhow::Result<()> + Send + 'static,
{
    let (ending, ended) = oneshot::channel();
    let run = move || {
        let runtime = crate::runtime().context("make a runtime for the main loop");
        let done = runtime.and_then(|runtime| runtime.block_on(work()));
        // Nobody waits while the process ends.
        let _ = ending.send(done);
    };
    let thread = std::thread::Builder::new().name("main-loop".to_owned());
    let started = thread.spawn(run).context("start the main loop");
    async move {
        started?;
        // The panic itself has been logged.
        ended.await.context("the main loop has panicked")?
    }
}

async fn reconcile_forever(
    mut reconciler: Reconciler<Rtnl>,
    source: Source,
    mut notices: Notices,
    health: Health,
) -> anyhow::Result<()> {
    let (mut retry, mut trigger) = (None, Trigger::Start);
    let mut resync = Instant::now() + RESYNC;
    loop {
        health.beat();
        let worked = cpu_time();
        if let Some(objects) = source.snapshot() {
            // Of level error: a filter that logs no more than errors would else log them without the span.
            let span = error_span!("reconcile", ?trigger);
            debug!(parent: &span, "reconciling");
            let reconciled = reconciler.reconcile(&objects).instrument(span).await;
            retry = reconciled.map(|delay| Instant::now() + delay);
            notices.files.follow(reconciler.parameters());
        }
        if !reconciler.is_connected() {
            bail!("the netlink connection has broken");
        }
        let rested = Instant::now()
            + DEBOUNCE
                .0
                .max(cpu_time().saturating_sub(worked) * DEBOUNCE.1);
        trigger = loop {
            tokio::select! {
                trigger = notices.next(retry, resync) => break trigger,
                () = sleep(HEARTBEAT_INTERVAL) => health.beat(),
            }
        };
        // At once, while the writers live.
        reconciler.record_writers(notices.kernel.take_writers());
        if trigger.comes_in_bursts() {
            sleep_until(rested.max(Instant::now() + SETTLE)).await;
            notices.drain();
        }
        reconciler.record_writers(notices.kernel.take_writers());
        if trigger == Trigger::Resync {
            reconciler.doubt();
            resync = Instant::now() + RESYNC;
        }
    }
}

/// What this thread has had of the CPU.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    Start,
    Objects,
    Kernel,
    Sessions,
    Probes,
    Firewall,
    Responder,
    Files,
    Retry,
    Resync,
}

impl Trigger {
    fn comes_in_bursts(self) -> bool {
        matches!(self, Self::Objects | Self::Kernel | Self::Files)
    }
}

/// All that tells of changes.
struct Notices {
    objects: watch::Receiver<u64>,
    sessions: watch::Receiver<Observed>,
    probes: watch::Receiver<ProbeResults>,
    firewall: watch::Receiver<Problems>,
    responder: watch::Receiver<Option<Problem>>,
    kernel: Events,
    files: Watch,
}

impl Notices {
    fn new(source: &Source, links: &Tasks, files: Watch) -> anyhow::Result<Self> {
        let (bird, probes, firewall, responding) = links;
        Ok(Self {
            objects: source.changes(),
            sessions: bird.changes(),
            probes: probes.changes(),
            firewall: firewall.changes(),
            responder: responding.changes(),
            kernel: Events::new(nft::TABLE).context("listen to netlink")?,
            files,
        })
    }

    /// Waits for the first that happens.
    async fn next(&mut self, retry: Option<Instant>, resync: Instant) -> Trigger {
        tokio::select! {
            // The sender lives as long as the process; if it ever ended, the timers would go on.
            Ok(()) = self.objects.changed() => Trigger::Objects,
            // As well as that of the watcher, which runs beside this loop.
            Ok(()) = self.sessions.changed() => Trigger::Sessions,
            Ok(()) = self.probes.changed() => Trigger::Probes,
            Ok(()) = self.firewall.changed() => Trigger::Firewall,
            Ok(()) = self.responder.changed() => Trigger::Responder,
            heard = self.kernel.next() => {
                if let Err(error) = heard {
                    renew(&mut self.kernel, &error);
                }
                Trigger::Kernel
            }
            () = self.files.changed() => Trigger::Files,
            () = sleep_until(retry.unwrap_or(resync)) => if retry.is_some() { Trigger::Retry } else { Trigger::Resync },
            () = sleep_until(resync) => Trigger::Resync,
        }
    }

    /// Forget the notices that have come meanwhile: the look that follows answers them.
    fn drain(&mut self) {
        const AT_MOST: usize = 10_000;
        self.objects.mark_unchanged();
        for _ in 0..AT_MOST {
            match self.kernel.next().now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    renew(&mut self.kernel, &error);
                    break;
                }
                None => break,
            }
        }
    }
}

/// A broken subscription is replaced; until that succeeds the resync looks.
fn renew(events: &mut Events, broken: &netweft_netstate::error::Error) {
    warn!(error = %broken, "netlink subscription broken, recreating it");
    match Events::new(nft::TABLE) {
        Ok(renewed) => *events = renewed,
        Err(error) => warn!(%error, "subscribing to netlink failed, will retry"),
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn asked_to_stop() {
    let wait = async |kind| match signal(kind) {
        Ok(mut stream) => stream.recv().await.unwrap_or(()),
        Err(_) => pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}
