//! Sends the probes of all probe plans by ICMP echo (RFC 792, RFC 4443) and by UDP until each is answered.
//!
//! A probe is bound to the link of the way that stands by, so that the kernel takes the route over it although a better one is
//! in use; the answer comes by whatever way its sender uses. The sockets for ICMP can do nothing but echo, and need no capability where
//! `net.ipv4.ping_group_range` includes the agent's group. UDP is answered by the other agent (see `responder`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use netweft_crds::ProbeProtocol;
use netweft_netstate::model::LinkName;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::desired::probe_plan::{Probe, ProbePlan};
use crate::probes::packet;
use crate::telemetry::failure_log::FailureLog;

/// Pause between two looks for answers.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Looks between two rounds of probes.
const LOOKS: u32 = 10;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Questions that were answered.
    pub answered: BTreeSet<Probe>,
    /// Why nothing can be asked.
    pub problem: Option<String>,
}

/// The reconciler's end.
pub struct ProbeHandle {
    orders: watch::Sender<BTreeSet<Probe>>,
    answers: watch::Receiver<ProbeResults>,
    port: u16,
}

impl ProbeHandle {
    /// The UDP port on which agents are asked.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Says what is to be tried. What was answered before counts.
    pub fn set_plans(&self, probes: &[ProbePlan]) {
        let targets = probes
            .iter()
            .flat_map(|probe_plan| probe_plan.targets.values());
        let probes: BTreeSet<Probe> = targets
            .flat_map(|target| target.probes.iter().cloned())
            .collect();
        self.orders.send_if_modified(|known| {
            let news = *known != probes;
            *known = probes;
            news
        });
    }

    /// What was found last.
    #[must_use]
    pub fn answers(&self) -> ProbeResults {
        self.answers.borrow().clone()
    }

    /// Reports each change of the results.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<ProbeResults> {
        self.answers.clone()
    }

    /// A handle without a prober, and the sender of its results.
    #[cfg(test)]
    pub fn alone() -> (Self, watch::Sender<ProbeResults>) {
        let (orders, _) = watch::channel(BTreeSet::new());
        let (sender, answers) = watch::channel(ProbeResults::default());
        let probes = Self {
            orders,
            answers,
            port: 9471,
        };
        (probes, sender)
    }
}

/// The task's end.
pub struct Prober {
    orders: watch::Receiver<BTreeSet<Probe>>,
    answers: watch::Sender<ProbeResults>,
    port: u16,
    nonces: Nonces,
    failure_log: FailureLog,
}

impl Prober {
    /// A prober that has asked nothing, and the link to it. `port` is the UDP port on which agents answer.
    #[must_use]
    pub fn new(port: u16) -> (Self, ProbeHandle) {
        let (sender, orders) = watch::channel(BTreeSet::new());
        let (answers, receiver) = watch::channel(ProbeResults::default());
        let prober = Self {
            orders,
            answers,
            port,
            nonces: Nonces::default(),
            failure_log: FailureLog::default(),
        };
        let probes = ProbeHandle {
            orders: sender,
            answers: receiver,
            port,
        };
        (prober, probes)
    }

    /// Runs until the reconciler has ended.
    pub async fn run(mut self) {
        loop {
            let orders = self.orders.borrow_and_update().clone();
            let known = self.answers.borrow().answered.clone();
            let mut open: BTreeSet<Probe> = orders.difference(&known).cloned().collect();
            self.publish(&ProbeResults {
                answered: orders.intersection(&known).cloned().collect(),
                problem: None,
            });
            while !open.is_empty() && !self.orders.has_changed().unwrap_or(true) {
                self.ask(&orders, &mut open).await;
            }
            if self.orders.changed().await.is_err() {
                return;
            }
        }
    }

    /// One round of probes, and the answers to it.
    async fn ask(&mut self, orders: &BTreeSet<Probe>, open: &mut BTreeSet<Probe>) {
        let mut round = Round::default();
        for protocol in [Protocol::Icmp, Protocol::Udp(self.port)] {
            for ipv4 in [true, false] {
                let asked = open
                    .iter()
                    .filter(|it| it.to.is_ipv4() == ipv4 && protocol.is_of(it.probe));
                let asked: Vec<Probe> = asked.cloned().collect();
                if !asked.is_empty()
                    && let Err(error) = round.ask(protocol, ipv4, &asked, &mut self.nonces)
                {
                    round.problem = Some(format!("cannot ask by {protocol}: {error}"));
                }
            }
        }
        for _ in 0..LOOKS {
            sleep(POLL_INTERVAL).await;
            for probe in round.answered() {
                open.remove(probe);
            }
            if open.is_empty() {
                break;
            }
        }
        self.failure_log.are(round.problem.clone());
        self.publish(&ProbeResults {
            answered: orders.difference(open).cloned().collect(),
            problem: round.problem,
        });
    }

    fn publish(&self, found: &ProbeResults) {
        self.answers.send_if_modified(|known| {
            let news = known != found;
            if news {
                known.clone_from(found);
            }
            news
        });
    }
}

/// Unpredictable numbers of requests.
#[derive(Default)]
struct Nonces {
    secret: RandomState,
    count: u64,
}

