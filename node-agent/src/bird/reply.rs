//! Replies of BIRD on its control socket: lines with a number each (doc/reply_codes in the source of BIRD).
//!
//! ```text
//!   1002-name  BGP  ---  up  1764100000  Established     more follows
//!   1006-  Description: ...
//!        Last error: ...                                  the same number again
//!   0000                                                  the end
//!   +something                                           said in between, to nobody
//! ```

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is about.
    pub code: u16,
    /// The rest.
    pub text: String,
}

/// An answer that grows line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// All lines, the last one too.
    pub lines: Vec<Line>,
}

/// A reply of BIRD cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line that is none of its protocol")]
pub struct NoReply;

impl Reply {
    /// Takes the next line, without its end. Returns whether it was the last.
    ///
    /// # Errors
    /// It is not a line of the protocol.
    pub fn take(&mut self, line: &str) -> Result<bool, NoReply> {
        if line.starts_with('+') {
            return Ok(false);
        }
        if let Some(text) = line.strip_prefix(' ') {
            let code = self.lines.last().ok_or(NoReply)?.code;
            self.push(code, text);
            return Ok(false);
        }
        let (digits, rest) = line.split_at_checked(4).ok_or(NoReply)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NoReply);
        }
        let code = digits.parse().map_err(|_| NoReply)?;
        let last = rest.is_empty() || rest.starts_with(' ');
        if !last && !rest.starts_with('-') {
            return Err(NoReply);
        }
        self.push(code, rest.get(1..).unwrap_or_default());
        Ok(last)
    }

    /// What went wrong, if something did: run-time errors are 8xxx, errors in a text 9xxx.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let wrong = self.lines.iter().filter(|line| line.code >= 8000);
        let words: Vec<&str> = wrong.map(|line| line.text.trim()).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    fn push(&mut self, code: u16, text: &str) {
        let text = text.to_owned();
        self.lines.push(Line { code, text });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(lines: &[&str]) -> (Reply, Vec<Result<bool, NoReply>>) {
        let mut reply = Reply::default();
        let said = lines.iter().map(|line| reply.take(line)).collect();
        (reply, said)
    }

    #[test]
    fn bird_reply_ends_at_code_followed_by_space() {
        let (reply, ends) = take(&["1006-  one", "+aside", "   two", "0000 "]);
        assert_eq!(ends, [Ok(false), Ok(false), Ok(false), Ok(true)]);
        let lines: Vec<_> = reply
            .lines
            .iter()
            .map(|line| (line.code, line.text.as_str()))
            .collect();
        assert_eq!(lines, [(1006, "  one"), (1006, "  two"), (0, "")]);
    }

    #[test]
    fn bird_error_reply_is_refusal() {
        let (reply, _) = take(&[
            "0002-Reading configuration from x",
            "8002 x:3:1 syntax error",
        ]);
        assert_eq!(reply.refusal().unwrap(), "x:3:1 syntax error");
        let (reply, _) = take(&["0002-Reading configuration from x", "0003 Reconfigured"]);
        assert_eq!(reply.refusal(), None);
    }

    #[test]
    fn malformed_bird_reply_line_is_refused() {
        for line in ["", "12", "abcd-x", "00001", "12é4", " first"] {
            assert_eq!(take(&[line]).1, [Err(NoReply)], "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bird_reply_line_is_parsed_or_refused(lines in prop::collection::vec("\\PC{0,40}|[0-9]{4}[ -]\\PC{0,20}|[ +]\\PC{0,20}", 0..20)) {
            let mut reply = Reply::default();
            for line in &lines {
                let before = reply.lines.len();
                let taken = reply.take(line);
                let grown = usize::from(taken.is_ok() && !line.starts_with('+'));
                prop_assert_eq!(reply.lines.len(), before + grown);
            }
        }

        #[test]
        fn well_formed_bird_reply_line_is_parsed(code in 0u16..10_000, text in "\\PC{0,40}", last: bool) {
            let mut reply = Reply::default();
            let mark = if last { ' ' } else { '-' };
            prop_assert_eq!(reply.take(&format!("{code:04}{mark}{text}")), Ok(last));
            prop_assert_eq!(reply.lines, [Line { code, text }]);
        }
    }
}
