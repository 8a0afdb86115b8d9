//! The requests by which an agent tests whether a datapath carries packets, and the replies.
//!
//! ```text
//!   UDP    "netweft?" nonce (8 bytes)                      answered by the other agent: "netweft!" and the nonce
//!   ICMP   type, code, checksum, identifier, sequence (8 bytes), "netweft?" nonce     answered by the kernel: the same data
//! ```
//!
//! An answer has the size of its request, so that nobody gets more out than is put in, and no answer is a request, so that two agents do not answer
//! each other for ever.

/// Bytes of a request and of an answer.
pub const LENGTH: usize = 16;
/// Begins requests.
const REQUEST: [u8; 8] = *b"netweft?";
/// Begins answers by UDP.
const ANSWER: [u8; 8] = *b"netweft!";

/// A request by UDP.
#[must_use]
pub fn udp_request(nonce: u64) -> Vec<u8> {
    [REQUEST, nonce.to_be_bytes()].concat()
}

/// The answer to a request by UDP; `None`: it is none.
#[must_use]
pub fn udp_answer(packet: &[u8]) -> Option<[u8; LENGTH]> {
    let mut answer: [u8; LENGTH] = packet.try_into().ok()?;
    let (mark, _) = answer.split_first_chunk_mut()?;
    (*mark == REQUEST).then(|| *mark = ANSWER)?;
    Some(answer)
}

/// The nonce of an answer by UDP.
#[must_use]
pub fn udp_nonce(packet: &[u8]) -> Option<u64> {
    nonce(packet, ANSWER)
}

/// An ICMP echo request (RFC 792, RFC 4443 section 4.1). Checksum and identifier are the kernel's.
#[must_use]
pub fn icmp_request(ipv4: bool, nonce: u64) -> Vec<u8> {
    let kind = if ipv4 { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &udp_request(nonce)].concat()
}

/// The nonce of an ICMP echo reply to a request of ours.
#[must_use]
pub fn icmp_nonce(packet: &[u8]) -> Option<u64> {
    match packet {
        [0 | 129, 0, _, _, _, _, _, _, data @ ..] => nonce(data, REQUEST),
        _ => None,
    }
}

fn nonce(data: &[u8], expected: [u8; 8]) -> Option<u64> {
    let (mark, nonce) = data.split_first_chunk()?;
    (*mark == expected).then_some(())?;
    Some(u64::from_be_bytes(nonce.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn udp_echo_answers_exact_request_with_equal_size() {
        let request = udp_request(NONCE);
        let answer = udp_answer(&request).unwrap();
        assert_eq!(answer.len(), request.len());
        assert_eq!(udp_nonce(&answer), Some(NONCE));
        assert_eq!(udp_nonce(&request), None);
        assert_eq!(udp_answer(&answer), None);
        assert_eq!(udp_answer(&[]), None);
        assert_eq!(udp_answer(&request[..LENGTH - 1]), None);
        assert_eq!(udp_answer(&[&request[..], &[0]].concat()), None);
        for at in 0..REQUEST.len() {
            let mut other = request.clone();
            other[at] ^= 1;
            assert_eq!(udp_answer(&other), None);
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
