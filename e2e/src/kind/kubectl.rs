//! `kubectl`, as a user types it.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::harness::command::output;

/// Run `kubectl` with these words.
pub fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new("kubectl").args(arguments))
}

/// Wait until the rollouts of workloads, such as `daemonset/x`, are complete. `timeout` has a unit, such as `60s`.
pub fn rollout_status(namespace: &str, workloads: &str, timeout: &str) -> anyhow::Result<()> {
    let timeout = format!("--timeout={timeout}");
    let status = ["rollout", "status", workloads, &timeout];
    kubectl(&[&["-n", namespace][..], &status].concat()).map(drop)
}

/// Run `kubectl get` and read what it says.
pub fn get(arguments: &[&str]) -> anyhow::Result<Value> {
    let text = output(
        Command::new("kubectl")
            .arg("get")
            .args(arguments)
            .args(["-o", "json"]),
    )?;
    serde_json::from_str(&text).context("read kubectl's JSON")
}

/// Run `kubectl apply` on a text.
pub fn apply(manifest: &str) -> anyhow::Result<()> {
    let mut child = Command::new("kubectl")
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    child
        .stdin
        .take()
        .context("kubectl has no input")?
        .write_all(manifest.as_bytes())?;
    let finished = child.wait_with_output()?;
    anyhow::ensure!(
        finished.status.success(),
        "kubectl apply: {}",
        String::from_utf8_lossy(&finished.stderr).trim()
    );
    Ok(())
}

/// Run `kubectl patch` on an object that is named by words, with what is merged into it.
pub fn merge(object: &[&str], patch: &str) -> anyhow::Result<()> {
    kubectl(&[&["patch"], object, &["--type=merge", "-p", patch]].concat()).map(drop)
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// A text at a JSON pointer.
pub fn text<'a>(object: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no {pointer} in {object}"))
}
