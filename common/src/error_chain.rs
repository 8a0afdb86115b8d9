//! An error and its causes in one line.

use std::error::Error;

/// The error and its causes in one line, outermost first, separated by `: `.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("write /run/x")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn error_chain_lists_causes_after_error() {
        let error = Outer(io::Error::other("disk full"));
        assert_eq!(error_chain(&error), "write /run/x: disk full");
        let without_cause = io::Error::other("disk full");
        assert_eq!(error_chain(&without_cause), "disk full");
    }
}
