//! `netweft-udp-relay ready`: the question of a readiness probe.

use std::path::Path;

use anyhow::{Context, bail};

use crate::meet::{Connection, Message};

/// Succeeds if the relay of this container serves and has all its tunnels.
///
/// Whoever listens at the socket serves. During an update that is the predecessor for a while, which is in another
/// container: its process is not to be seen from here, so the kernel gives it the number 0 (`pid_vnr`).
///
/// # Errors
/// Why not.
pub fn ready(dir: &Path) -> anyhow::Result<()> {
    let Some(connection) = Connection::open(dir).context("ask the relay")? else {
        bail!("no relay serves on this node");
    };
    if connection.peer()?.pid() == 0 {
        bail!(
            "the relay of another container serves on this node; this one has not taken over yet"
        );
    }
    match connection.ask(&Message::Ready).context("ask the relay")? {
        Message::Readiness { failures } if failures.is_empty() => Ok(()),
        Message::Readiness { failures } => bail!("{}", failures.join("; ")),
        other => bail!("the relay answers {other:?}"),
    }
}
