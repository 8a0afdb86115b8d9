//! Injection of raw packets and frames, for the attacks of the lab.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use pnet_datalink::{Channel, Config, DataLinkSender};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A packet that is sent repeatedly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Injection {
    /// An IP packet with its header. The kernel routes the packet to `to` instead of the destination in the header.
    Packet {
        /// The destination for routing.
        to: IpAddr,
        /// The packet.
        packet: Vec<u8>,
    },
    /// An Ethernet frame.
    Frame {
        /// The link that sends the frame.
        link: String,
        /// The frame.
        frame: Vec<u8>,
    },
    /// A datagram of an ordinary socket.
    Datagram {
        /// The destination.
        to: SocketAddr,
        /// The payload.
        payload: Vec<u8>,
    },
}

/// The results of all injections, in the order of the injections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// How often each was sent.
    pub sent: Vec<u64>,
    /// The last error of each.
    pub errors: Vec<Option<String>>,
}

/// Reads injections, one JSON object a line.
///
/// # Errors
/// A line is not a valid injection, or reading fails.
pub fn read(lines: impl BufRead) -> anyhow::Result<Vec<Injection>> {
    let parse = |line: io::Result<String>| {
        let line = line?;
        serde_json::from_str(&line).with_context(|| format!("read injection {line:.80}"))
    };
    lines.lines().map(parse).collect()
}

/// Sends all injections, one after the other, in rounds with a `pause` between them, until `time` is over.
///
/// # Errors
/// A socket cannot be created. Errors of sending are in the result.
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
    let started = Instant::now();
    while started.elapsed() < time {
        let results = injections.iter().map(|injection| sockets.send(injection));
        let results: Vec<_> = results.collect();
        let counts = injected.sent.iter_mut().zip(&mut injected.errors);
        for (result, (sent, last_error)) in results.into_iter().zip(counts) {
            match result {
                Ok(()) => *sent += 1,
                Err(error) => *last_error = Some(error.to_string()),
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
        let raw = |domain| Socket::new(domain, Type::RAW, header).context("create a raw socket");
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

    /// The socket that sends frames on a link.
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
        self.links
            .get_mut(name)
            .context("the link was inserted before")
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
