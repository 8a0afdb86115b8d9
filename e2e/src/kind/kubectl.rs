//! Calls of `kubectl`. Each function fails if kubectl fails, and the error contains the output of kubectl.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::harness::command::output;

/// Run `kubectl` with these arguments, and return its standard output.
pub fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new("kubectl").args(arguments))
}

/// Wait until the rollouts of workloads, such as `daemonset/x`, are complete. `timeout` has a unit, such as `60s`.
pub fn rollout_status(namespace: &str, workloads: &str, timeout: &str) -> anyhow::Result<()> {
    let timeout = format!("--timeout={timeout}");
    let status = ["rollout", "status", workloads, &timeout];
    kubectl(&[&["-n", namespace][..], &status].concat()).map(drop)
}

/// Run `kubectl get`, and parse its JSON output.
pub fn get(arguments: &[&str]) -> anyhow::Result<Value> {
    let text = output(
        Command::new("kubectl")
            .arg("get")
            .args(arguments)
            .args(["-o", "json"]),
    )?;
    serde_json::from_str(&text).context("parse the JSON output of kubectl")
}

/// Run `kubectl apply` with a manifest.
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

/// Run `kubectl patch --type=merge`. `object` has the arguments that name the object.
pub fn merge(object: &[&str], patch: &str) -> anyhow::Result<()> {
    kubectl(&[&["patch"], object, &["--type=merge", "-p", patch]].concat()).map(drop)
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// The string at a JSON pointer. An object without a string there is an error.
pub fn text<'a>(object: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no {pointer} in {object}"))
}
