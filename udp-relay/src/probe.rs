//! `netweft-udp-relay ready` and `alive`: the commands of the kubelet's probes.
//!
//! The relay that listens at the socket serves. During an update this is the predecessor for some time. Its process is in
//! another PID namespace, so the kernel reports PID 0 (`pid_vnr`).

use std::path::Path;

use anyhow::{Context, bail};

use crate::handover_protocol::{Connection, Message};

/// Succeeds if the relay of this container serves and has all tunnels of its configuration.
///
/// # Errors
/// No relay serves, the relay of another container serves, the relay does not answer, or the relay reports failures.
pub fn ready(dir: &Path) -> anyhow::Result<()> {
    let Some(failures) = request_failures(dir)? else {
        bail!(
            "the relay of another container serves on this node; this one has not taken over yet"
        );
    };
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// Succeeds unless the relay of this container serves and does not answer, or no relay serves at all. A tunnel that cannot be opened
/// does not count: a restart would not open it either.
///
/// # Errors
/// No relay serves, or the relay does not answer. The kubelet then restarts the container.
pub fn alive(dir: &Path) -> anyhow::Result<()> {
    request_failures(dir).map(drop)
}

/// The failures that the relay of this container reports; `None` if the relay of another container serves.
fn request_failures(dir: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let Some(connection) = Connection::open(dir).context("connect to the relay")? else {
        bail!("no relay serves on this node");
    };
    if connection.peer()?.pid() == 0 {
        return Ok(None);
    }
    let answer = connection.request(&Message::Ready);
    match answer.context("request the readiness of the relay")? {
        Message::Readiness { failures } => Ok(Some(failures)),
        other => bail!("unexpected answer of the relay: {other:?}"),
    }
}
