//! The probe, a program for test pods and nodes: ping, test server, client and load. It reports results without evaluating them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use netweft_e2e::traffic::inject;
use netweft_e2e::traffic::ping::{self, Request};
use netweft_e2e::traffic::tcp::{self, Pace};

/// Generates and answers test traffic.
#[derive(Parser)]
#[command(name = "netweft-probe", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Ping all targets in parallel. Prints one JSON line for each target, in the order of the targets.
    Ping(PingArgs),
    /// Answer TCP connections and UDP datagrams with the source and destination address, then echo the received bytes.
    Serve {
        /// The port.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Send a request to test servers one after the other. Prints the first line of each answer.
    Ask {
        /// The transport protocol.
        protocol: Protocol,
        /// Servers, as address:port.
        #[arg(required = true)]
        servers: Vec<SocketAddr>,
        /// Bytes of payload, which the server must echo.
        #[arg(long, default_value_t = 0)]
        payload: usize,
    },
    /// Send packets of standard input, one JSON object on each line, repeatedly. Prints how often each was sent.
    Inject {
        /// Duration in milliseconds.
        #[arg(long)]
        time: u64,
        /// Milliseconds between two rounds.
        #[arg(long, default_value_t = 100)]
        pause: u64,
    },
    /// Exchange data with test servers by TCP until standard input ends: one long connection to each server, and short connections one
    /// after the other. Prints one JSON line for each long connection, then one for the short connections to each server.
    Talk {
        /// Servers, as address:port.
        #[arg(required = true)]
        servers: Vec<SocketAddr>,
        /// Milliseconds between two chunks, and between two connections.
        #[arg(long, default_value_t = 5)]
        pause: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(Args)]
struct PingArgs {
    /// Addresses to ping.
    #[arg(required = true)]
    targets: Vec<IpAddr>,
    /// Maximal number of pings to each target.
    #[arg(long, default_value_t = 3)]
    count: u16,
    /// Stop when standard input ends.
    #[arg(long)]
    until_eof: bool,
    /// Milliseconds between two pings to a target.
    #[arg(long, default_value_t = 100)]
    interval: u64,
    /// Milliseconds to wait for the last answer.
    #[arg(long, default_value_t = 2000)]
    wait: u64,
    /// Size of the IP packet in bytes, with its header.
    #[arg(long, default_value_t = 84)]
    size: usize,
    /// Number of first requests to each target that are counted but not sent.
    #[arg(long, default_value_t = 0)]
    withhold: u16,
}

const TIMEOUT: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    match Command::parse().verb {
        Verb::Ping(args) => ping(args),
        Verb::Serve { port } => serve(port),
        Verb::Ask {
            protocol,
            servers,
            payload,
        } => {
            let request = match protocol {
                Protocol::Tcp => request_tcp,
                Protocol::Udp => request_udp,
            };
            servers
                .iter()
                .try_for_each(|server| request(*server, payload))
        }
        Verb::Inject { time, pause } => {
            let injections = inject::read(std::io::stdin().lock())?;
            let [time, pause] = [time, pause].map(Duration::from_millis);
            let injected = inject::inject(&injections, time, pause)?;
            println!("{}", serde_json::to_string(&injected)?);
            Ok(())
        }
        Verb::Talk { servers, pause } => generate_tcp_load(&servers, Duration::from_millis(pause)),
    }
}

/// A flag that becomes true when standard input ends, which also happens when the caller ends.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    thread::spawn(move || {
        // An error ends the input, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    ended
}

