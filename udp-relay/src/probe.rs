//! `netweft-udp-relay ready` and `alive`: the commands of the kubelet's probes.
//!
//! The relay that listens at the socket serves. During an update this is the predecessor for some time. Its process is in
//! another PID namespace, so the kernel reports PID 0 (`pid_vnr`).

use std::path::Path;

use anyhow::{Context, bail};

use crate::handover_protocol::{Connection, Message};

/// Succeeds if the relay of this container serves and has all its tunnels.
///
/// # Errors
/// Why not.
pub fn ready(dir: &Path) -> anyhow::Result<()> {
    let Some(failures) = ask(dir)? else {
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
/// Why the container has to be restarted.
pub fn alive(dir: &Path) -> anyhow::Result<()> {
    ask(dir).map(drop)
}

/// What keeps the relay of this container from being ready; `None` if that of another container serves.
fn ask(dir: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let Some(connection) = Connection::open(dir).context("ask the relay")? else {
        bail!("no relay serves on this node");
    };
    if connection.peer()?.pid() == 0 {
        return Ok(None);
    }
    match connection.ask(&Message::Ready).context("ask the relay")? {
        Message::Readiness { failures } => Ok(Some(failures)),
        other => bail!("the relay answers {other:?}"),
    }
}
