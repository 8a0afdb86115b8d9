//! The probe: the small program that test pods and test nodes run. It pings, serves and asks; it judges nothing.

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

/// Pings, serves and asks.
#[derive(Parser)]
#[command(name = "netweft-probe", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Ping all targets at once; one JSON line for each, in their order.
    Ping(PingArgs),
    /// Answer every TCP connection and UDP datagram on a port with the address it came from and the one it came to.
    Serve {
        /// The port.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Ask such servers one after the other, and print what they answer, a line for each.
    Ask {
        /// How.
        protocol: Protocol,
        /// The server, as address:port.
        #[arg(required = true)]
        servers: Vec<SocketAddr>,
        /// Bytes to send along and to get back.
        #[arg(long, default_value_t = 0)]
        payload: usize,
    },
    /// Send packets and datagrams again and again: those of standard input, one JSON object a line. Print how often each was sent.
    Inject {
        /// How long, in milliseconds.
        #[arg(long)]
        time: u64,
        /// Milliseconds between two rounds.
        #[arg(long, default_value_t = 100)]
        pause: u64,
    },
    /// Talk to such servers by TCP until standard input ends: over one connection each, and by one connection after the other. One
    /// JSON line for each of the former, then for each of the latter.
    Talk {
        /// The server, as address:port.
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
    /// The targets.
    #[arg(required = true)]
    targets: Vec<IpAddr>,
    /// Pings to each target, at most.
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
    /// Bytes of the whole IP packet.
    #[arg(long, default_value_t = 84)]
    size: usize,
    /// Count this many requests to each target without sending them: a loss that must be found.
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
            let ask = match protocol {
                Protocol::Tcp => ask_tcp,
                Protocol::Udp => ask_udp,
            };
            servers.iter().try_for_each(|server| ask(*server, payload))
        }
        Verb::Inject { time, pause } => {
            let injections = inject::read(std::io::stdin().lock())?;
            let [time, pause] = [time, pause].map(Duration::from_millis);
            let injected = inject::inject(&injections, time, pause)?;
            println!("{}", serde_json::to_string(&injected)?);
            Ok(())
        }
        Verb::Talk { servers, pause } => talk(&servers, Duration::from_millis(pause)),
    }
}

/// Becomes true when standard input ends, because the process that started the probe has ended.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    thread::spawn(move || {
        // Whatever ends it.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    ended
}

/// One of the two ways to talk.
type Talk = fn(SocketAddr, &Pace<'_>) -> tcp::Talked;

fn talk(servers: &[SocketAddr], pause: Duration) -> anyhow::Result<()> {
    let enough = end_of_input();
    let talks: [Talk; 2] = [tcp::stream, tcp::knock];
    let pace = Pace {
        enough: &enough,
        pause,
    };
    let talked: Vec<_> = thread::scope(|scope| {
        let pace = &pace;
        let start = |(talk, server): (Talk, SocketAddr)| scope.spawn(move || talk(server, pace));
        let pairs = talks
            .iter()
            .flat_map(|talk| servers.iter().map(|server| (*talk, *server)));
        let threads: Vec<_> = pairs.map(start).collect();
        threads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    for talked in talked {
        let talked = talked.map_err(|_| anyhow::anyhow!("a talking thread panicked"))?;
        println!("{}", serde_json::to_string(&talked)?);
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
    let enough = if until_eof {
        end_of_input()
    } else {
        Arc::default()
    };
    let (interval, wait) = (Duration::from_millis(interval), Duration::from_millis(wait));
    let request = Request {
        count,
        enough,
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

/// What a server sends to a client before it echoes the client's bytes.
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
            // A client that goes away is its own business.
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
        // An answer that cannot be sent is a lost datagram, which the client notices.
        let _ = socket.send_to(&answer, peer);
    }
}

fn ask_tcp(server: SocketAddr, payload: usize) -> anyhow::Result<()> {
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
    tell(&answer, &sent)
}

fn ask_udp(server: SocketAddr, payload: usize) -> anyhow::Result<()> {
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
            Ok(read) => return tell(buffer.get(..read).unwrap_or_default(), &sent),
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

fn tell(answer: &[u8], sent: &[u8]) -> anyhow::Result<()> {
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
