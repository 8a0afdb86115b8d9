//! Sends the probes of all probe plans by ICMP echo (RFC 792, RFC 4443) and by UDP until each is answered.
//!
//! A probe is bound to the link of the standby datapath, so that the kernel selects the route over it although a better one exists.
//! The reply comes by the datapath that the other node uses. ICMP sockets of type `SOCK_DGRAM` support echo only, and need no
//! capability if `net.ipv4.ping_group_range` includes the agent's group. The other agent answers UDP (see `responder`).

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

/// Interval at which the sockets are read.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of reads between two rounds of probes.
const POLLS_PER_ROUND: u32 = 10;

/// The results of the probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Probes with a reply.
    pub answered: BTreeSet<Probe>,
    /// Why probes cannot be sent.
    pub problem: Option<String>,
}

/// The reconciler's handle to the task.
pub struct ProbeHandle {
    probes: watch::Sender<BTreeSet<Probe>>,
    results: watch::Receiver<ProbeResults>,
    port: u16,
}

impl ProbeHandle {
    /// The UDP port on which agents answer.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Sets the probes. Earlier replies to them count.
    pub fn set_plans(&self, plans: &[ProbePlan]) {
        let targets = plans.iter().flat_map(|plan| plan.targets.values());
        let probes: BTreeSet<Probe> = targets
            .flat_map(|target| target.probes.iter().cloned())
            .collect();
        self.probes.send_if_modified(|current| {
            let changed = *current != probes;
            *current = probes;
            changed
        });
    }

    /// The last results.
    #[must_use]
    pub fn results(&self) -> ProbeResults {
        self.results.borrow().clone()
    }

    /// Reports each change of the results.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<ProbeResults> {
        self.results.clone()
    }

    /// A handle without a task, and the sender of its results.
    #[cfg(test)]
    pub fn detached() -> (Self, watch::Sender<ProbeResults>) {
        let (probes, _) = watch::channel(BTreeSet::new());
        let (sender, results) = watch::channel(ProbeResults::default());
        let handle = Self {
            probes,
            results,
            port: 9471,
        };
        (handle, sender)
    }
}

/// The task.
pub struct Prober {
    probes: watch::Receiver<BTreeSet<Probe>>,
    results: watch::Sender<ProbeResults>,
    port: u16,
    nonces: Nonces,
    failure_log: FailureLog,
}

impl Prober {
    /// A prober without probes, and its handle. `port` is the UDP port on which agents answer.
    #[must_use]
    pub fn new(port: u16) -> (Self, ProbeHandle) {
        let (sender, probes) = watch::channel(BTreeSet::new());
        let (results, receiver) = watch::channel(ProbeResults::default());
        let prober = Self {
            probes,
            results,
            port,
            nonces: Nonces::default(),
            failure_log: FailureLog::default(),
        };
        let handle = ProbeHandle {
            probes: sender,
            results: receiver,
            port,
        };
        (prober, handle)
    }

