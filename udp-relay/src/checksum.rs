//! The Internet checksum (RFC 1071), in host byte order.
//!
//! The sum does not depend on the byte order if words are read and stored in the same byte order (RFC 1071, section 2 (B)).
//! Bytes are therefore not swapped. [`be`] converts a number for the addition to a sum.

/// The sum of `bytes`, which begin at an even offset of the summed data. Sums can be added.
pub fn sum(bytes: &[u8]) -> u64 {
    // Independent lanes, so that the compiler uses vector instructions.
    let mut lanes = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<4>();
    let mut last = [0u8; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    let words = words.iter().chain([&last]);
    lanes.iter().sum::<u64>()
        + words
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .sum::<u64>()
}

/// The summand of a number that is in network byte order in the packet.
pub fn be(number: u16) -> u64 {
    u64::from(number.to_be())
}

/// The summand that removes `number` from a sum.
pub fn minus(number: u64) -> u64 {
    u64::from(!fold(number))
}

/// A sum, folded to 16 bits.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The value of the checksum field for a sum without the field.
///
/// Zero is stored as 0xffff, because zero means "no checksum" in UDP (RFC 768). For TCP, both values are equivalent. The kernel does
/// the same (`skb_checksum_help`).
pub fn finish(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff, 0xff],
        field => field.to_ne_bytes(),
    }
}

/// Whether a sum that includes the checksum field is valid.
pub fn is_valid(sum: u64) -> bool {
    fold(sum) == u16::MAX
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sum in network byte order, word by word as in RFC 1071. Tests compare other functions with it.
    pub(crate) fn reference_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn checksum_matches_reference_implementation(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes)).to_be(), reference_sum(&bytes));
        }

        #[test]
        fn checksum_update_of_one_field_matches_full_sum(bytes in prop::collection::vec(any::<u8>(), 0..40), old: u16, new: u16) {
            let with = |number: u16| finish(sum(&bytes) + be(number));
            prop_assert_eq!(finish(sum(&bytes) + be(old) + minus(be(old)) + be(new)), with(new));
        }
    }

    #[test]
    fn checksum_of_all_ones_does_not_overflow() {
        assert_eq!(
            fold(sum(&[0xff; 65535])).to_be(),
            reference_sum(&[0xff; 65535])
        );
        assert_eq!(fold(u64::MAX), u16::MAX);
    }
}
