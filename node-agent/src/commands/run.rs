//! `netweft-agent run`: starts all tasks, and decides when to reconcile.

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
use crate::bird::{BirdPaths, BirdTask, Observation};
use crate::commands::args::{PluginPaths, RunArgs};
use crate::commands::install::Plugins;
use crate::commands::instance_lock::InstanceLock;
use crate::firewall::Firewall;
use crate::inputs::file_events::FileWatch;
use crate::inputs::source::Source;
use crate::probes::responder::Responder;
use crate::probes::sender::{ProbeResults, Prober};
use crate::reconcile::{Reconciler, TaskHandles};
use crate::status::problem::{Problem, Problems};
use crate::status::publisher::StatusPublisher;
use crate::status::sink::StatusSink;
use crate::telemetry::admin;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// Interval of reconciles without an event, because an event can be lost.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);
/// Delay before a reconcile, so that one reconcile handles a burst of events.
const BURST_DELAY: Duration = Duration::from_millis(5);
/// Minimum delay between two reconciles, and its factor of the CPU time of the first: while events continue, reconciles use at most
/// a quarter of a CPU.
const MIN_DELAY: (Duration, u32) = (Duration::from_millis(20), 3);

/// Runs until the process gets a signal to stop. The state of the kernel stays.
///
/// # Errors
/// The agent cannot start, or a task has ended.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        // First, so that the handlers are installed before anything blocks: the kernel delivers no unhandled signal to PID 1.
        () = stop_signal() => {
            info!("stopping, kernel state stays unchanged");
            Ok(())
        }
        ended = run_tasks(args) => ended,
    }
}

/// Starts all tasks. Each of them runs until the process ends, so the end of one is an error.
async fn run_tasks(args: RunArgs) -> anyhow::Result<()> {
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
    let lock = InstanceLock::acquire(run_dir).await?;
    let (mut source, client) = Source::open(inputs.as_deref(), &node).await?;
    let mut ended_watches = source.ended_tasks();
    let sink = client.map_or_else(|| StatusSink::file(run_dir), StatusSink::api);
    let (metrics, health) = (Metrics::new(), Health::new());
    let (bird_task, bird) = BirdTask::new(BirdPaths {
        dir: run_dir.join(bird::DIR),
        program: bird,
        passwords: bgp_passwords,
    });
    let (prober, probes) = Prober::new(listen.port());
    let (responder_task, responder) = Responder::new(listen.port());
    let (firewall_task, firewall) = Firewall::new(&paths);
    let (status, publisher) = StatusPublisher::new(node.clone(), sink, health.clone());
    let telemetry = (status, metrics.clone(), health.clone());
    let loop_health = health.clone();
    let main_loop = on_own_thread(async move || {
        // The thread that changes the node holds the lock, so that the next agent waits for its end.
        let _lock = lock;
        let kernel = Rtnl::new().context("open netlink")?;
        let tasks = TaskHandles {
            bird,
            probes,
            firewall,
            responder,
        };
        let watch = FileWatch::new(&paths, plugins.cni_bin_dir.as_deref());
        let events = EventSources::new(&source, &tasks, watch)?;
        let files = (paths, restored_plugins(&plugins));
        let reconciler = Reconciler::new(node, kernel, tasks, files, telemetry)
            .ignoring_other_networks(ignore_other_networks);
        reconcile_forever(reconciler, source, events, loop_health).await
    });
    tokio::select! {
        served = serve_admin(listen, admin::endpoints(metrics, health)) => {
            served?;
            bail!("the admin server (--listen) has ended")
        }
        ended = main_loop => ended,
        () = publisher.run() => bail!("the task that writes the status has ended"),
        () = bird_task.run() => bail!("the task that watches BIRD has ended"),
        () = prober.run() => bail!("the prober of standby datapaths has ended"),
        () = responder_task.run() => bail!("the task that answers other agents has ended"),
        () = firewall_task.run() => bail!("the task that reads the firewall's ruleset has ended"),
        kind = ended_watches.recv() => bail!("the task that watches {} has ended", kind.unwrap_or_default()),
    }
}

/// The plugins that the agent restores; `None` without a plugin directory of the container runtime.
fn restored_plugins(paths: &PluginPaths) -> Option<Plugins> {
    let to = paths.cni_bin_dir.as_deref();
    to.map(|to| Plugins::new(&paths.plugins, to))
}

async fn serve_admin(address: SocketAddr, endpoints: Endpoints) -> anyhow::Result<()> {
    let listener = listen(address, "--listen").await?;
    Ok(endpoints.serve(listener, pending()).await?)
}

/// Runs the main loop on a separate thread: a system call that blocks, for example on the kernel's RTNL lock, must not block the tasks
/// that report the stall.
fn on_own_thread<W>(work: W) -> impl Future<Output = anyhow::Result<()>>
where
    W: AsyncFnOnce() -> anyhow::Result<()> + Send + 'static,
{
    let (sender, ended) = oneshot::channel();
    let run = move || {
        let runtime = crate::runtime().context("create a runtime for the main loop");
        let result = runtime.and_then(|runtime| runtime.block_on(work()));
        // While the process ends, the receiver may be closed.
        let _ = sender.send(result);
    };
    let thread = std::thread::Builder::new().name("main-loop".to_owned());
    let started = thread.spawn(run).context("start the main loop");
    async move {
        started?;
        // The panic has been logged.
        ended.await.context("the main loop has panicked")?
    }
}

