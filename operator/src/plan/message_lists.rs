//! Counts and lists in messages.

use std::fmt::Display;

/// `1 block`, `2 blocks`.
#[must_use]
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// The first `most` names, and the number of the others.
#[must_use]
pub fn list<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let shown: Vec<_> = names.iter().take(most).map(AsRef::as_ref).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_noun_is_singular_only_for_one() {
        assert_eq!(counted(1_usize, "block"), "1 block");
        assert_eq!(counted(0_u128, "block"), "0 blocks");
    }

    #[test]
    fn long_name_list_is_truncated() {
        assert_eq!(list(&["a", "b", "c"], 5), "a, b, c");
        assert_eq!(list(&["a", "b", "c"], 2), "a, b and 1 more");
    }
}
