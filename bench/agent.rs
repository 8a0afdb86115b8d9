//! The released agent on a node of a benchmark.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Limit until the agent has written the CNI configuration.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts the agent of `node` with these objects, given as file names and texts without apiVersion. Objects, log, run folder and CNI
/// configuration are in `folder`.
///
/// # Errors
/// A file cannot be written, or the agent cannot be started.
pub fn start(
    program: &Path,
    node: &str,
    folder: &Path,
    objects: Vec<(String, String)>,
) -> anyhow::Result<Child> {
    let inputs = folder.join("objects");
    fs::create_dir_all(&inputs)?;
    for (name, text) in objects {
        let text = format!("apiVersion: netweft.io/v1alpha1\n{text}\n");
        fs::write(inputs.join(name), text)?;
    }
    let log = fs::File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command
        .args(["run", "--node", node, "--inputs"])
        .arg(inputs);
    command.arg("--run-dir").arg(folder.join("run"));
    command.arg("--cni-conf-dir").arg(folder.join("cni"));
    command.stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().context("start the agent")
}

/// Waits for the CNI configuration of the agent in `folder`.
///
/// # Errors
/// The agent does not write the file within the limit.
pub fn wait_until_ready(folder: &Path) -> anyhow::Result<()> {
    let conflist = folder.join("cni/10-netweft.conflist");
    let end = Instant::now() + READY_TIMEOUT;
    while !conflist.exists() {
        ensure!(Instant::now() < end, "the agent does not become ready");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
