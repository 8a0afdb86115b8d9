//! ICMP echo (RFC 792, RFC 4443) to many targets in parallel. Answers are matched to requests by sequence number.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, ppoll};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// The requests to each target.
#[derive(Clone, Debug)]
pub struct Request {
    /// The maximal number of requests to each target.
    pub count: u16,
    /// No more requests are sent when this is true.
    pub stop: Arc<AtomicBool>,
    /// Time between two requests.
    pub interval: Duration,
    /// Time after the last request in which answers count.
    pub wait: Duration,
    /// Size of the IP packet in bytes, with its header.
    pub size: usize,
    /// Number of first requests that are counted but not sent. The loss meter must detect them.
    pub withhold: u16,
}

/// The result of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The target.
    pub target: IpAddr,
    /// Number of requests sent.
    pub sent: u16,
    /// Number of requests answered.
    pub received: u16,
    /// The largest number of consecutive requests without an answer.
    #[serde(default)]
    pub gap: u16,
    /// The longest time between two requests, in milliseconds.
    #[serde(default)]
    pub pause: u64,
    /// The last error of sending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Parses the output of `netweft-probe ping`, one answer per line.
///
/// # Errors
/// A line is not an answer in JSON.
pub fn read_answers(lines: &str) -> anyhow::Result<Vec<Answer>> {
    let lines = lines.lines();
    lines
        .map(|line| serde_json::from_str(line).context("parse an answer of netweft-probe"))
        .collect()
}

