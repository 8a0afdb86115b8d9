//! TCP that goes on while something is done to the network: one long connection whose bytes are compared, and short ones one after the
//! other. Both are with a server that answers a first line and then whatever it is sent.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Bytes sent at a time: more than one packet has.
const CHUNK: usize = 16 * 1024;
/// Without an answer for so long a connection is dead. TCP's own attempts, each after twice the time of the one before, have
/// been six by then (RFC 6298).
const DEAD: Duration = Duration::from_secs(15);

/// What became of the connections to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talked {
    /// The server.
    pub server: SocketAddr,
    /// Chunks that came back, or connections that were opened and closed.
    pub rounds: u64,
    /// The longest of these, in ms.
    pub slowest: u64,
    /// Why it ended before it should have.
    pub error: Option<String>,
}

/// Duration and rate of the connections.
#[derive(Debug)]
pub struct Pace<'a> {
    /// Once this is true it ends.
    pub enough: &'a AtomicBool,
    /// Between two chunks, and between two connections: the load is bounded.
    pub pause: Duration,
}

/// One connection, until there is enough.
#[must_use]
pub fn stream(server: SocketAddr, pace: &Pace<'_>) -> Talked {
    let mut talked = Talked::new(server);
    let outcome = connect(server).and_then(|mut connection| {
        while pace.goes_on() {
            talked.round(|number| connection.exchange(number))?;
        }
        connection.close()
    });
    talked.ended(outcome)
}

/// A connection after the other, until there is enough.
#[must_use]
pub fn knock(server: SocketAddr, pace: &Pace<'_>) -> Talked {
    let mut talked = Talked::new(server);
    let mut outcome = Ok(());
    while outcome.is_ok() && pace.goes_on() {
        outcome = talked.round(|_| connect(server)?.close());
    }
    talked.ended(outcome)
}

impl Pace<'_> {
    /// Pauses, and says whether to go on.
    fn goes_on(&self) -> bool {
        thread::sleep(self.pause);
        !self.enough.load(Ordering::Relaxed)
    }
}

impl Talked {
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

    fn ended(mut self, outcome: anyhow::Result<()>) -> Self {
        self.error = outcome.err().map(|error| format!("{error:#}"));
        self
    }
}

struct Connection {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

/// Connect and read the first line.
fn connect(server: SocketAddr) -> anyhow::Result<Connection> {
    let writer = TcpStream::connect_timeout(&server, DEAD).context("connect")?;
    writer.set_read_timeout(Some(DEAD))?;
    writer.set_nodelay(true)?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let mut greeting = String::new();
    reader.read_line(&mut greeting).map_err(in_words)?;
    ensure!(greeting.ends_with('\n'), "closed before the first line");
    Ok(Connection { writer, reader })
}

impl Connection {
    /// Send a chunk that no other is like, and read it back.
    fn exchange(&mut self, number: u64) -> anyhow::Result<()> {
        let sent: Vec<u8> = number
            .to_be_bytes()
            .into_iter()
            .cycle()
            .take(CHUNK)
            .collect();
        self.writer.write_all(&sent).map_err(in_words)?;
        let mut back = vec![0; CHUNK];
        self.reader.read_exact(&mut back).map_err(in_words)?;
        ensure!(back == sent, "chunk {number} came back with other bytes");
        Ok(())
    }

    /// Close in both directions; nothing more may have come.
    fn close(mut self) -> anyhow::Result<()> {
        self.writer.shutdown(Shutdown::Write).map_err(in_words)?;
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map_err(in_words)?;
        ensure!(rest.is_empty(), "{} bytes too many", rest.len());
        Ok(())
    }
}

fn in_words(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::ConnectionReset => anyhow::anyhow!("reset"),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("no answer for {DEAD:?}"),
        ErrorKind::UnexpectedEof => anyhow::anyhow!("closed by the other side"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers `lines` and what it is sent, changed by `change`, so many connections.
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

    fn for_a_while(talk: fn(SocketAddr, &Pace<'_>) -> Talked, server: SocketAddr) -> Talked {
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let pace = Pace {
                enough: &enough,
                pause: Duration::from_millis(1),
            };
            let talking = scope.spawn(move || talk(server, &pace));
            thread::sleep(Duration::from_millis(100));
            enough.store(true, Ordering::Relaxed);
            talking.join().unwrap()
        })
    }

    #[test]
    fn echoed_tcp_data_is_counted_as_rounds() {
        for (talk, connections) in [(stream as fn(_, &Pace<'_>) -> _, 1), (knock, 1000)] {
            let talked = for_a_while(talk, server(connections, |_| {}));
            assert_eq!(talked.error, None);
            assert!(talked.rounds > 2, "{talked:?}");
        }
    }

    #[test]
    fn altered_bytes_and_refused_connections_are_errors() {
        let wrong = for_a_while(stream, server(1, |bytes| bytes[0] ^= 1));
        assert!(wrong.error.unwrap().contains("other bytes"));
        let gone = for_a_while(knock, server(1, |_| {}));
        assert_eq!(gone.rounds, 1);
        assert!(gone.error.is_some());
    }
}