async fn reconcile_forever(
    mut reconciler: Reconciler<Rtnl>,
    source: Source,
    mut events: EventSources,
    health: Health,
) -> anyhow::Result<()> {
    let (mut requeue, mut trigger) = (None, Trigger::Start);
    let mut resync = Instant::now() + RESYNC_INTERVAL;
    loop {
        health.beat();
        let cpu_time_before = cpu_time();
        if let Some(objects) = source.snapshot() {
            // Level error, so that a filter that logs errors only logs them with the span.
            let span = error_span!("reconcile", ?trigger);
            debug!(parent: &span, "reconciling");
            let delay = reconciler.reconcile(&objects).instrument(span).await;
            requeue = delay.map(|delay| Instant::now() + delay);
            events.files.watch_sysctls(reconciler.sysctls());
        }
        if !reconciler.is_connected() {
            bail!("the netlink connection has broken");
        }
        let (min_delay, factor) = MIN_DELAY;
        let used = cpu_time().saturating_sub(cpu_time_before);
        let earliest = Instant::now() + min_delay.max(used * factor);
        trigger = loop {
            tokio::select! {
                trigger = events.next(requeue, resync) => break trigger,
                () = sleep(HEARTBEAT_INTERVAL) => health.beat(),
            }
        };
        // At once, while the writers still run.
        reconciler.record_writers(events.kernel.take_writers());
        if trigger.comes_in_bursts() {
            sleep_until(earliest.max(Instant::now() + BURST_DELAY)).await;
            events.drain();
        }
        reconciler.record_writers(events.kernel.take_writers());
        if trigger == Trigger::Resync {
            reconciler.invalidate_status();
            resync = Instant::now() + RESYNC_INTERVAL;
        }
    }
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Why a reconcile starts.
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
    Requeue,
    Resync,
}

impl Trigger {
    fn comes_in_bursts(self) -> bool {
        matches!(self, Self::Objects | Self::Kernel | Self::Files)
    }
}

/// The sources of events that trigger a reconcile.
struct EventSources {
    objects: watch::Receiver<u64>,
    sessions: watch::Receiver<Observation>,
    probes: watch::Receiver<ProbeResults>,
    firewall: watch::Receiver<Problems>,
    responder: watch::Receiver<Option<Problem>>,
    kernel: Events,
    files: FileWatch,
}

impl EventSources {
    fn new(source: &Source, tasks: &TaskHandles, files: FileWatch) -> anyhow::Result<Self> {
        Ok(Self {
            objects: source.changes(),
            sessions: tasks.bird.changes(),
            probes: tasks.probes.changes(),
            firewall: tasks.firewall.changes(),
            responder: tasks.responder.changes(),
            kernel: Events::new(nft::TABLE).context("listen to netlink")?,
            files,
        })
    }

    /// Waits for the first event or timer.
    async fn next(&mut self, requeue: Option<Instant>, resync: Instant) -> Trigger {
        tokio::select! {
            // The senders exist until the process ends.
            Ok(()) = self.objects.changed() => Trigger::Objects,
            Ok(()) = self.sessions.changed() => Trigger::Sessions,
            Ok(()) = self.probes.changed() => Trigger::Probes,
            Ok(()) = self.firewall.changed() => Trigger::Firewall,
            Ok(()) = self.responder.changed() => Trigger::Responder,
            notification = self.kernel.next() => {
                if let Err(error) = notification {
                    resubscribe(&mut self.kernel, &error);
                }
                Trigger::Kernel
            }
            () = self.files.changed() => Trigger::Files,
            () = sleep_until(requeue.unwrap_or(resync)) => if requeue.is_some() { Trigger::Requeue } else { Trigger::Resync },
            () = sleep_until(resync) => Trigger::Resync,
        }
    }

    /// Drops the events that have arrived in the meantime: the next reconcile handles them.
    fn drain(&mut self) {
        const MAX_EVENTS: usize = 10_000;
        self.objects.mark_unchanged();
        for _ in 0..MAX_EVENTS {
            match self.kernel.next().now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    resubscribe(&mut self.kernel, &error);
                    break;
                }
                None => break,
            }
        }
    }
}

/// Replaces a broken netlink subscription. Until that succeeds, only resyncs detect changes.
fn resubscribe(events: &mut Events, broken: &netweft_netstate::error::Error) {
    warn!(error = %broken, "netlink subscription broken, recreating it");
    match Events::new(nft::TABLE) {
        Ok(subscription) => *events = subscription,
        Err(error) => warn!(%error, "subscribing to netlink failed, will retry"),
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn stop_signal() {
    let wait = async |kind| match signal(kind) {
        Ok(mut stream) => stream.recv().await.unwrap_or(()),
        Err(_) => pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}