/// Pings every target from a separate thread. The results are in the order of the targets.
///
/// # Errors
/// A socket cannot be created, which needs CAP_NET_RAW, or receiving fails.
pub fn all(targets: &[IpAddr], request: &Request) -> std::io::Result<Vec<Answer>> {
    let identifier = (std::process::id() & 0xffff) as u16;
    thread::scope(|scope| {
        let threads: Vec<_> = targets
            .iter()
            .enumerate()
            .map(|(n, target)| {
                let identifier = identifier.wrapping_add((n as u16).wrapping_mul(257));
                scope.spawn(move || ping(*target, identifier, request))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a pinging thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

fn ping(target: IpAddr, identifier: u16, request: &Request) -> std::io::Result<Answer> {
    let socket = open(target)?;
    let mut expected = Expected {
        target,
        identifier,
        count: request.count,
    };
    let mut answered = BTreeSet::new();
    let mut error = None;
    let (mut pause, mut before) = (Duration::ZERO, Instant::now());
    for sequence in 0..request.count {
        let now = Instant::now();
        pause = pause.max(now - before);
        before = now;
        if sequence >= request.withhold
            && let Err(failed) =
                socket.send(&echo_request(target, identifier, sequence, request.size))
        {
            error = Some(failed.to_string());
        }
        let last = sequence + 1 == request.count || request.stop.load(Ordering::Relaxed);
        if last {
            expected.count = sequence + 1;
        }
        let wait = if last { request.wait } else { request.interval };
        receive(&socket, &expected, Instant::now() + wait, &mut answered)?;
        if last {
            break;
        }
    }
    Ok(Answer {
        target,
        sent: expected.count,
        received: answered.len() as u16,
        gap: longest_gap(&answered, expected.count),
        pause: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        error,
    })
}

/// The largest number of consecutive values below `count` that are not in `answered`.
fn longest_gap(answered: &BTreeSet<u16>, count: u16) -> u16 {
    let ends = answered.iter().copied().chain([count]);
    let mut next = 0;
    let gaps = ends.map(|end| {
        let gap = end.saturating_sub(next);
        next = end.saturating_add(1);
        gap
    });
    gaps.max().unwrap_or_default()
}

/// The answers that match the requests.
struct Expected {
    target: IpAddr,
    identifier: u16,
    count: u16,
}

fn open(target: IpAddr) -> std::io::Result<Socket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // A connected socket receives only packets from the target.
    socket.connect(&SocketAddr::new(target, 0).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Collects answers until the deadline or until all have arrived.
fn receive(
    mut socket: &Socket,
    expected: &Expected,
    deadline: Instant,
    answered: &mut BTreeSet<u16>,
) -> std::io::Result<()> {
    let mut buffer = [0; 65536];
    while answered.len() < usize::from(expected.count) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // SO_RCVTIMEO has the resolution of kernel ticks, which are longer than some intervals.
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if ppoll(&mut ready, Some(left.into()), None)? == 0 {
            return Ok(());
        }
        match socket.read(&mut buffer) {
            Ok(read) => {
                answered.extend(expected.sequence_of(buffer.get(..read).unwrap_or_default()));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // An ICMP error for an earlier request is reported on the socket once; the request counts as lost.
            Err(_) => {}
        }
    }
    Ok(())
}

impl Expected {
    /// The sequence number, if the packet answers one of the requests. A raw IPv4 socket delivers also the IP header.
    fn sequence_of(&self, packet: &[u8]) -> Option<u16> {
        let (reply_type, icmp) = match self.target {
            IpAddr::V4(_) => (0, packet.get(usize::from(packet.first()? & 0x0f) * 4..)?),
            IpAddr::V6(_) => (129, packet),
        };
        let number = |at: usize| Some(u16::from_be_bytes([*icmp.get(at)?, *icmp.get(at + 1)?]));
        let matches = *icmp.first()? == reply_type && number(4)? == self.identifier;
        number(6).filter(|sequence| matches && *sequence < self.count)
    }
}

/// An echo request for an IP packet of `size` bytes.
fn echo_request(target: IpAddr, identifier: u16, sequence: u16, size: usize) -> Vec<u8> {
    let (request_type, header) = if target.is_ipv4() { (8, 20) } else { (128, 40) };
    let mut packet = vec![0xa5; size.saturating_sub(header).max(8)];
    let [id_high, id_low] = identifier.to_be_bytes();
    let [sequence_high, sequence_low] = sequence.to_be_bytes();
    for (to, from) in packet.iter_mut().zip([
        request_type,
        0,
        0,
        0,
        id_high,
        id_low,
        sequence_high,
        sequence_low,
    ]) {
        *to = from;
    }
    // The kernel computes ICMPv6's checksum (RFC 3542, section 3.1), but not ICMP's.
    if target.is_ipv4() {
        let [high, low] = checksum(&packet).to_be_bytes();
        for (to, from) in packet.iter_mut().skip(2).zip([high, low]) {
            *to = from;
        }
    }
    packet
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([
            pair.first().copied().unwrap_or(0),
            low,
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            target: "192.0.2.1".parse().unwrap(),
            identifier: 7,
            count: 3,
        }
    }

    fn reply(identifier: u16, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0x45; 1];
        packet.resize(20, 0);
        packet.extend(echo_request(
            "192.0.2.1".parse().unwrap(),
            identifier,
            sequence,
            84,
        ));
        packet[20] = 0;
        packet
    }

    #[test]
    fn ping_reply_of_other_request_is_ignored() {
        assert_eq!(expected().sequence_of(&reply(7, 2)), Some(2));
        assert_eq!(expected().sequence_of(&reply(8, 2)), None);
        assert_eq!(expected().sequence_of(&reply(7, 3)), None);
        assert_eq!(expected().sequence_of(&[]), None);
        let mut request = reply(7, 2);
        request[20] = 8;
        assert_eq!(expected().sequence_of(&request), None);
    }

    #[test]
    fn longest_gap_is_found_at_start_middle_and_end() {
        let gap = |answered: &[u16]| longest_gap(&answered.iter().copied().collect(), 5);
        assert_eq!(gap(&[0, 1, 2, 3, 4]), 0);
        assert_eq!(gap(&[2, 4]), 2);
        assert_eq!(gap(&[0]), 4);
        assert_eq!(gap(&[0, 4]), 3);
        assert_eq!(gap(&[]), 5);
    }

    #[test]
    fn ping_ends_when_stop_is_set() {
        let request = |stop| Request {
            count: 3,
            stop: Arc::new(AtomicBool::new(stop)),
            interval: Duration::from_millis(1),
            wait: Duration::from_millis(1),
            size: 84,
            withhold: 3,
        };
        let sent =
            |stop| ping("127.0.0.1".parse().unwrap(), 9, &request(stop)).map(|answer| answer.sent);
        assert_eq!(sent(true).unwrap(), 1);
        assert_eq!(sent(false).unwrap(), 3);
    }

    #[test]
    fn echo_request_has_given_size_and_valid_checksum() {
        let packet = echo_request("192.0.2.1".parse().unwrap(), 1, 2, 1350);
        assert_eq!(packet.len(), 1330);
        assert_eq!(checksum(&packet), 0);
    }
}
