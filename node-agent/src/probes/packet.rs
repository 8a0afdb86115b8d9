//! The requests by which an agent tests whether a datapath forwards packets, and the replies.
//!
//! ```text
//!   UDP    "netweft?" nonce (8 bytes)                      reply of the other agent: "netweft!" and the nonce
//!   ICMP   type, code, checksum, identifier, sequence (8 bytes), "netweft?" nonce     reply of the kernel: the same data
//! ```
//!
//! A reply has the size of its request, so that it cannot be used for amplification. A reply is not a request, so that two agents
//! do not answer each other endlessly.

/// Length of a request and of a reply in bytes.
pub const LENGTH: usize = 16;
/// The first bytes of a request.
const REQUEST: [u8; 8] = *b"netweft?";
/// The first bytes of a reply by UDP.
const REPLY: [u8; 8] = *b"netweft!";

/// A request by UDP.
#[must_use]
pub fn udp_request(nonce: u64) -> Vec<u8> {
    [REQUEST, nonce.to_be_bytes()].concat()
}

/// The reply to a request by UDP; `None`: the packet is not a request.
#[must_use]
pub fn udp_reply(packet: &[u8]) -> Option<[u8; LENGTH]> {
    let mut reply: [u8; LENGTH] = packet.try_into().ok()?;
    let (start, _) = reply.split_first_chunk_mut()?;
    (*start == REQUEST).then(|| *start = REPLY)?;
    Some(reply)
}

/// The nonce of a reply by UDP.
#[must_use]
pub fn udp_nonce(packet: &[u8]) -> Option<u64> {
    nonce(packet, REPLY)
}

/// An ICMP echo request (RFC 792, RFC 4443 section 4.1). The kernel sets checksum and identifier.
#[must_use]
pub fn icmp_request(ipv4: bool, nonce: u64) -> Vec<u8> {
    let kind = if ipv4 { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &udp_request(nonce)].concat()
}

/// The nonce of an ICMP echo reply to a probe.
#[must_use]
pub fn icmp_nonce(packet: &[u8]) -> Option<u64> {
    match packet {
        [0 | 129, 0, _, _, _, _, _, _, data @ ..] => nonce(data, REQUEST),
        _ => None,
    }
}

fn nonce(data: &[u8], expected: [u8; 8]) -> Option<u64> {
    let (start, nonce) = data.split_first_chunk()?;
    (*start == expected).then_some(())?;
    Some(u64::from_be_bytes(nonce.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn udp_echo_answers_exact_request_with_equal_size() {
        let request = udp_request(NONCE);
        let reply = udp_reply(&request).unwrap();
        assert_eq!(reply.len(), request.len());
        assert_eq!(udp_nonce(&reply), Some(NONCE));
        assert_eq!(udp_nonce(&request), None);
        assert_eq!(udp_reply(&reply), None);
        assert_eq!(udp_reply(&[]), None);
        assert_eq!(udp_reply(&request[..LENGTH - 1]), None);
        assert_eq!(udp_reply(&[&request[..], &[0]].concat()), None);
        for at in 0..REQUEST.len() {
            let mut other = request.clone();
            other[at] ^= 1;
            assert_eq!(udp_reply(&other), None);
        }
    }

    #[test]
    fn icmp_reply_is_recognised_by_type_and_data() {
        for (ipv4, reply) in [(true, 0), (false, 129)] {
            let mut packet = icmp_request(ipv4, NONCE);
            assert_eq!(icmp_nonce(&packet), None, "a request");
            packet[0] = reply;
            assert_eq!(icmp_nonce(&packet), Some(NONCE));
            assert_eq!(icmp_nonce(&packet[..packet.len() - 1]), None);
            assert_eq!(icmp_nonce(&[&packet[..], &[0]].concat()), None);
            packet[9] ^= 1;
            assert_eq!(icmp_nonce(&packet), None, "of another program");
            assert_eq!(icmp_nonce(&[]), None);
        }
    }
}
