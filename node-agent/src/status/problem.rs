//! Problems of a node. The reason and the severity of the condition follow from the kind of the problem.
//!
//! ```text
//!   Inputs, Desired, pods, firewall, BIRD ──Cause──┐
//!   kernel, nft, files ─────────────────────Error──┴▶ Problem ──▶ Outcome.problems ──verdict──▶ condition
//!                                                                                 └─faults───▶ log
//! ```

use std::error::Error;
use std::fmt::{self, Display};

use netweft_common::error_chain;
use netweft_crds::condition::{Reason, State, Verdict};
use netweft_netstate::diff::Conflict;

use crate::status::cause::Cause;

/// The kind of a problem. The first kind of this list that a node has a problem of decides the reason of the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// An object could not be programmed; the agent retries.
    ProgrammingFailed,
    /// An object of another program prevents an object of netweft.
    ForeignObject,
    /// Another program changes an object of netweft repeatedly.
    Contested,
    /// A part of an API object is invalid on this node and is not programmed.
    Invalid,
    /// The kernel lacks a feature that some of the objects need.
    KernelLacksFeature,
    /// A finding for the administrator that affects no pod: the node stays ready.
    Note,
}

impl ProblemKind {
    /// All kinds, the most urgent first.
    pub const ALL: [Self; 6] = [
        Self::ProgrammingFailed,
        Self::ForeignObject,
        Self::Contested,
        Self::Invalid,
        Self::KernelLacksFeature,
        Self::Note,
    ];

    /// The reason of the condition; `None`: the node is ready in spite of the problem.
    #[must_use]
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::ProgrammingFailed => Some(Reason::ProgrammingFailed),
            Self::ForeignObject => Some(Reason::ForeignObject),
            Self::Contested => Some(Reason::Contested),
            Self::Invalid => Some(Reason::Invalid),
            Self::KernelLacksFeature => Some(Reason::KernelLacksFeature),
            Self::Note => None,
        }
    }

    /// The state of a node with the problem.
    #[must_use]
    pub fn severity(self) -> State {
        match self {
            Self::ProgrammingFailed => State::Reconciling,
            Self::ForeignObject | Self::Contested | Self::Invalid | Self::KernelLacksFeature => {
                State::Stalled
            }
            Self::Note => State::Ready,
        }
    }

    fn verdict(self, message: String) -> Verdict {
        Verdict {
            state: self.severity(),
            reason: self.reason().unwrap_or(Reason::Programmed),
            message,
        }
    }

    /// The kind in logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ProgrammingFailed => "programming_failed",
            Self::ForeignObject => "foreign_object",
            Self::Contested => "contested",
            Self::Invalid => "invalid",
            Self::KernelLacksFeature => "kernel_lacks_feature",
            Self::Note => "note",
        }
    }

    /// Whether the failure log contains the problem. Each repair of an external change has a log line of its own, and so has each note.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Contested | Self::Note)
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind.
    pub kind: ProblemKind,
    /// Kind and name of the object: a link, a route, a file, an IPPool, a NetworkMode, a node.
    pub subject: String,
    /// What happened, why, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem with `subject`, explained by an error of another module.
    #[must_use]
    pub fn new(kind: ProblemKind, subject: impl Display, error: &dyn Error) -> Self {
        Self {
            kind,
            subject: subject.to_string(),
            message: error_chain(error),
        }
    }

    /// `subject` could not be programmed.
    #[must_use]
    pub fn failure(subject: impl Display, error: &dyn Error) -> Self {
        Self::new(ProblemKind::ProgrammingFailed, subject, error)
    }

    /// The condition of a node that has this problem only.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.kind.verdict(self.message.clone())
    }
}

impl From<Cause> for Problem {
    fn from(cause: Cause) -> Self {
        Self {
            kind: cause.kind(),
            subject: cause.subject(),
            message: cause.to_string(),
        }
    }
}

