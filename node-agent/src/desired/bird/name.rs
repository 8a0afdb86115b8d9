//! Names of protocols.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Longest name that BIRD takes (`SYM_MAX_LEN`), in bytes.
const MAX_LENGTH: usize = 64;
/// How much of a name that cannot be had stays readable.
const READABLE: usize = 40;

/// The name of a session's protocol: its own where BIRD can have it, else its beginning and a hash of the whole.
pub fn of(session: &str) -> String {
    // BIRD takes `_` too; it is kept for the names that are made here, so that none is another session's.
    let legal = |c: char| c.is_ascii_alphanumeric() || ['-', '.', ':'].contains(&c);
    let name = format!("bgp-{session}");
    if name.len() <= MAX_LENGTH && session.chars().all(legal) {
        return name;
    }
    let kept = session.chars().filter(|c| legal(*c)).take(READABLE);
    let mut name: String = "bgp-".chars().chain(kept).collect();
    name.push('_');
    for byte in Sha256::digest(session).iter().take(8) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_bird_protocol_name_is_kept() {
        assert_eq!(of("mesh-worker-2.example"), "bgp-mesh-worker-2.example");
    }

    #[test]
    fn invalid_bird_protocol_name_is_shortened_and_unique() {
        let long = |last: char| of(&format!("{}{last}", "w".repeat(500)));
        assert!(long('a').starts_with("bgp-wwww") && long('a').len() <= MAX_LENGTH);
        assert_ne!(long('a'), long('b'));
        assert_ne!(of("a'b"), of("a\"b"), "both lose the same");
        let made = of("a' { disabled; }");
        assert!(made.starts_with("bgp-adisabled_"), "{made}");
        assert_ne!(of(&made["bgp-".len()..]), made);
    }
}