    /// Runs until the reconciler has ended.
    pub async fn run(mut self) {
        loop {
            let probes = self.probes.borrow_and_update().clone();
            let answered = self.results.borrow().answered.clone();
            let mut open: BTreeSet<Probe> = probes.difference(&answered).cloned().collect();
            self.publish(&ProbeResults {
                answered: probes.intersection(&answered).cloned().collect(),
                problem: None,
            });
            while !open.is_empty() && !self.probes.has_changed().unwrap_or(true) {
                self.run_round(&probes, &mut open).await;
            }
            if self.probes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends the `open` probes once, and reads the replies.
    async fn run_round(&mut self, probes: &BTreeSet<Probe>, open: &mut BTreeSet<Probe>) {
        let mut round = Round::default();
        for protocol in [Protocol::Icmp, Protocol::Udp(self.port)] {
            for ipv4 in [true, false] {
                let selected = open
                    .iter()
                    .filter(|it| it.to.is_ipv4() == ipv4 && protocol.is_part_of(it.protocol));
                let selected: Vec<Probe> = selected.cloned().collect();
                if !selected.is_empty()
                    && let Err(error) = round.send(protocol, ipv4, &selected, &mut self.nonces)
                {
                    round.problem = Some(format!("send probes by {protocol}: {error}"));
                }
            }
        }
        for _ in 0..POLLS_PER_ROUND {
            sleep(POLL_INTERVAL).await;
            for probe in round.answered() {
                open.remove(probe);
            }
            if open.is_empty() {
                break;
            }
        }
        self.failure_log.set(round.problem.clone());
        self.publish(&ProbeResults {
            answered: probes.difference(open).cloned().collect(),
            problem: round.problem,
        });
    }

    fn publish(&self, results: &ProbeResults) {
        self.results.send_if_modified(|current| {
            let changed = current != results;
            if changed {
                current.clone_from(results);
            }
            changed
        });
    }
}

/// Unpredictable nonces of requests.
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

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp,
    /// UDP with this destination port.
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
    const fn is_part_of(self, configured: ProbeProtocol) -> bool {
        match self {
            Self::Icmp => configured.uses_icmp(),
            Self::Udp(_) => configured.uses_udp(),
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

/// Requests that were sent together, and the sockets on which replies can arrive.
#[derive(Default)]
struct Round {
    sent: BTreeMap<u64, Probe>,
    sockets: Vec<(Protocol, UdpSocket)>,
    problem: Option<String>,
}

impl Round {
    /// Sends the probes of one protocol. Replies arrive on an unbound socket, or on the socket that is bound to the link of the probe.
    /// All sockets have the same identifier (ICMP, `ping_lookup`) or port (UDP, `udp4_lib_lookup`), by which the kernel finds them.
    fn send(
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
            let sent = bound_socket(protocol, probe, port).and_then(|socket| {
                let to = SocketAddr::new(probe.to, protocol.port());
                socket.send_to(&protocol.request(ipv4, nonce), to)?;
                Ok(socket)
            });
            match sent {
                Ok(socket) => {
                    self.sent.insert(nonce, probe.clone());
                    self.sockets.push((protocol, socket));
                }
                Err(error) => {
                    let Probe { link, to, .. } = probe;
                    let problem = format!("send a probe to {to} by {link} and {protocol}: {error}");
                    self.problem = Some(problem);
                }
            }
        }
        Ok(())
    }

    /// The probes whose replies have arrived. A reply counts only if it is from the destination of the probe.
    fn answered(&self) -> impl Iterator<Item = &Probe> {
        let sockets = self.sockets.iter();
        let replies = sockets.flat_map(|(protocol, socket)| replies(*protocol, socket));
        replies
            .filter_map(|(nonce, source)| self.sent.get(&nonce).filter(|probe| probe.to == source))
    }
}

/// The socket of a probe. It is bound to its address before its link, because IPv6 binds a UDP socket that is bound to a link only to
/// addresses of that link (`__inet6_bind`).
fn bound_socket(protocol: Protocol, probe: &Probe, port: u16) -> io::Result<UdpSocket> {
    let socket = socket(protocol, probe.to.is_ipv4(), (probe.from, port))?;
    let link: &LinkName = &probe.link;
    let socket = Socket::from(socket);
    socket.bind_device(Some(link.as_str().as_bytes()))?;
    Ok(socket.into())
}

/// A socket that is bound to an address, unless it is `None`, and to an identifier or port, unless it is 0.
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

/// The nonces and sources of the replies that have arrived.
pub(crate) fn replies(protocol: Protocol, socket: &UdpSocket) -> Vec<(u64, IpAddr)> {
    let mut replies = Vec::new();
    let mut buffer = [0; 256];
    while let Ok((length, source)) = socket.recv_from(&mut buffer) {
        let nonce = buffer
            .get(..length)
            .and_then(|packet| protocol.nonce(packet));
        replies.extend(nonce.map(|nonce| (nonce, source.ip())));
    }
    replies
}
