//! Counters of the worker threads. One thread writes each counter, and other threads read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// A packet from the link has a destination in no block of a peer.
    NoPeer,
    /// A packet from the link has no destination address, or its header does not allow segmentation.
    NotSegmentable,
    /// The kernel refused to send the datagram.
    SendFailed,
    /// The send buffer of the socket remained full.
    SendBuffer,
    /// The source address of a datagram is not a peer.
    NotAPeer,
    /// The source address of a datagram is a peer, and the source port is another port.
    Port,
    /// A datagram is empty.
    Empty,
    /// A datagram contains neither an IPv4 nor an IPv6 packet.
    NotIp,
    /// A datagram is shorter than the length in the IP header, or than the IP header.
    Truncated,
    /// A datagram is longer than the length in the IP header, or the header length is invalid.
    Malformed,
    /// A packet is longer than the MTU of the link.
    TooBig,
    /// The link refused the packet, for example because the link is down.
    LinkRefused,
}

impl DropReason {
    /// All reasons, in the order of declaration.
    pub const ALL: [Self; 12] = [
        Self::NoPeer,
        Self::NotSegmentable,
        Self::SendFailed,
        Self::SendBuffer,
        Self::NotAPeer,
        Self::Port,
        Self::Empty,
        Self::NotIp,
        Self::Truncated,
        Self::Malformed,
        Self::TooBig,
        Self::LinkRefused,
    ];

    /// The value of the label `reason` in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoPeer => "no_peer",
            Self::NotSegmentable => "not_segmentable",
            Self::SendFailed => "send_failed",
            Self::SendBuffer => "send_buffer",
            Self::NotAPeer => "not_a_peer",
            Self::Port => "port",
            Self::Empty => "empty",
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::TooBig => "too_big",
            Self::LinkRefused => "link_refused",
        }
    }
}

/// A counter with one writing thread, so that an addition needs no locked instruction.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`. Concurrent additions of several threads may be lost.
    pub fn add(&self, more: usize) {
        let sum = self.get().wrapping_add(more as u64);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one worker, which forwards packets in one direction.
#[derive(Debug, Default)]
pub struct Counters {
    /// Forwarded packets.
    pub packets: Count,
    /// Bytes of forwarded packets, without the outer headers.
    pub bytes: Count,
    /// Reads from the link, or receive calls on the socket.
    pub reads: Count,
    /// Writes to the link, or messages sent by the socket. Each has one packet or several.
    pub writes: Count,
    /// Messages for which the kernel refused segmentation (`UDP_SEGMENT`), and whose packets were sent one by one.
    pub refused_gso: Count,
    drops: [Count; DropReason::ALL.len()],
}

impl Counters {
    /// Counts dropped packets.
    pub fn dropped(&self, reason: DropReason, packets: usize) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.add(packets);
        }
    }

    /// The number of packets that were dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Count::get)
    }
}

/// The counters of the workers of one tunnel.
#[derive(Clone, Debug, Default)]
pub struct TunnelCounters {
    /// From the link to the sockets, one for each queue.
    pub outbound: Vec<Arc<Counters>>,
    /// From the sockets to the link, one for each socket.
    pub inbound: Vec<Arc<Counters>>,
}

impl TunnelCounters {
    /// All counters are zero.
    pub fn new(queues: usize, sockets: usize) -> Self {
        let zeros = |count| (0..count).map(|_| Arc::default()).collect();
        Self {
            outbound: zeros(queues),
            inbound: zeros(sockets),
        }
    }

    /// Packets dropped, in the order of [`DropReason::ALL`].
    pub fn drops(&self) -> [u64; DropReason::ALL.len()] {
        let all = || self.outbound.iter().chain(&self.inbound);
        DropReason::ALL.map(|reason| all().map(|counters| counters.drops(reason)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drop_reason_has_its_own_counter() {
        let counters = TunnelCounters::new(1, 1);
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            counters.outbound[0].dropped(reason, place);
            counters.inbound[0].dropped(reason, 1);
        }
        assert_eq!(
            counters.drops(),
            std::array::from_fn(|place| place as u64 + 1)
        );
    }
}
