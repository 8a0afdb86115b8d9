//! A network namespace (and a mount namespace, for nodes), held by a process that sleeps.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::harness::command::{output, words};
use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::traffic::ping::{self, Answer};

/// A namespace and the process that keeps it. When the process ends, the kernel removes the namespace and all in it.
pub struct Namespace {
    holder: u32,
    mounts: bool,
}

impl Namespace {
    /// A new network namespace.
    pub fn network(run: &mut Run) -> anyhow::Result<Self> {
        Self::spawn(run, words("unshare --net -- sleep infinity"), false)
    }

    /// A new network and mount namespace with an empty /run.
    pub fn node(run: &mut Run) -> anyhow::Result<Self> {
        let mut command = words("unshare --net --mount --propagation private -- sh -c");
        command.arg(
            "mount -t tmpfs -o mode=755 run /run && mount -t sysfs sys /sys && exec sleep infinity",
        );
        Self::spawn(run, command, true)
    }

    /// The same for a machine whose files are in `root`: what is mounted there is for a program that is started by chroot.
    pub fn machine(run: &mut Run, root: &Path) -> anyhow::Result<Self> {
        let mut command = words("unshare --net --mount --propagation private -- sh -euc");
        command.arg(
            "mount -t sysfs sys /sys
            for folder in run tmp; do mount -t tmpfs -o mode=755 $folder \"$1/$folder\"; done
            chmod 1777 \"$1/tmp\"
            mount -t proc proc \"$1/proc\"
            mount --rbind /dev \"$1/dev\"
            exec sleep infinity",
        );
        command.arg("sh").arg(root);
        Self::spawn(run, command, true)
    }

    fn spawn(run: &mut Run, mut command: Command, mounts: bool) -> anyhow::Result<Self> {
        let child = detached(&mut command)
            .spawn()
            .context("make a namespace (this needs root)")?;
        run.made_process(child.id())?;
        let space = Self {
            holder: child.id(),
            mounts,
        };
        until("the namespace to be there", Duration::from_secs(5), || {
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", space.holder))?;
            anyhow::ensure!(
                comm.trim() == "sleep",
                "its holder is still {}",
                comm.trim()
            );
            Ok(())
        })?;
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// Path of the network namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder)
    }

    /// A process as the argument of `ip link set netns`.
    pub fn pid(&self) -> u32 {
        self.holder
    }

    /// A path as the namespace sees it.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder))
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.holder.to_string())
            .arg("--net");
        if self.mounts {
            command.arg("--mount");
        }
        command.arg("--").arg(program);
        command
    }

    /// Run `ip` inside.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        output(self.command("ip").args(arguments.split_whitespace()))
    }

    /// The Ethernet address of a link inside.
    pub fn mac(&self, link: &str) -> anyhow::Result<[u8; 6]> {
        let shown = self.ip(&format!("-o link show dev {link}"))?;
        let mut words = shown.split_whitespace();
        let found = words.find(|word| word.matches(':').count() == 5);
        let found = found.context("a link has an Ethernet address")?;
        let bytes = found.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
        <[u8; 6]>::try_from(bytes).map_err(|_| anyhow::anyhow!("{found} has other than 6 bytes"))
    }

    /// Set a kernel parameter inside.
    pub fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        output(
            self.command("sysctl")
                .arg("-qw")
                .arg(format!("{name}={value}")),
        )
        .map(drop)
    }

    /// Start a program inside that goes on after the lab's own process, with its words in a file.
    pub fn start(&self, run: &mut Run, command: &mut Command, log: &Path) -> anyhow::Result<Child> {
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = detached(command)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start a program")?;
        run.made_process(child.id())?;
        Ok(child)
    }

    /// Ping all targets from inside.
    pub fn ping(&self, binaries: &Path, targets: &[IpAddr]) -> anyhow::Result<Vec<Answer>> {
        let mut command = self.command(binaries.join("netweft-probe"));
        command
            .arg("ping")
            .args(targets.iter().map(ToString::to_string));
        ping::read_answers(&output(&mut command)?)
    }

    /// Ask a probe's server from inside; it has to return so many bytes.
    pub fn ask(
        &self,
        binaries: &Path,
        protocol: &str,
        server: SocketAddr,
        payload: usize,
    ) -> anyhow::Result<String> {
        let mut command = self.command(binaries.join("netweft-probe"));
        command.args(["ask", protocol, &server.to_string()]);
        output(command.args(["--payload", &payload.to_string()]))
    }

    /// How a person enters it.
    pub fn enter_line(&self) -> String {
        let mounts = if self.mounts { " --mount" } else { "" };
        format!("nsenter --target {} --net{mounts} bash", self.holder)
    }
}

/// In a session of its own and without our terminal, so that an interrupt of the lab does not reach it.
fn detached(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
}
