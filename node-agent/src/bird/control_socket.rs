//! A connection to BIRD's control socket. Each command has a time limit, because a BIRD that hangs must not block the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::bird::control_reply::{MalformedReply, Reply};

/// Time limit of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of a reply in bytes. A thousand sessions take one million.
const MAX_REPLY: u64 = 64 << 20;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens on the socket, or the socket does not exist.
    #[error("no process listens on {}", .0.display())]
    NotListening(PathBuf),
    /// The connection broke.
    #[error("communicate with BIRD")]
    Broken(#[source] io::Error),
    /// The output is not a reply.
    #[error("unexpected output of BIRD")]
    Malformed(#[source] MalformedReply),
    /// The time limit was reached.
    #[error("no answer from BIRD within {REPLY_TIMEOUT:?}")]
    Timeout,
}

/// A connection to BIRD.
pub struct ControlConnection {
    stream: BufReader<Take<UnixStream>>,
}

impl ControlConnection {
    /// Connects, and waits for the greeting.
    ///
    /// # Errors
    /// BIRD does not run, or does not reply.
    pub async fn open(socket: &Path) -> Result<Self, ControlError> {
        let not_connected = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NotListening(socket.to_owned())
            }
            _ => ControlError::Broken(error),
        };
        let stream = timeout(REPLY_TIMEOUT, UnixStream::connect(socket)).await;
        let stream = stream
            .map_err(|_| ControlError::Timeout)?
            .map_err(not_connected)?;
        let mut connection = Self {
            stream: BufReader::new(stream.take(MAX_REPLY)),
        };
        connection.read_reply().await?;
        Ok(connection)
    }

    /// Sends a command and waits for the reply.
    ///
    /// # Errors
    /// There is no reply. A command that BIRD refuses has a reply ([`Reply::error`]).
    pub async fn command(&mut self, command: &str) -> Result<Reply, ControlError> {
        let line = format!("{command}\n");
        let stream = self.stream.get_mut().get_mut();
        let sent = timeout(REPLY_TIMEOUT, stream.write_all(line.as_bytes())).await;
        sent.map_err(|_| ControlError::Timeout)?
            .map_err(ControlError::Broken)?;
        self.read_reply().await
    }

    /// Sends a command and waits for the first lines of the reply. The rest is not read, so this closes the connection.
    ///
    /// # Errors
    /// There is no reply.
    pub async fn command_head(
        mut self,
        command: &str,
        lines: usize,
    ) -> Result<Reply, ControlError> {
        let line = format!("{command}\n");
        let mut reply = Reply::default();
        let reading = async {
            let stream = self.stream.get_mut().get_mut();
            stream.write_all(line.as_bytes()).await?;
            while reply.lines.len() < lines && !self.read_line(&mut reply).await? {}
            Ok::<(), ControlError>(())
        };
        timeout(REPLY_TIMEOUT, reading)
            .await
            .map_err(|_| ControlError::Timeout)??;
        Ok(reply)
    }

    /// Waits until BIRD closes the connection. It does so only when it ends.
    pub async fn closed(&mut self) {
        self.stream.get_mut().set_limit(MAX_REPLY);
        let mut unsolicited = Vec::new();
        while matches!(
            self.stream.read_until(b'\n', &mut unsolicited).await,
            Ok(1..)
        ) {
            unsolicited.clear();
        }
    }

    async fn read_reply(&mut self) -> Result<Reply, ControlError> {
        self.stream.get_mut().set_limit(MAX_REPLY);
        let mut reply = Reply::default();
        let reading = async {
            while !self.read_line(&mut reply).await? {}
            Ok::<(), ControlError>(())
        };
        timeout(REPLY_TIMEOUT, reading)
            .await
            .map_err(|_| ControlError::Timeout)??;
        Ok(reply)
    }

    /// Reads the next line. Returns whether it is the last one.
    async fn read_line(&mut self, reply: &mut Reply) -> Result<bool, ControlError> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await?;
        if line.pop() != Some(b'\n') {
            let closed = io::ErrorKind::UnexpectedEof;
            return Err(ControlError::Broken(closed.into()));
        }
        let line = String::from_utf8_lossy(&line);
        reply.parse_line(&line).map_err(ControlError::Malformed)
    }
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}
