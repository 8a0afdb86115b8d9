//! `netweft-udp-relay run`: makes the parts and lets them run.

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

/// A round of the control loop takes milliseconds; the longest, one of many tunnels that cannot be opened, some seconds.
const STALL: Duration = Duration::from_secs(60);
/// Threads in either direction of a tunnel, by default.
const QUEUES: usize = 4;

/// Run until a signal asks to stop. The links stay.
///
/// # Errors
/// The relay cannot start, or no longer wait.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        run_dir,
        queues,
        admin_address,
    } = args;
    // Before there are threads, which inherit it.
    let ended = Arc::new(new_event().context("make an event")?);
    let sources = EventSources::new(Arc::clone(&ended)).context("take signals")?;
    std::fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    let watched = sources.watch(&run_dir);
    watched.with_context(|| format!("watch {}", run_dir.display()))?;
    let metrics = Metrics::new();
    let heartbeat = Arc::new(Heartbeat::new(STALL));
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
    available_parallelism().map_or(1, usize::from).min(QUEUES)
}
