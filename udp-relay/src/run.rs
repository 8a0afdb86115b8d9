//! `netweft-udp-relay run`: the start of all threads, and the control loop.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use netweft_common::heartbeat::Heartbeat;
use tracing::info;

use crate::admin;
use crate::args::RunArgs;
use crate::control::Control;
use crate::event_sources::EventSources;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::stop::new_event;

/// The control loop counts as stalled after this time. An iteration takes milliseconds, or a few seconds if many tunnels cannot be
/// opened.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum of the default number of queues of a tunnel.
const MAX_DEFAULT_QUEUES: usize = 4;

/// Run until SIGTERM or SIGINT. The links remain.
///
/// # Errors
/// The relay cannot start, cannot take over from its predecessor, or the control loop fails.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        run_dir,
        queues,
        admin_address,
    } = args;
    // Before other threads start, because they inherit the signal mask.
    let ended = Arc::new(new_event().context("create an eventfd")?);
    let sources = EventSources::new(Arc::clone(&ended)).context("receive signals")?;
    std::fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let watched = sources.watch(&run_dir);
    watched.with_context(|| format!("watch {}", run_dir.display()))?;
    let metrics = Metrics::new();
    let heartbeat = Arc::new(Heartbeat::new(STALL_TIMEOUT));
    admin::start(admin_address, metrics.clone(), Arc::clone(&heartbeat))
        .context("start the admin server")?;
    let queues = queues.map_or_else(default_queues, usize::from);
    let relay = Relay::new(queues, metrics.clone(), ended);
    let mut control = Control::start(run_dir, relay, metrics)?;
    heartbeat.beat();
    while control.wait(&sources)? {
        heartbeat.beat();
    }
    info!("stopping, links and their queued packets stay");
    Ok(())
}

fn default_queues() -> usize {
    available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_DEFAULT_QUEUES)
}
