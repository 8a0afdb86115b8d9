//! What pods have asked for that this node has no block for: heard of at once, told in the status.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use netweft_cni::node::NodeConfig;
use netweft_cni::requests::{DIR, Requests};
use netweft_crds::BlockRequest;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::Notify;
use tracing::warn;

use crate::words::chain;

/// Most that a status tells of, as the API has it.
const TOLD: usize = 64;

/// What pods wait for, now that the plugin knows of the blocks in `plugin`.
#[must_use]
pub fn waiting(run_dir: &Path, plugin: &NodeConfig) -> Vec<BlockRequest> {
    let served = |name: &str| {
        let mut pools = plugin.pools.iter();
        pools.any(|pool| pool.name == name && !pool.blocks.is_empty())
    };
    let waiting = Requests::new(run_dir).waiting(served, SystemTime::now());
    let waiting = waiting.unwrap_or_else(|error| {
        warn!(error = %chain(&error), "cannot list what pods ask for");
        Vec::new()
    });
    let told = waiting.into_iter().take(TOLD);
    told.map(|request| BlockRequest {
        pools: request.pools.into_iter().take(TOLD).collect(),
    })
    .collect()
}

/// Tells when a pod asks.
pub struct Watch {
    asked: Arc<Notify>,
}

impl Watch {
    /// A watch on the directory shared with the plugin. If it cannot be had, the regular look has to do.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        let asked = Arc::new(Notify::new());
        if let Err(error) = watch(&run_dir.join(DIR), Arc::clone(&asked)) {
            warn!(error = %chain(&error), "cannot watch what pods ask for; looking once a minute");
        }
        Self { asked }
    }

    /// Waits until a pod asks.
    pub async fn changed(&mut self) {
        self.asked.notified().await;
    }
}

/// Listens on a thread that ends with the process.
fn watch(dir: &Path, asked: Arc<Notify>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO)?;
    let listen = move || {
        // What has happened is looked up; that something has is all there is to learn here.
        while inotify.read_events().is_ok() {
            asked.notify_one();
        }
    };
    let thread = std::thread::Builder::new().name("requests".to_owned());
    thread.spawn(listen).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_request_is_heard_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path());
        let pools = ["a".to_owned()];
        Requests::new(dir.path()).make(&pools).unwrap();
        watch.changed().await;
        let second = tokio::time::timeout(Duration::from_millis(50), watch.changed());
        assert!(second.await.is_err());
        Requests::new(dir.path()).make(&pools).unwrap();
        watch.changed().await;
    }
}