/// A kind of TCP load.
type TcpLoad = fn(SocketAddr, &Pace<'_>) -> tcp::TcpResult;

fn generate_tcp_load(servers: &[SocketAddr], pause: Duration) -> anyhow::Result<()> {
    let stop = end_of_input();
    let loads: [TcpLoad; 2] = [tcp::long_connection, tcp::short_connections];
    let pace = Pace { stop: &stop, pause };
    let results: Vec<_> = thread::scope(|scope| {
        let pace = &pace;
        let start = |(load, server): (TcpLoad, SocketAddr)| scope.spawn(move || load(server, pace));
        let pairs = loads
            .iter()
            .flat_map(|load| servers.iter().map(|server| (*load, *server)));
        let threads: Vec<_> = pairs.map(start).collect();
        threads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    for result in results {
        let result = result.map_err(|_| anyhow::anyhow!("a thread of the TCP load panicked"))?;
        println!("{}", serde_json::to_string(&result)?);
    }
    Ok(())
}

fn ping(args: PingArgs) -> anyhow::Result<()> {
    let PingArgs {
        targets,
        count,
        until_eof,
        interval,
        wait,
        size,
        withhold,
    } = args;
    let stop = if until_eof {
        end_of_input()
    } else {
        Arc::default()
    };
    let (interval, wait) = (Duration::from_millis(interval), Duration::from_millis(wait));
    let request = Request {
        count,
        stop,
        interval,
        wait,
        size,
        withhold,
    };
    for answer in ping::all(&targets, &request)? {
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// The first line of a server's answer, before the echo.
fn greeting(peer: SocketAddr, own: SocketAddr) -> String {
    format!(
        "peer={} own={}\n",
        peer.ip().to_canonical(),
        own.ip().to_canonical()
    )
}

fn serve(port: u16) -> anyhow::Result<()> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let any = if UdpSocket::bind(any).is_ok() {
        any
    } else {
        SocketAddr::from(([0, 0, 0, 0], port))
    };
    let listener = TcpListener::bind(any).with_context(|| format!("listen on TCP port {port}"))?;
    let socket = UdpSocket::bind(any).with_context(|| format!("listen on UDP port {port}"))?;
    thread::spawn(move || serve_udp(&socket));
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // An error of one connection is the client's to report.
            let _ = serve_tcp(stream);
        });
    }
    Ok(())
}

fn serve_tcp(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let greeting = greeting(stream.peer_addr()?, stream.local_addr()?);
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 16384];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(buffer.get(..read).unwrap_or_default())?,
        }
    }
}

fn serve_udp(socket: &UdpSocket) {
    let mut buffer = [0; 65536];
    while let Ok((read, peer)) = socket.recv_from(&mut buffer) {
        let Ok(own) = socket.local_addr() else {
            continue;
        };
        let mut answer = greeting(peer, own).into_bytes();
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        // The client detects an answer that could not be sent as a lost datagram.
        let _ = socket.send_to(&answer, peer);
    }
}

fn request_tcp(server: SocketAddr, payload: usize) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let sent = vec![0x5a; payload];
    let mut writer = stream.try_clone()?;
    let bytes = sent.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&bytes)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("read from {server}"))?;
    sender
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    check_and_print(&answer, &sent)
}

fn request_udp(server: SocketAddr, payload: usize) -> anyhow::Result<()> {
    let any: IpAddr = if server.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sent = vec![0x5a; payload];
    let mut buffer = vec![0; 65536];
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        socket.send(&sent)?;
        match socket.recv(&mut buffer) {
            Ok(read) => return check_and_print(buffer.get(..read).unwrap_or_default(), &sent),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error).with_context(|| format!("receive from {server}")),
        }
    }
    bail!("no answer from {server} within {TIMEOUT:?}")
}

/// Prints the first line of an answer. The rest must be the echo of `sent`.
fn check_and_print(answer: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    let end = answer
        .iter()
        .position(|byte| *byte == b'\n')
        .context("the answer has no first line")?;
    let (greeting, echoed) = answer.split_at(end + 1);
    if echoed != sent {
        bail!(
            "{} bytes were sent and {} other bytes came back",
            sent.len(),
            echoed.len()
        );
    }
    print!("{}", String::from_utf8_lossy(greeting));
    Ok(())
}
