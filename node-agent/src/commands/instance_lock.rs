//! The lock that admits one agent per node. The kernel releases it when the process ends, in whatever way.

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
/// Interval of the attempts to acquire the lock.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The acquired lock. It is released when this value is dropped.
#[derive(Debug)]
#[must_use = "another agent may run from now on"]
pub struct InstanceLock {
    _lock: Flock<std::fs::File>,
}

impl InstanceLock {
    /// Acquires the lock of the node with this run directory; `None` while another process holds it.
    ///
    /// # Errors
    /// The file cannot be created or locked.
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

    /// Acquires the lock. Waits until another agent has ended.
    ///
    /// # Errors
    /// As for [`Self::try_acquire`].
    pub async fn acquire(run_dir: &Path) -> anyhow::Result<Self> {
        let try_acquire =
            || Self::try_acquire(run_dir).with_context(|| format!("lock {}", run_dir.display()));
        if let Some(lock) = try_acquire()? {
            return Ok(lock);
        }
        info!("waiting for another agent on this node to exit");
        loop {
            tokio::time::sleep(RETRY_INTERVAL).await;
            if let Some(lock) = try_acquire()? {
                return Ok(lock);
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
