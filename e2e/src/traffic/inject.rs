//! Sending packets that no socket would send: what the probe does for the lab's attacks.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use pnet_datalink::{Channel, Config, DataLinkSender};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// What to send again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Injection {
    /// An IP packet with its header. The kernel routes it to `to`, whatever destination the header has.
    Packet {
        /// Where the kernel routes it to.
        to: IpAddr,
        /// The packet.
        packet: Vec<u8>,
    },
    /// An Ethernet frame.
    Frame {
        /// The link that sends it.
        link: String,
        /// The frame.
        frame: Vec<u8>,
    },
    /// A datagram of an ordinary socket.
    Datagram {
        /// Its destination.
        to: SocketAddr,
        /// Its payload.
        payload: Vec<u8>,
    },
}

/// How often each was sent, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Numbers of packets and datagrams.
    pub sent: Vec<u64>,
    /// The last error of each.
    pub errors: Vec<Option<String>>,
}

/// Reads injections, one JSON object a line.
///
/// # Errors
/// A line is none.
pub fn read(lines: impl BufRead) -> anyhow::Result<Vec<Injection>> {
    let parse = |line: io::Result<String>| {
        let line = line?;
        serde_json::from_str(&line).with_context(|| format!("read injection {line:.80}"))
    };
    lines.lines().map(parse).collect()
}

/// Sends all, one after the other, round after round with a pause between.
///
/// # Errors
/// A socket cannot be made.
pub fn inject(
    injections: &[Injection],
    time: Duration,
    pause: Duration,
) -> anyhow::Result<Injected> {
    let mut sockets = Sockets::new()?;
    let mut injected = Injected {
        sent: vec![0; injections.len()],
        errors: vec![None; injections.len()],
    };
    let began = Instant::now();
    while began.elapsed() < time {
        let results = injections.iter().map(|injection| sockets.send(injection));
        let results: Vec<_> = results.collect();
        let counts = injected.sent.iter_mut().zip(&mut injected.errors);
        for (result, (sent, last)) in results.into_iter().zip(counts) {
            match result {
                Ok(()) => *sent += 1,
                Err(error) => *last = Some(error.to_string()),
            }
        }
        std::thread::sleep(pause);
    }
    Ok(injected)
}

struct Sockets {
    raw: [Socket; 2],
    plain: [UdpSocket; 2],
    links: BTreeMap<String, Box<dyn DataLinkSender>>,
}

impl Sockets {
    fn new() -> anyhow::Result<Self> {
        // With this protocol the program writes the IP header itself (raw(7)).
        let header = Some(Protocol::from(255));
        let raw = |domain| Socket::new(domain, Type::RAW, header).context("make a raw socket");
        let raw = [raw(Domain::IPV4)?, raw(Domain::IPV6)?];
        for socket in &raw {
            socket.set_broadcast(true)?;
        }
        let plain = [UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?];
        for socket in &plain {
            socket.set_broadcast(true)?;
        }
        let links = BTreeMap::new();
        Ok(Self { raw, plain, links })
    }

    /// The socket that sends frames by a link.
    fn link(&mut self, name: &str) -> anyhow::Result<&mut Box<dyn DataLinkSender>> {
        if !self.links.contains_key(name) {
            let interfaces = pnet_datalink::interfaces().into_iter();
            let mut interfaces = interfaces.filter(|interface| interface.name == name);
            let interface = interfaces
                .next()
                .with_context(|| format!("no link {name}"))?;
            let channel = pnet_datalink::channel(&interface, Config::default())?;
            let Channel::Ethernet(sender, _) = channel else {
                anyhow::bail!("link {name} has no Ethernet frames");
            };
            self.links.insert(name.to_owned(), sender);
        }
        self.links.get_mut(name).context("it was inserted")
    }

    fn send(&mut self, injection: &Injection) -> anyhow::Result<()> {
        if let Injection::Frame { link, frame } = injection {
            let sent = self.link(link)?.send_to(frame, None);
            return Ok(sent.context("the frame is too long")??);
        }
        let ([raw_v4, raw_v6], [plain_v4, plain_v6]) = (&self.raw, &self.plain);
        match injection {
            Injection::Frame { .. } => {}
            Injection::Packet { to, packet } => {
                let socket = if to.is_ipv4() { raw_v4 } else { raw_v6 };
                let to = SocketAddr::new(*to, 0);
                socket.send_to(packet, &SockAddr::from(to))?;
            }
            Injection::Datagram { to, payload } => {
                let socket = if to.is_ipv4() { plain_v4 } else { plain_v6 };
                socket.send_to(payload, to)?;
            }
        }
        Ok(())
    }
}
