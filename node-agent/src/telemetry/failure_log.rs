//! What fails, so that the log has a line when it begins and one when it is over, and none for each retry.

use std::collections::BTreeSet;

use tracing::{info, warn};

/// The sentences that hold now: each names the object that fails and the cause.
#[derive(Debug, Default)]
pub struct FailureLog(BTreeSet<String>);

impl FailureLog {
    /// From now on these hold and no others. Logs those that are new and those that are over.
    pub fn are(&mut self, sentences: impl IntoIterator<Item = String>) {
        let now: BTreeSet<String> = sentences.into_iter().collect();
        let (begun, over) = self.changes(&now);
        for problem in begun {
            warn!(%problem, "failing, will retry");
        }
        for problem in over {
            info!(%problem, "no longer failing");
        }
        self.0 = now;
    }

    /// From now on this holds too.
    pub fn is(&mut self, sentence: &str) {
        let more = [sentence.to_owned()];
        self.are(self.0.clone().into_iter().chain(more));
    }

    /// Those that begin, and those that are over.
    fn changes<'a>(&'a self, now: &'a BTreeSet<String>) -> (Vec<&'a String>, Vec<&'a String>) {
        let begun = now.difference(&self.0).collect();
        let over = self.0.difference(now).collect();
        (begun, over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_log_reports_begin_and_end_once() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let mut failure_log = FailureLog::default();
        for (now, begun, over) in [
            (&["a", "b"][..], &["a", "b"][..], &[][..]),
            (&["a", "b"], &[], &[]),
            (&["b", "c"], &["c"], &["a"]),
            (&[], &[], &["b", "c"]),
            (&["a"], &["a"], &[]),
        ] {
            let now: BTreeSet<String> = set(now);
            let changes = failure_log.changes(&now);
            assert_eq!(changes.0, begun);
            assert_eq!(changes.1, over);
            failure_log.are(now);
        }
    }
}
