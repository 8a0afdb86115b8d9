//! Taking tunnels over from the relay that serves, without losing a packet.
//!
//! ```text
//!   successor                          predecessor
//!      ──────── take over ────────────▶
//!      ◀── tunnels, with descriptors ──
//!      (starts; both carry packets)
//!      ──────── serving ──────────────▶ (stops, keeps all open)
//!      ◀─────── stopped ───────────────
//!      (listens)                         ends after SIGTERM; or, if the successor ends first, serves again
//! ```
//!
//! Queues and sockets are duplicated, not opened again: a detached queue loses its packets (`__tun_detach`,
//! `tun_queue_purge`), and so does a closed socket. A queue or socket stays open in one relay at least, and the relay that
//! reads a packet forwards it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use tracing::{info, warn};

use netweft_udp_relay::config::TunnelConfig;

use crate::handover_protocol::{Connection, Message, VERSION};
use crate::relay::Relay;
use crate::tunnel::Tunnel;

/// Requests the tunnels of the relay that serves in `dir`, if one serves. The tunnels forward no packet here yet.
///
/// # Errors
/// The relay does not hand its tunnels over, and continues to serve.
pub fn request(dir: &Path, relay: &mut Relay) -> io::Result<Option<Connection>> {
    let Some(connection) = Connection::open(dir)? else {
        return Ok(None);
    };
    connection.send(&Message::TakeOver { version: VERSION })?;
    loop {
        let (message, descriptors) = connection.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match message {
            Message::Tunnel { config, queues } if queues > 0 && queues < descriptors.len() => {
                let mut files = descriptors;
                let sockets = files.split_off(queues);
                let files = files.into_iter().map(File::from).collect();
                relay.adopt(Tunnel::from_descriptors(config, files, sockets));
            }
            Message::End => return Ok(Some(connection)),
            Message::Refused { reason } => return Err(io::Error::other(reason)),
            other => return Err(unexpected(&other)),
        }
    }
}

/// Informs the predecessor that this relay serves, and waits until the predecessor has stopped. If the predecessor has ended, it has
/// stopped too.
pub fn confirm(connection: &Connection) {
    match connection.request(&Message::Serving) {
        Ok(Message::Stopped) => info!("took over from predecessor"),
        Ok(other) => warn!(?other, "predecessor did not confirm that it stopped"),
        Err(error) => warn!(%error, "predecessor did not confirm that it stopped"),
    }
}

/// Hands the tunnels over to the successor.
///
/// # Errors
/// The successor has ended or does not receive.
pub fn offer(connection: &Connection, relay: &Relay) -> io::Result<()> {
    for tunnel in relay.tunnels() {
        let (queues, sockets) = tunnel.descriptors();
        let queue_numbers = queues.iter().map(AsRawFd::as_raw_fd);
        let descriptors: Vec<_> = queue_numbers
            .chain(sockets.iter().map(AsRawFd::as_raw_fd))
            .collect();
        let config = TunnelConfig {
            peers: Vec::new(),
            ..tunnel.config().clone()
        };
        let message = Message::Tunnel {
            config,
            queues: queues.len(),
        };
        connection.send_with_descriptors(&message, &descriptors)?;
    }
    connection.send(&Message::End)
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::other(format!("unexpected answer {message:?}"))
}
