//! TCP load: one long connection whose bytes are compared, and short connections one after the other. The server of both sends a first
//! line and then echoes what it receives.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Bytes of a chunk, which needs more than one packet.
const CHUNK: usize = 16 * 1024;
/// A connection without an answer for this time has failed. TCP has retransmitted six times by then, with doubled timeouts (RFC 6298).
const TIMEOUT: Duration = Duration::from_secs(15);

/// The result of the connections to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpResult {
    /// The server.
    pub server: SocketAddr,
    /// Number of echoed chunks, or of short connections that were opened and closed.
    pub rounds: u64,
    /// The longest of these, in milliseconds.
    pub slowest: u64,
    /// The error that ended the load early.
    pub error: Option<String>,
}

/// The duration and the rate of the load.
#[derive(Debug)]
pub struct Pace<'a> {
    /// The load ends when this is true.
    pub stop: &'a AtomicBool,
    /// Pause between two chunks, and between two short connections. It bounds the load.
    pub pause: Duration,
}

/// Exchanges chunks over one connection until [`Pace::stop`].
#[must_use]
pub fn long_connection(server: SocketAddr, pace: &Pace<'_>) -> TcpResult {
    let mut result = TcpResult::new(server);
    let outcome = connect(server).and_then(|mut connection| {
        while pace.wait_for_next() {
            result.round(|number| connection.exchange(number))?;
        }
        connection.close()
    });
    result.with_outcome(outcome)
}

/// Opens and closes connections one after the other until [`Pace::stop`].
#[must_use]
pub fn short_connections(server: SocketAddr, pace: &Pace<'_>) -> TcpResult {
    let mut result = TcpResult::new(server);
    let mut outcome = Ok(());
    while outcome.is_ok() && pace.wait_for_next() {
        outcome = result.round(|_| connect(server)?.close());
    }
    result.with_outcome(outcome)
}

impl Pace<'_> {
    /// Pauses. Returns false if the load should end.
    fn wait_for_next(&self) -> bool {
        thread::sleep(self.pause);
        !self.stop.load(Ordering::Relaxed)
    }
}

impl TcpResult {
    fn new(server: SocketAddr) -> Self {
        Self {
            server,
            rounds: 0,
            slowest: 0,
            error: None,
        }
    }

    fn round(&mut self, round: impl FnOnce(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let started = Instant::now();
        round(self.rounds)?;
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.slowest = self.slowest.max(took);
        self.rounds += 1;
        Ok(())
    }

    fn with_outcome(mut self, outcome: anyhow::Result<()>) -> Self {
        self.error = outcome.err().map(|error| format!("{error:#}"));
        self
    }
}

struct Connection {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

/// Connects and reads the first line of the server.
fn connect(server: SocketAddr) -> anyhow::Result<Connection> {
    let writer = TcpStream::connect_timeout(&server, TIMEOUT).context("connect")?;
    writer.set_read_timeout(Some(TIMEOUT))?;
    writer.set_nodelay(true)?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let mut greeting = String::new();
    reader.read_line(&mut greeting).map_err(describe)?;
    ensure!(greeting.ends_with('\n'), "closed before the first line");
    Ok(Connection { writer, reader })
}

impl Connection {
    /// Sends a chunk with unique content and reads the echo.
    fn exchange(&mut self, number: u64) -> anyhow::Result<()> {
        let sent: Vec<u8> = number
            .to_be_bytes()
            .into_iter()
            .cycle()
            .take(CHUNK)
            .collect();
        self.writer.write_all(&sent).map_err(describe)?;
        let mut echo = vec![0; CHUNK];
        self.reader.read_exact(&mut echo).map_err(describe)?;
        ensure!(echo == sent, "chunk {number} came back with other bytes");
        Ok(())
    }

    /// Closes both directions. No further bytes may arrive.
    fn close(mut self) -> anyhow::Result<()> {
        self.writer.shutdown(Shutdown::Write).map_err(describe)?;
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map_err(describe)?;
        ensure!(
            rest.is_empty(),
            "the server sent {} unexpected bytes",
            rest.len()
        );
        Ok(())
    }
}

fn describe(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::ConnectionReset => anyhow::anyhow!("reset"),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("no answer for {TIMEOUT:?}"),
        ErrorKind::UnexpectedEof => anyhow::anyhow!("closed by the server"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that accepts this number of connections and echoes the bytes, altered by `change`.
    fn server(connections: usize, change: fn(&mut [u8])) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"hello\n").unwrap();
                let mut buffer = [0; CHUNK];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    change(&mut buffer[..read]);
                    if stream.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
            }
        });
        address
    }

    fn run_for_100_ms(
        load: fn(SocketAddr, &Pace<'_>) -> TcpResult,
        server: SocketAddr,
    ) -> TcpResult {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let pace = Pace {
                stop: &stop,
                pause: Duration::from_millis(1),
            };
            let running = scope.spawn(move || load(server, &pace));
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap()
        })
    }

    #[test]
    fn echoed_tcp_data_is_counted_as_rounds() {
        let loads = [
            (long_connection as fn(_, &Pace<'_>) -> _, 1),
            (short_connections, 1000),
        ];
        for (load, connections) in loads {
            let result = run_for_100_ms(load, server(connections, |_| {}));
            assert_eq!(result.error, None);
            assert!(result.rounds > 2, "{result:?}");
        }
    }

    #[test]
    fn altered_bytes_and_refused_connections_are_errors() {
        let altered = run_for_100_ms(long_connection, server(1, |bytes| bytes[0] ^= 1));
        assert!(altered.error.unwrap().contains("other bytes"));
        let refused = run_for_100_ms(short_connections, server(1, |_| {}));
        assert_eq!(refused.rounds, 1);
        assert!(refused.error.is_some());
    }
}
