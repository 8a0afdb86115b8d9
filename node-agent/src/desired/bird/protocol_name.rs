//! Names of BIRD's protocols.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Maximum length of a name in BIRD (`SYM_MAX_LEN`), in bytes.
const MAX_LENGTH: usize = 64;
/// Characters that are kept of a name that BIRD does not accept.
const KEPT: usize = 40;

/// The name of a session's protocol: the name of the session if BIRD accepts it, else its beginning and a hash.
pub fn of(session: &str) -> String {
    // BIRD accepts `_`, too. It is reserved for shortened names, so that these differ from the names of all sessions.
    let is_valid = |c: char| c.is_ascii_alphanumeric() || ['-', '.', ':'].contains(&c);
    let name = format!("bgp-{session}");
    if name.len() <= MAX_LENGTH && session.chars().all(is_valid) {
        return name;
    }
    let kept = session.chars().filter(|c| is_valid(*c)).take(KEPT);
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
        assert_ne!(
            of("a'b"),
            of("a\"b"),
            "names that differ in dropped characters only"
        );
        let shortened = of("a' { disabled; }");
        assert!(shortened.starts_with("bgp-adisabled_"), "{shortened}");
        assert_ne!(of(&shortened["bgp-".len()..]), shortened);
    }
}
