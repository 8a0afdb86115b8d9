//! Replies on BIRD's control socket: lines with a code each (doc/reply_codes in the source of BIRD).
//!
//! ```text
//!   1002-name  BGP  ---  up  1764100000  Established     more lines follow
//!   1006-  Description: ...
//!        Last error: ...                                  the same code again
//!   0000                                                  the last line
//!   +something                                           unsolicited
//! ```

/// A line of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyLine {
    /// The reply code.
    pub code: u16,
    /// The text.
    pub text: String,
}

/// A reply, parsed line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// All lines, the last one included.
    pub lines: Vec<ReplyLine>,
}

/// A reply of BIRD cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is not in the format of the control socket")]
pub struct MalformedReply;

impl Reply {
    /// Parses the next line, without its end of line. Returns whether it is the last one.
    ///
    /// # Errors
    /// The line is not in the format of the control socket.
    pub fn parse_line(&mut self, line: &str) -> Result<bool, MalformedReply> {
        if line.starts_with('+') {
            return Ok(false);
        }
        if let Some(text) = line.strip_prefix(' ') {
            let code = self.lines.last().ok_or(MalformedReply)?.code;
            self.push(code, text);
            return Ok(false);
        }
        let (digits, rest) = line.split_at_checked(4).ok_or(MalformedReply)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(MalformedReply);
        }
        let code = digits.parse().map_err(|_| MalformedReply)?;
        let is_last = rest.is_empty() || rest.starts_with(' ');
        if !is_last && !rest.starts_with('-') {
            return Err(MalformedReply);
        }
        self.push(code, rest.get(1..).unwrap_or_default());
        Ok(is_last)
    }

    /// The error messages, if any. Codes of runtime errors are 8xxx, codes of parse errors 9xxx.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let errors = self.lines.iter().filter(|line| line.code >= 8000);
        let messages: Vec<&str> = errors.map(|line| line.text.trim()).collect();
        (!messages.is_empty()).then(|| messages.join("; "))
    }

    fn push(&mut self, code: u16, text: &str) {
        let text = text.to_owned();
        self.lines.push(ReplyLine { code, text });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(lines: &[&str]) -> (Reply, Vec<Result<bool, MalformedReply>>) {
        let mut reply = Reply::default();
        let results = lines.iter().map(|line| reply.parse_line(line)).collect();
        (reply, results)
    }

    #[test]
    fn bird_reply_ends_at_code_followed_by_space() {
        let (reply, ends) = parse(&["1006-  one", "+unsolicited", "   two", "0000 "]);
        assert_eq!(ends, [Ok(false), Ok(false), Ok(false), Ok(true)]);
        let lines: Vec<_> = reply
            .lines
            .iter()
            .map(|line| (line.code, line.text.as_str()))
            .collect();
        assert_eq!(lines, [(1006, "  one"), (1006, "  two"), (0, "")]);
    }

    #[test]
    fn bird_error_reply_has_error_message() {
        let (reply, _) = parse(&[
            "0002-Reading configuration from x",
            "8002 x:3:1 syntax error",
        ]);
        assert_eq!(reply.error().unwrap(), "x:3:1 syntax error");
        let (reply, _) = parse(&["0002-Reading configuration from x", "0003 Reconfigured"]);
        assert_eq!(reply.error(), None);
    }

    #[test]
    fn malformed_bird_reply_line_is_refused() {
        for line in ["", "12", "abcd-x", "00001", "12é4", " first"] {
            assert_eq!(parse(&[line]).1, [Err(MalformedReply)], "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bird_reply_line_is_parsed_or_refused(lines in prop::collection::vec("\\PC{0,40}|[0-9]{4}[ -]\\PC{0,20}|[ +]\\PC{0,20}", 0..20)) {
            let mut reply = Reply::default();
            for line in &lines {
                let before = reply.lines.len();
                let parsed = reply.parse_line(line);
                let added = usize::from(parsed.is_ok() && !line.starts_with('+'));
                prop_assert_eq!(reply.lines.len(), before + added);
            }
        }

        #[test]
        fn well_formed_bird_reply_line_is_parsed(code in 0u16..10_000, text in "\\PC{0,40}", is_last: bool) {
            let mut reply = Reply::default();
            let separator = if is_last { ' ' } else { '-' };
            prop_assert_eq!(reply.parse_line(&format!("{code:04}{separator}{text}")), Ok(is_last));
            prop_assert_eq!(reply.lines, [ReplyLine { code, text }]);
        }
    }
}
