//! Network namespaces that live as long as a value.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// One of them.
pub struct Namespace(File);

impl Namespace {
    /// A new, empty one.
    pub fn new() -> anyhow::Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::spawn(make).join();
        let made = made.map_err(|_| anyhow!("the thread that makes a namespace panicked"))?;
        Ok(Self(made.context("make a network namespace")?))
    }

    /// A path that other processes can open while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something inside, on a thread of its own.
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

    /// `ip` inside.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        self.run(|| ip(arguments))
    }
}

/// `ip` where the calling thread is.
pub fn ip(arguments: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    let output = command.args(arguments.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}
