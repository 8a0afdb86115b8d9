//! Logs failures when they start and when they end, but not on each retry.

use std::collections::BTreeSet;

use tracing::{info, warn};

/// The present failures: messages with the object and the cause.
#[derive(Debug, Default)]
pub struct FailureLog(BTreeSet<String>);

impl FailureLog {
    /// Replaces the failures. Logs the new ones, and those that have ended.
    pub fn set(&mut self, failures: impl IntoIterator<Item = String>) {
        let current: BTreeSet<String> = failures.into_iter().collect();
        let (started, ended) = self.changes(&current);
        for problem in started {
            warn!(%problem, "failing, will retry");
        }
        for problem in ended {
            info!(%problem, "no longer failing");
        }
        self.0 = current;
    }

    /// Adds a failure.
    pub fn add(&mut self, failure: &str) {
        let added = [failure.to_owned()];
        self.set(self.0.clone().into_iter().chain(added));
    }

    /// The failures that have started, and those that have ended.
    fn changes<'a>(&'a self, current: &'a BTreeSet<String>) -> (Vec<&'a String>, Vec<&'a String>) {
        let started = current.difference(&self.0).collect();
        let ended = self.0.difference(current).collect();
        (started, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_log_reports_begin_and_end_once() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let mut failure_log = FailureLog::default();
        for (current, started, ended) in [
            (&["a", "b"][..], &["a", "b"][..], &[][..]),
            (&["a", "b"], &[], &[]),
            (&["b", "c"], &["c"], &["a"]),
            (&[], &[], &["b", "c"]),
            (&["a"], &["a"], &[]),
        ] {
            let current: BTreeSet<String> = set(current);
            let changes = failure_log.changes(&current);
            assert_eq!(changes.0, started);
            assert_eq!(changes.1, ended);
            failure_log.set(current);
        }
    }
}
