//! The directory of a run, for the removal of processes that outlive the run.
//!
//! Each run has a directory in the cache with a lock and a log. The processes of the run hold the lock. The log has a line
//! for each created object (`process PID STARTTIME`, …; e2e/cluster/lib.sh describes the whole format). If the lock is free,
//! the run has ended, and a new run removes the objects that the log lists, and no others.

use std::fs;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A run in progress.
pub struct Run {
    folder: PathBuf,
    log: File,
    _lock: File,
}

impl Run {
    /// Begin the run `name`. Processes of an earlier run with this name are killed first.
    ///
    /// # Errors
    /// The cache cannot be written, or a run with this name is in progress.
    pub fn begin(name: &str) -> anyhow::Result<Self> {
        let folder = cache()?.join("runs").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "a run {name} is in progress (its lock is {}); wait for its end, or stop it",
                    folder.join("lock").display()
                )
            }
            Err(TryLockError::Error(error)) => return Err(error).context("take the run's lock"),
        }
        kill_recorded_processes(&folder)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("log"))?;
        Ok(Self {
            folder,
            log,
            _lock: lock,
        })
    }

    /// The directory of the run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Record a process in the log, so that the process does not outlive the run.
    ///
    /// # Errors
    /// The process has already ended, or the log cannot be written.
    pub fn made_process(&mut self, pid: u32) -> anyhow::Result<()> {
        let start = start_time(pid).with_context(|| format!("process {pid} has ended at once"))?;
        writeln!(self.log, "process {pid} {start}").context("write the run's log")
    }

    /// Kill the recorded processes, and remove the log.
    ///
    /// # Errors
    /// The log is malformed or cannot be removed.
    pub fn end(self) -> anyhow::Result<()> {
        kill_recorded_processes(&self.folder)
    }
}

/// The cache directory.
fn cache() -> anyhow::Result<PathBuf> {
    if let Some(cache) = std::env::var_os("NETWEFT_CACHE") {
        return Ok(cache.into());
    }
    let home = std::env::var_os("HOME").context("neither NETWEFT_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/netweft"))
}

/// Kills the processes that the log lists, in reverse order, and removes the log.
fn kill_recorded_processes(folder: &Path) -> anyhow::Result<()> {
    let log = folder.join("log");
    for line in fs::read_to_string(&log).unwrap_or_default().lines().rev() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["process", pid, start] = words.as_slice() {
            kill_if_same(pid.parse()?, start);
        }
    }
    match fs::remove_file(&log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the run's log")
        }
        _ => Ok(()),
    }
}

/// The kernel reuses process numbers. The start time shows whether the process is still the one that the run started.
fn kill_if_same(pid: u32, start: &str) {
    if start_time(pid).as_deref() == Some(start) {
        // The process may end before the signal.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

/// Start time of a process in clock ticks since boot: field 22 of /proc/PID/stat (proc_pid_stat(5)). The fields are counted from
/// the closing parenthesis of the command name.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn kill_requires_matching_start_time() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        kill_if_same(child.id(), "1");
        assert!(child.try_wait().unwrap().is_none());
        kill_if_same(child.id(), &start_time(child.id()).unwrap());
        assert!(!child.wait().unwrap().success());
    }
}
