//! Commands on kind nodes through docker.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::harness::command::{output, run};
use crate::kind::kubectl::{get, items, text};

/// A command inside a node.
pub fn command(node: &str, program: &str) -> Command {
    let mut command = Command::new("docker");
    command.args(["exec", node, program]);
    command
}

/// Run a command inside a node and return its standard output.
///
/// # Errors
/// `words` is empty, docker cannot be started, or the command fails.
pub fn on(node: &str, words: &[&str]) -> anyhow::Result<String> {
    let (program, arguments) = words.split_first().context("the command is empty")?;
    output(command(node, program).args(arguments))
}

/// Names of all nodes.
///
/// # Errors
/// kubectl fails.
pub fn nodes() -> anyhow::Result<Vec<String>> {
    let nodes = get(&["nodes"])?;
    let names = items(&nodes).map(|node| Ok(text(node, "/metadata/name")?.to_owned()));
    names.collect()
}

/// The name of a program in /proc/PID/comm, which is limited to 15 characters.
fn comm(name: &str) -> String {
    name.chars().take(15).collect()
}

/// Whether a process of this name runs on a node.
#[must_use]
pub fn runs(node: &str, name: &str) -> bool {
    on(node, &["pgrep", "--exact", &comm(name)]).is_ok()
}

/// Send SIGKILL to every process of this name on a node. Returns the number of processes.
///
/// # Errors
/// docker or pkill fails on the node.
pub fn kill_all(node: &str, name: &str) -> anyhow::Result<usize> {
    signal_all(node, name, "KILL")
}

/// Send a signal to every process of this name on a node. Returns the number of processes.
///
/// # Errors
/// docker or pkill fails on the node.
pub fn signal_all(node: &str, name: &str, signal: &str) -> anyhow::Result<usize> {
    let comm = comm(name);
    let killed =
        run(command(node, "pkill").args(["--signal", signal, "--exact", "--count", &comm]))?;
    // Without a match, pkill prints 0 and exits with 1.
    let count = String::from_utf8_lossy(&killed.stdout);
    count.trim().parse().with_context(|| {
        format!(
            "pkill on {node}: {}",
            String::from_utf8_lossy(&killed.stderr)
        )
    })
}

/// Copy a file of this machine to a node.
///
/// # Errors
/// `docker cp` fails.
pub fn copy(file: &Path, node: &str, target: &str) -> anyhow::Result<()> {
    output(
        Command::new("docker")
            .arg("cp")
            .arg(file)
            .arg(format!("{node}:{target}")),
    )
    .map(drop)
}

/// Write a text to a file of a node.
///
/// # Errors
/// docker cannot be started, or the file cannot be written.
pub fn write(node: &str, path: &str, contents: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut child = Command::new("docker")
        .args(["exec", "-i", node, "sh", "-c", &format!("cat > {path}")])
        .stdin(Stdio::piped())
        .spawn()
        .context("start docker")?;
    let mut input = child.stdin.take().context("docker has no input")?;
    input.write_all(contents.as_bytes())?;
    drop(input);
    anyhow::ensure!(child.wait()?.success(), "could not write {path} on {node}");
    Ok(())
}
