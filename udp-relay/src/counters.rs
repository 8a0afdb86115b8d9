//! What workers count: plain numbers that one thread writes and others read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// From the link, to an address in no peer's block.
    NoPeer,
    /// From the link, not to be cut as it says, or without an address.
    NotSegmentable,
    /// The kernel did not take the datagram.
    SendFailed,
    /// The socket's send buffer stayed full.
    SendBuffer,
    /// The datagram came from an address that is no peer's.
    NotAPeer,
    /// The datagram came from a peer, but from another port.
    Port,
    /// The datagram is empty.
    Empty,
    /// It begins like neither an IPv4 nor an IPv6 packet.
    NotIp,
    /// It is shorter than its header says, or than a header.
    Truncated,
    /// It is longer than its header says, or its header is shorter than one can be.
    Malformed,
    /// It is longer than the link's MTU.
    TooBig,
    /// The link did not take the packet; it is down, perhaps.
    LinkRefused,
}

impl Drop {
    /// All of them, in order.
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

    /// Its label in metrics.
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

/// A number that one thread alone adds to, so that adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`. Of several threads that do so at once, one may be forgotten.
    pub fn add(&self, more: usize) {
        let sum = self.get().wrapping_add(more as u64);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker has done. It carries packets in one direction.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets carried.
    pub packets: Count,
    /// Their bytes, without what the relay puts around them.
    pub bytes: Count,
    /// Reads from the link, or receive calls on the socket.
    pub reads: Count,
    /// Writes to the link, or messages sent by the socket; each carries one packet or many.
    pub writes: Count,
    /// Messages that the kernel would not cut, and which were sent packet by packet.
    pub refused_gso: Count,
    drops: [Count; Drop::ALL.len()],
}

impl Counters {
    /// Packets have been dropped.
    pub fn dropped(&self, reason: Drop, packets: usize) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.add(packets);
        }
    }

    /// How many were dropped for a reason.
    pub fn drops(&self, reason: Drop) -> u64 {
        self.drops.get(reason as usize).map_or(0, Count::get)
    }
}

/// The counts of one tunnel's workers.
#[derive(Clone, Debug, Default)]
pub struct TunnelCounters {
    /// From the link to the socket, one for each queue.
    pub outbound: Vec<Arc<Counters>>,
    /// From the socket to the link.
    pub inbound: Vec<Arc<Counters>>,
}

impl TunnelCounters {
    /// All at zero.
    pub fn new(queues: usize, sockets: usize) -> Self {
        let zeros = |count| (0..count).map(|_| Arc::default()).collect();
        Self {
            outbound: zeros(queues),
            inbound: zeros(sockets),
        }
    }

    /// Packets dropped, in the order of [`Drop::ALL`].
    pub fn drops(&self) -> [u64; Drop::ALL.len()] {
        let all = || self.outbound.iter().chain(&self.inbound);
        Drop::ALL.map(|reason| all().map(|counters| counters.drops(reason)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drop_reason_has_its_own_counter() {
        let counters = TunnelCounters::new(1, 1);
        for (place, reason) in Drop::ALL.into_iter().enumerate() {
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
