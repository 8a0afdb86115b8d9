//! Network namespaces.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that exists as long as this value.
pub struct Namespace(File);

impl Namespace {
    /// Creates an empty namespace.
    pub fn new() -> anyhow::Result<Self> {
        let create = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let created = thread::spawn(create).join();
        let created =
            created.map_err(|_| anyhow!("the thread that creates a namespace panicked"))?;
        Ok(Self(created.context("create a network namespace")?))
    }

    /// A path for other processes, valid as long as this process runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in the namespace, on a separate thread.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                work()
            });
            inside
                .join()
                .map_err(|_| anyhow!("a thread in a namespace panicked"))?
        })
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        self.run(|| ip(arguments))
    }
}

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    let output = command.args(arguments.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {error}");
    Ok(())
}
