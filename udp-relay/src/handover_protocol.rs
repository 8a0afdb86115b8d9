//! The handover protocol: short messages over a socket in the shared directory, on which the serving relay listens.
//!
//! The socket keeps message boundaries (`SOCK_SEQPACKET`), and a message can carry descriptors. Only connections of root are
//! accepted, whatever the file's mode.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, UnixCredentials, accept4, bind, connect, getsockopt, listen, recv, recvmsg, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use netweft_udp_relay::SOCKET;
use netweft_udp_relay::config::TunnelConfig;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The time limit of each message.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum length of a message in bytes. The longest message lists the failures of many tunnels.
const MAX_LENGTH: usize = 1 << 15;
/// Maximum number of descriptors of a message: the queues and sockets of one tunnel.
const MAX_DESCRIPTORS: usize = 64;

/// A message of the protocol. The tag `say` is part of version 1 of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Message {
    /// Request of the readiness.
    Ready,
    /// Answer to [`Message::Ready`].
    Readiness {
        /// Why the relay is not ready; empty if the relay is ready.
        failures: Vec<String>,
    },
    /// Request to hand the tunnels over.
    TakeOver {
        /// [`VERSION`] of the successor.
        version: u32,
    },
    /// Request to keep the connection open. The sender detects the exit of the other relay by the end of the connection.
    Watch,
    /// A tunnel. The message carries its descriptors, queues first.
    Tunnel {
        /// The configuration without peers.
        config: TunnelConfig,
        /// The number of descriptors that are queues.
        queues: usize,
    },
    /// End of the list of tunnels.
    End,
    /// The successor forwards packets.
    Serving,
    /// The predecessor has stopped forwarding packets.
    Stopped,
    /// A request was refused.
    Refused {
        /// The reason.
        reason: String,
    },
}

/// A connection between two relays, or between a relay and a probe.
#[derive(Debug)]
pub struct Connection(OwnedFd);

/// The listening socket of the serving relay.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens at the socket in `dir`, and replaces the socket of an earlier relay.
    ///
    /// # Errors
    /// The socket cannot be created in the directory.
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let temporary = dir.join(format!(".{SOCKET}"));
        drop(fs::remove_file(&temporary));
        let opened = new_socket(SockFlag::SOCK_NONBLOCK)?;
        bind(opened.as_raw_fd(), &UnixAddr::new(&temporary)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        listen(&opened, Backlog::new(16)?)?;
        fs::rename(&temporary, path(dir))?;
        Ok(Self(opened))
    }

    /// Accepts the next connection; `None` without a waiting connection.
    ///
    /// # Errors
    /// The other end is not a process of root, or a system call fails.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        let accepted = match accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => return Ok(None),
            accepted => accepted?,
        };
        let connection = Connection::new(owned(accepted))?;
        let uid = connection.peer()?.uid();
        if uid != 0 {
            return Err(io::Error::other(format!(
                "user {uid} connected to {SOCKET}; only root may"
            )));
        }
        Ok(Some(connection))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Connection {
    /// Connects to the relay that serves in `dir`; `None` if no relay serves.
    ///
    /// # Errors
    /// The other end is not a process of root, or a system call fails.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        let opened = new_socket(SockFlag::empty())?;
        match connect(opened.as_raw_fd(), &UnixAddr::new(&path(dir))?) {
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            connected => connected?,
        }
        let connection = Self::new(opened)?;
        if connection.peer()?.uid() != 0 {
            return Err(io::Error::other(format!(
                "the process that listens on {SOCKET} is not a process of root"
            )));
        }
        Ok(Some(connection))
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let timeout = TimeVal::milliseconds(i64::try_from(TIMEOUT.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        Ok(Self(socket))
    }

    /// The credentials of the other end; for a listener, of the process that called listen(2). The PID is 0 if the process is in
    /// another PID namespace.
    ///
    /// # Errors
    /// The kernel reports none.
    pub fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other end has closed the connection, or does not receive.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with_descriptors(message, &[])
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// The other end has closed the connection, or does not receive.
    pub fn send_with_descriptors(
        &self,
        message: &Message,
        descriptors: &[RawFd],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            flags,
            None,
        )?;
        Ok(())
    }

    /// Receives a message with its descriptors; `None` if the other end has closed the connection.
    ///
    /// # Errors
    /// No message arrives within the time limit, or the message cannot be parsed.
    pub fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = [0; MAX_LENGTH];
        let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let received = match received {
            Err(Errno::ECONNRESET) => return Ok(None),
            received => received?,
        };
        let (length, mut descriptors) = (received.bytes, Vec::new());
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                descriptors.extend(raw.into_iter().map(owned));
            }
        }
        match bytes.get(..length) {
            None | Some([]) => Ok(None),
            Some(text) => Ok(Some((serde_json::from_slice(text)?, descriptors))),
        }
    }

    /// Whether the connection is open. Messages without a receiver are discarded.
    pub fn is_open(&self) -> bool {
        let mut bytes = [0; MAX_LENGTH];
        loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Sends a request and receives the answer.
    ///
    /// # Errors
    /// The other end has closed the connection, or no valid answer arrives within the time limit.
    pub fn request(&self, message: &Message) -> io::Result<Message> {
        self.send(message)?;
        let (answer, _) = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(answer)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn owned(descriptor: RawFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "nix returns descriptors as numbers")]
    // SAFETY: the kernel has just created the descriptor for this process, and no other code owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handover_messages_carry_descriptors_and_report_close() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Connection::open(dir.path()).unwrap().is_none());
        let listener = Listener::bind(dir.path()).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let here = Connection::open(dir.path()).unwrap().unwrap();
        let there = listener.accept().unwrap().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        here.send_with_descriptors(&Message::Watch, &[file.as_raw_fd(), file.as_raw_fd()])
            .unwrap();
        here.send(&Message::Ready).unwrap();
        let (message, descriptors) = there.receive().unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Watch, 2));
        assert_eq!(there.receive().unwrap().unwrap().0, Message::Ready);
        assert!(there.is_open());
        drop(here);
        assert!(!there.is_open());
        assert!(there.receive().unwrap().is_none());
        drop(listener);
        assert!(Connection::open(dir.path()).unwrap().is_none());
    }

    #[test]
    fn handover_connects_to_newest_listener() {
        let dir = tempfile::tempdir().unwrap();
        let first = Listener::bind(dir.path()).unwrap();
        let second = Listener::bind(dir.path()).unwrap();
        let _here = Connection::open(dir.path()).unwrap().unwrap();
        assert!(first.accept().unwrap().is_none());
        assert!(second.accept().unwrap().is_some());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mode = fs::metadata(dir.path().join(SOCKET))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