impl Nonces {
    fn next(&mut self) -> u64 {
        self.count = self.count.wrapping_add(1);
        self.secret.hash_one(self.count)
    }
}

/// By what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp,
    /// To this port.
    Udp(u16),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("ICMP echo"),
            Self::Udp(port) => write!(f, "UDP port {port}"),
        }
    }
}

impl Protocol {
    const fn is_of(self, probe: ProbeProtocol) -> bool {
        match self {
            Self::Icmp => probe.uses_icmp(),
            Self::Udp(_) => probe.uses_udp(),
        }
    }

    pub(crate) fn request(self, ipv4: bool, nonce: u64) -> Vec<u8> {
        match self {
            Self::Icmp => packet::icmp_request(ipv4, nonce),
            Self::Udp(_) => packet::udp_request(nonce),
        }
    }

    fn nonce(self, packet: &[u8]) -> Option<u64> {
        match self {
            Self::Icmp => packet::icmp_nonce(packet),
            Self::Udp(_) => packet::udp_nonce(packet),
        }
    }

    /// The destination port; ICMP has none.
    const fn port(self) -> u16 {
        match self {
            Self::Icmp => 0,
            Self::Udp(port) => port,
        }
    }

    const fn of_ip(self, ipv4: bool) -> socket2::Protocol {
        match self {
            Self::Icmp if ipv4 => socket2::Protocol::ICMPV4,
            Self::Icmp => socket2::Protocol::ICMPV6,
            Self::Udp(_) => socket2::Protocol::UDP,
        }
    }
}

/// Requests that were sent together, and the sockets on which answers can come.
#[derive(Default)]
struct Round {
    sent: BTreeMap<u64, Probe>,
    sockets: Vec<(Protocol, UdpSocket)>,
    problem: Option<String>,
}

impl Round {
    /// Sends the probes of one protocol. Replies arrive on a socket that receives from any link, or on those that were bound to one for the probe. All have the same
    /// identifier (ICMP, `ping_lookup`) or port (UDP, `udp4_lib_lookup`), by which the kernel finds a socket.
    fn ask(
        &mut self,
        protocol: Protocol,
        ipv4: bool,
        probes: &[Probe],
        nonces: &mut Nonces,
    ) -> io::Result<()> {
        let any = socket(protocol, ipv4, (None, 0))?;
        let port = any.local_addr()?.port();
        self.sockets.push((protocol, any));
        for probe in probes {
            let nonce = nonces.next();
            let asked = bound(protocol, probe, port).and_then(|socket| {
                let to = SocketAddr::new(probe.to, protocol.port());
                socket.send_to(&protocol.request(ipv4, nonce), to)?;
                Ok(socket)
            });
            match asked {
                Ok(socket) => {
                    self.sent.insert(nonce, probe.clone());
                    self.sockets.push((protocol, socket));
                }
                Err(error) => {
                    let Probe { link, to, .. } = probe;
                    self.problem =
                        Some(format!("cannot ask {to} by {link} and {protocol}: {error}"));
                }
            }
        }
        Ok(())
    }

    /// The probes whose answers have come in, each from the address that was asked.
    fn answered(&self) -> impl Iterator<Item = &Probe> {
        let sockets = self.sockets.iter();
        let replies = sockets.flat_map(|(protocol, socket)| replies(*protocol, socket));
        replies
            .filter_map(|(nonce, source)| self.sent.get(&nonce).filter(|probe| probe.to == source))
    }
}

/// The socket of a probe. It is bound to its address before its link: to a link, IPv6 binds only the link's own addresses for UDP
/// (`__inet6_bind`).
fn bound(protocol: Protocol, probe: &Probe, port: u16) -> io::Result<UdpSocket> {
    let socket = socket(protocol, probe.to.is_ipv4(), (probe.from, port))?;
    let link: &LinkName = &probe.link;
    let socket = Socket::from(socket);
    socket.bind_device(Some(link.as_str().as_bytes()))?;
    Ok(socket.into())
}

/// A socket bound to an address, where one is given, and an identifier or port, where it is not 0.
pub(crate) fn socket(
    protocol: Protocol,
    ipv4: bool,
    (from, port): (Option<IpAddr>, u16),
) -> io::Result<UdpSocket> {
    let (domain, any) = if ipv4 {
        (Domain::IPV4, IpAddr::from([0; 4]))
    } else {
        (Domain::IPV6, IpAddr::from([0; 16]))
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol.of_ip(ipv4)))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(from.unwrap_or(any), port).into())?;
    Ok(socket.into())
}

/// The nonces of the answers that have come in, and where they came from.
pub(crate) fn replies(protocol: Protocol, socket: &UdpSocket) -> Vec<(u64, IpAddr)> {
    let mut answers = Vec::new();
    let mut buffer = [0; 256];
    while let Ok((length, source)) = socket.recv_from(&mut buffer) {
        let nonce = buffer
            .get(..length)
            .and_then(|packet| protocol.nonce(packet));
        answers.extend(nonce.map(|nonce| (nonce, source.ip())));
    }
    answers
}
