//! A conversation with BIRD over its control socket. Everything has a time limit: one that hangs must not hang us.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::bird::reply::{NoReply, Reply};

/// How long an answer may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may be, in bytes: a thousand sessions take one million.
const MAX_REPLY: u64 = 64 << 20;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens on the socket, or there is none.
    #[error("no process listens on {}", .0.display())]
    Absent(PathBuf),
    /// The conversation broke.
    #[error("speak to BIRD")]
    Broken(#[source] io::Error),
    /// The output is not a reply.
    #[error("unexpected output of BIRD")]
    Nonsense(#[source] NoReply),
    /// It took too long.
    #[error("no answer from BIRD within {REPLY_TIMEOUT:?}")]
    Slow,
}

/// A connection to BIRD.
pub struct Control {
    stream: BufReader<Take<UnixStream>>,
}

impl Control {
    /// Connects, and waits for the greeting.
    ///
    /// # Errors
    /// There is no BIRD, or it does not answer.
    pub async fn connect(socket: &Path) -> Result<Self, ControlError> {
        let absent = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::Absent(socket.to_owned())
            }
            _ => ControlError::Broken(error),
        };
        let stream = timeout(REPLY_TIMEOUT, UnixStream::connect(socket)).await;
        let stream = stream.map_err(|_| ControlError::Slow)?.map_err(absent)?;
        let mut control = Self {
            stream: BufReader::new(stream.take(MAX_REPLY)),
        };
        control.answer().await?;
        Ok(control)
    }

    /// Gives a command and waits for the answer.
    ///
    /// # Errors
    /// There was none. What BIRD refuses is an answer ([`Reply::refusal`]).
    pub async fn ask(&mut self, command: &str) -> Result<Reply, ControlError> {
        let line = format!("{command}\n");
        let stream = self.stream.get_mut().get_mut();
        let told = timeout(REPLY_TIMEOUT, stream.write_all(line.as_bytes())).await;
        told.map_err(|_| ControlError::Slow)?
            .map_err(ControlError::Broken)?;
        self.answer().await
    }

    /// Gives a command and waits for the first lines of the answer only; the rest never comes, so this ends the conversation.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn ask_briefly(mut self, command: &str, lines: usize) -> Result<Reply, ControlError> {
        let line = format!("{command}\n");
        let mut reply = Reply::default();
        let reading = async {
            let stream = self.stream.get_mut().get_mut();
            stream.write_all(line.as_bytes()).await?;
            while reply.lines.len() < lines && !self.next(&mut reply).await? {}
            Ok::<(), ControlError>(())
        };
        timeout(REPLY_TIMEOUT, reading)
            .await
            .map_err(|_| ControlError::Slow)??;
        Ok(reply)
    }

    /// Waits until the other end hangs up, as a BIRD that ends does and no other.
    pub async fn ended(&mut self) {
        self.stream.get_mut().set_limit(MAX_REPLY);
        let mut unasked = Vec::new();
        while matches!(self.stream.read_until(b'\n', &mut unasked).await, Ok(1..)) {
            unasked.clear();
        }
    }

    async fn answer(&mut self) -> Result<Reply, ControlError> {
        self.stream.get_mut().set_limit(MAX_REPLY);
        let mut reply = Reply::default();
        let reading = async {
            while !self.next(&mut reply).await? {}
            Ok::<(), ControlError>(())
        };
        timeout(REPLY_TIMEOUT, reading)
            .await
            .map_err(|_| ControlError::Slow)??;
        Ok(reply)
    }

    /// The next line; whether it was the last.
    async fn next(&mut self, reply: &mut Reply) -> Result<bool, ControlError> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await?;
        if line.pop() != Some(b'\n') {
            let ended = io::ErrorKind::UnexpectedEof;
            return Err(ControlError::Broken(ended.into()));
        }
        let line = String::from_utf8_lossy(&line);
        reply.take(&line).map_err(ControlError::Nonsense)
    }
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}
