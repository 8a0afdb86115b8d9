//! Damaged input for property tests of decoders. The crates include this file.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// One of the valid inputs, in which some bytes are removed and others inserted.
pub fn mutated(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<Index>(), 0..8_usize, vec(any::<u8>(), 0..8));
    (select(corpus), vec(edit, 0..6)).prop_map(|(mut bytes, edits)| {
        for (position, removed, inserted) in edits {
            let start = position.index(bytes.len() + 1);
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, inserted);
        }
        bytes
    })
}
