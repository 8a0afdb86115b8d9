//! Passwords of sessions.

use std::fmt;

/// Maximum length that the kernel accepts (`TCP_MD5SIG_MAXKEYLEN`), in bytes.
const MAX_LENGTH: usize = 80;

/// A password for BIRD's configuration, in which strings have no escapes.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// Why a text is not a valid password, as a phrase that follows "the password".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPassword {
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// It is too long for the kernel.
    #[error("has more than 80 bytes, which is the maximum of TCP MD5")]
    Long,
    /// It cannot be part of a string in BIRD's configuration.
    #[error("has a double quote or a character that is not printable, which BIRD does not accept")]
    Unprintable,
}

impl Password {
    /// Parses the content of a file. A trailing newline is dropped, because editors and `echo` add it.
    ///
    /// # Errors
    /// The content is not a valid password.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPassword> {
        let text = str::from_utf8(bytes).map_err(|_| BadPassword::Unprintable)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(BadPassword::Empty);
        }
        if text.contains(|c: char| c == '"' || c.is_control()) {
            return Err(BadPassword::Unprintable);
        }
        if text.len() > MAX_LENGTH {
            return Err(BadPassword::Long);
        }
        Ok(Self(text.to_owned()))
    }

    /// The password, for BIRD's configuration only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// `text` with the password masked.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bgp_password_loses_one_trailing_newline() {
        for text in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert_eq!(Password::parse(text.as_bytes()).unwrap().reveal(), "s3cret");
        }
    }

    #[test]
    fn unsupported_bgp_password_is_refused() {
        let refused = |text: &[u8]| Password::parse(text).unwrap_err();
        assert_eq!(refused(b"\n"), BadPassword::Empty);
        for text in [&b"a\"b"[..], b"a\nb", b"a\0b", b"a\n\n", b"\xff"] {
            assert_eq!(refused(text), BadPassword::Unprintable, "{text:?}");
        }
        assert!(Password::parse(&[b'x'; 80]).is_ok());
        assert_eq!(refused(&[b'x'; 81]), BadPassword::Long);
    }

    #[test]
    fn bgp_password_is_masked_in_output() {
        let password = Password::parse(b"s3cret").unwrap();
        assert_eq!(format!("{password:?}"), "***");
        assert_eq!(password.mask("near \"s3cret\""), "near \"***\"");
    }
}