impl From<&Conflict> for Problem {
    fn from(conflict: &Conflict) -> Self {
        let subject = match conflict {
            Conflict::RouteTaken { key, .. } => format!("route {}", key.dst),
            Conflict::Unowned { what } => what.clone(),
        };
        Self::new(ProblemKind::ForeignObject, subject, conflict)
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Problems in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All problems.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// The problems of one kind.
    pub fn of(&self, kind: ProblemKind) -> impl Iterator<Item = &Problem> {
        self.iter().filter(move |problem| problem.kind == kind)
    }

    /// Whether the list contains a problem of a kind.
    #[must_use]
    pub fn has(&self, kind: ProblemKind) -> bool {
        self.of(kind).next().is_some()
    }

    /// The number of problems of each kind, by its label.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let kinds = ProblemKind::ALL.into_iter();
        kinds.map(move |kind| (kind.label(), self.of(kind).count() as i64))
    }

    /// The messages of one kind.
    #[must_use]
    pub fn messages(&self, kind: ProblemKind) -> Vec<&str> {
        let messages = self.of(kind).map(|problem| problem.message.as_str());
        messages.collect()
    }

    /// The messages of one kind as one text; `None` without messages.
    #[must_use]
    pub fn sentence(&self, kind: ProblemKind) -> Option<String> {
        sentence(&self.messages(kind))
    }

    /// The problems of the failure log.
    pub fn faults(&self) -> impl Iterator<Item = &Problem> {
        self.iter().filter(|problem| problem.kind.is_fault())
    }

    /// The condition of the node; `None` if the node is ready.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        let mut faults = ProblemKind::ALL.into_iter();
        faults.find_map(|kind| {
            kind.reason()?;
            Some(kind.verdict(self.sentence(kind)?))
        })
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        self.0.extend(problems);
    }
}

impl FromIterator<Problem> for Problems {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        Self(problems.into_iter().collect())
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The first messages and the number of further messages.
#[must_use]
pub fn sentence<T: AsRef<str>>(messages: &[T]) -> Option<String> {
    const SHOWN: usize = 3;
    if messages.is_empty() {
        return None;
    }
    let shown: Vec<&str> = messages.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let mut text = shown.join("; ");
    if messages.len() > SHOWN {
        text += &format!("; and {} more", messages.len() - SHOWN);
    }
    Some(text)
}

/// A problem for tests.
#[cfg(test)]
pub fn problem(kind: ProblemKind, message: &str) -> Problem {
    Problem {
        kind,
        subject: "subject".to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn long_message_list_is_truncated_with_count() {
        let many: Vec<String> = (0..5).map(|n| format!("f{n}")).collect();
        assert_eq!(sentence(&many).unwrap(), "f0; f1; f2; and 2 more");
    }

    #[test]
    fn problem_kind_reason_is_named_as_metric_label() {
        let mut labels = BTreeSet::new();
        for kind in ProblemKind::ALL {
            assert!(labels.insert(kind.label()), "{kind:?}");
            let word = kind.label().replace('_', "");
            let name = kind.reason().map_or("Note", Reason::as_str);
            assert_eq!(word, name.to_lowercase());
            let ready = kind.severity() == State::Ready;
            assert_eq!(ready, kind.reason().is_none(), "{kind:?}");
        }
    }

    #[test]
    fn problem_counts_include_kinds_without_problems() {
        let kinds = [ProblemKind::Invalid, ProblemKind::Note, ProblemKind::Note];
        let problems: Problems = kinds.map(|kind| problem(kind, "m")).into_iter().collect();
        let counts: Vec<_> = problems.counts().collect();
        let expected = [
            ("programming_failed", 0),
            ("foreign_object", 0),
            ("contested", 0),
            ("invalid", 1),
            ("kernel_lacks_feature", 0),
            ("note", 2),
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn verdict_lists_problems_of_most_urgent_kind_only() {
        let mut problems = Problems::default();
        let mut push = |kind, message| {
            problems.push(problem(kind, message));
            problems.verdict()
        };
        assert_eq!(push(ProblemKind::Note, "n"), None);
        push(ProblemKind::Invalid, "i");
        push(ProblemKind::ForeignObject, "f");
        push(ProblemKind::ForeignObject, "g");
        let verdict = Verdict::stalled(Reason::ForeignObject, "f; g");
        assert_eq!(problems.verdict(), Some(verdict));
        let faults: Vec<&str> = problems.faults().map(|it| it.message.as_str()).collect();
        assert_eq!(faults, ["i", "f", "g"]);
    }
}
