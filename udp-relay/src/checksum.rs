//! The Internet checksum (RFC 1071), in the machine's own byte order.
//!
//! The sum does not depend on the byte order as long as it is read and stored in the same one (RFC 1071, section 2 (B)),
//! so nothing is swapped on the way; [`be`] makes a number fit in.

/// The sum of `bytes`, which begin at an even offset of what is summed. Sums can be added.
pub fn sum(bytes: &[u8]) -> u64 {
    // Independent lanes, so that the compiler makes vector instructions of them.
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

/// A number as it counts in a sum where it stands in network order.
pub fn be(number: u16) -> u64 {
    u64::from(number.to_be())
}

/// What takes `number` out of a sum again.
pub fn minus(number: u64) -> u64 {
    u64::from(!fold(number))
}

/// The sum in 16 bits.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// What is stored in the field so that all adds up to zero.
///
/// Zero is stored as its other form, because UDP takes it for "no checksum" (RFC 768); for TCP both are the same. So does
/// the kernel's `skb_checksum_help`.
pub fn finish(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff, 0xff],
        field => field.to_ne_bytes(),
    }
}

/// Whether a sum that includes the field says that all is well.
pub fn is_right(sum: u64) -> bool {
    fold(sum) == u16::MAX
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word in network order, as RFC 1071 writes it.
    pub(crate) fn plain(bytes: &[u8]) -> u16 {
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
            prop_assert_eq!(fold(sum(&bytes)).to_be(), plain(&bytes));
        }

        #[test]
        fn checksum_update_of_one_field_matches_full_sum(bytes in prop::collection::vec(any::<u8>(), 0..40), old: u16, new: u16) {
            let with = |number: u16| finish(sum(&bytes) + be(number));
            prop_assert_eq!(finish(sum(&bytes) + be(old) + minus(be(old)) + be(new)), with(new));
        }
    }

    #[test]
    fn checksum_of_all_ones_does_not_overflow() {
        assert_eq!(fold(sum(&[0xff; 65535])).to_be(), plain(&[0xff; 65535]));
        assert_eq!(fold(u64::MAX), u16::MAX);
    }
}
