//! The task: ask the probes of probes by ICMP echo (RFC 792, RFC 4443) until each is answered.
//!
//! A probe is bound to the link of the way that stands by, so that the kernel takes the route over it although a better one is
//! in use; the answer comes by whatever way its sender uses. The sockets can do nothing but echo, and need no capability where
//! `net.ipv4.ping_group_range` includes the agent's group.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netweft_netstate::model::LinkName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::desired::probe_plan::{Probe, ProbePlan};
use crate::telemetry::failure_log::FailureLog;

/// Pause between two looks for answers.
const LOOK: Duration = Duration::from_millis(50);
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
}

impl ProbeHandle {
    /// Says what is to be tried. What was answered before counts.
    pub fn want(&self, probes: &[ProbePlan]) {
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

    /// To be told when something else is found.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<ProbeResults> {
        self.answers.clone()
    }

    /// ProbeHandle that nobody asks, and what stands for who would.
    #[cfg(test)]
    pub fn alone() -> (Self, watch::Sender<ProbeResults>) {
        let (orders, _) = watch::channel(BTreeSet::new());
        let (sender, answers) = watch::channel(ProbeResults::default());
        (Self { orders, answers }, sender)
    }
}

/// The task's end.
pub struct Prober {
    orders: watch::Receiver<BTreeSet<Probe>>,
    answers: watch::Sender<ProbeResults>,
    sent: BTreeMap<u16, Probe>,
    next: u16,
    failure_log: FailureLog,
}

impl Prober {
    /// A prober that has asked nothing, and the link to it.
    #[must_use]
    pub fn new() -> (Self, ProbeHandle) {
        let (sender, orders) = watch::channel(BTreeSet::new());
        let (answers, receiver) = watch::channel(ProbeResults::default());
        let prober = Self {
            orders,
            answers,
            sent: BTreeMap::new(),
            next: 0,
            failure_log: FailureLog::default(),
        };
        let probes = ProbeHandle {
            orders: sender,
            answers: receiver,
        };
        (prober, probes)
    }

    /// Runs until nobody wants anything any more.
    pub async fn run(mut self) {
        loop {
            let orders = self.orders.borrow_and_update().clone();
            self.sent.clear();
            let known = self.answers.borrow().answered.clone();
            let mut open: BTreeSet<Probe> = orders.difference(&known).cloned().collect();
            self.tell(&ProbeResults {
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
        let mut problem = None;
        let mut sockets = Vec::new();
        for ipv4 in [true, false] {
            let of_family = open.iter().filter(|it| it.to.is_ipv4() == ipv4);
            let probes: Vec<Probe> = of_family.cloned().collect();
            if probes.is_empty() {
                continue;
            }
            match self.ask_all(&probes, &mut problem) {
                Ok(asked) => sockets.extend(asked),
                Err(error) => problem = Some(format!("cannot ask by ICMP echo: {error}")),
            }
        }
        for _ in 0..LOOKS {
            sleep(LOOK).await;
            for number in sockets.iter().flat_map(heard) {
                if let Some(probe) = self.sent.get(&number) {
                    open.remove(probe);
                }
            }
            if open.is_empty() {
                break;
            }
        }
        self.failure_log.are(problem.clone());
        self.tell(&ProbeResults {
            answered: orders.difference(open).cloned().collect(),
            problem,
        });
    }

    /// Asks, and gives the sockets on which answers can come: one that hears them from any link, and those that were bound to one
    /// for the probe. The kernel tells answers by their number (`ping_lookup`), which all have in common.
    fn ask_all(
        &mut self,
        probes: &[Probe],
        problem: &mut Option<String>,
    ) -> io::Result<Vec<Socket>> {
        let ipv4 = probes.first().is_some_and(|it| it.to.is_ipv4());
        let ear = socket(ipv4, None, (None, 0))?;
        let own = ear.local_addr()?.as_socket();
        let identifier = own.map(|own| own.port()).unwrap_or_default();
        let mut sockets = vec![ear];
        for probe in probes {
            self.next = self.next.wrapping_add(1);
            let asked = socket(ipv4, Some(&probe.link), (probe.from, identifier));
            let asked = asked.and_then(|socket| {
                let to = SocketAddr::new(probe.to, 0);
                socket.send_to(&request(ipv4, self.next), &to.into())?;
                Ok(socket)
            });
            match asked {
                Ok(socket) => {
                    self.sent.insert(self.next, probe.clone());
                    sockets.push(socket);
                }
                Err(error) => {
                    let Probe { link, to, .. } = probe;
                    *problem = Some(format!("cannot ask {to} by {link}: {error}"));
                }
            }
        }
        Ok(sockets)
    }

    fn tell(&self, found: &ProbeResults) {
        self.answers.send_if_modified(|known| {
            let news = known != found;
            if news {
                known.clone_from(found);
            }
            news
        });
    }
}

/// Marks requests of ours.
const MARK: &[u8; 8] = b"netweft?";

/// A socket for ICMP echo alone, bound to an address, where one is given, and an identifier, where it is not 0.
pub(crate) fn socket(
    ipv4: bool,
    link: Option<&LinkName>,
    (from, identifier): (Option<IpAddr>, u16),
) -> io::Result<Socket> {
    let (domain, protocol, any) = if ipv4 {
        (Domain::IPV4, Protocol::ICMPV4, IpAddr::from([0; 4]))
    } else {
        (Domain::IPV6, Protocol::ICMPV6, IpAddr::from([0; 16]))
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if let Some(link) = link {
        socket.bind_device(Some(link.as_str().as_bytes()))?;
    }
    socket.bind(&SocketAddr::new(from.unwrap_or(any), identifier).into())?;
    Ok(socket)
}

/// An echo request. Checksum and identifier are the kernel's.
pub(crate) fn request(ipv4: bool, number: u16) -> Vec<u8> {
    let kind = if ipv4 { 8 } else { 128 };
    let [high, low] = number.to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, 0, 0, high, low];
    packet.extend(MARK);
    packet
}

/// The numbers of the answers that have come in.
pub(crate) fn heard(socket: &Socket) -> Vec<u16> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 256];
    let mut socket = socket;
    while let Ok(length) = socket.read(&mut buffer) {
        numbers.extend(buffer.get(..length).and_then(answer));
    }
    numbers
}

/// The number of an answer to a request of ours.
fn answer(packet: &[u8]) -> Option<u16> {
    match packet {
        [0 | 129, 0, _, _, _, _, high, low, mark @ ..] if mark.starts_with(MARK) => {
            Some(u16::from_be_bytes([*high, *low]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_kind_number_and_mark() {
        for (ipv4, reply) in [(true, 0), (false, 129)] {
            let mut packet = request(ipv4, 513);
            assert_eq!(answer(&packet), None, "a request");
            packet[0] = reply;
            assert_eq!(answer(&packet), Some(513));
            assert_eq!(answer(&packet[..10]), None);
            packet[9] ^= 1;
            assert_eq!(answer(&packet), None, "somebody else's");
            assert_eq!(answer(&[]), None);
        }
    }
}
