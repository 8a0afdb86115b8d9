//! One agent at a time on a node: whoever changes it holds a lock, which the kernel takes from a process that ends in whatever way.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::info;

/// Name of the file in the run directory.
const FILE: &str = "agent.lock";
/// How often to try for it.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Held as long as this value lives.
#[derive(Debug)]
#[must_use = "another agent may run from now on"]
pub struct InstanceLock {
    _lock: Flock<std::fs::File>,
}

impl InstanceLock {
    /// Of the node with this run directory; `None` while another is there.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    fn try_acquire(run_dir: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(run_dir.join(FILE))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Waits for another to end, as the one before does in a moment.
    ///
    /// # Errors
    /// As for [`Self::try_acquire`].
    pub async fn acquire(run_dir: &Path) -> anyhow::Result<Self> {
        let lock =
            || Self::try_acquire(run_dir).with_context(|| format!("lock {}", run_dir.display()));
        if let Some(alone) = lock()? {
            return Ok(alone);
        }
        info!("waiting for another agent on this node to exit");
        loop {
            tokio::time::sleep(RETRY_INTERVAL).await;
            if let Some(alone) = lock()? {
                return Ok(alone);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_lock_is_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let first = InstanceLock::try_acquire(dir.path()).unwrap();
        assert!(first.is_some());
        assert!(InstanceLock::try_acquire(dir.path()).unwrap().is_none());
        drop(first);
        assert!(InstanceLock::try_acquire(dir.path()).unwrap().is_some());
    }
}
