//! What is wrong on the node: one type for everything that is told of in the condition. Reason, severity and the metric's label follow
//! from the problem's kind.
//!
//! ```text
//!   Inputs, Desired, pods, firewall, BIRD, kernel ──Problem──▶ Outcome.problems ──verdict──▶ condition
//!                                                                              └─faults───▶ log
//! ```

use std::error::Error;
use std::fmt::{self, Display};

use netweft_common::error_chain;
use netweft_crds::condition::{Reason, State, Verdict};
use netweft_netstate::diff::Conflict;

/// What sort of problem it is. The first kind of this list that there is a problem of decides the condition's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Something could not be programmed; it is tried again.
    ProgrammingFailed,
    /// An object of somebody else stands where ours should be.
    ForeignObject,
    /// An object of ours is changed by somebody else again and again.
    Contested,
    /// A part of the objects that cannot be used or carried out here, and is left out.
    Invalid,
    /// The kernel lacks something, and what needs it does not work; pods work otherwise.
    KernelLacksFeature,
    /// What only a human can put right and what keeps no pod from working: the node stays ready.
    Note,
}

impl ProblemKind {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 6] = [
        Self::ProgrammingFailed,
        Self::ForeignObject,
        Self::Contested,
        Self::Invalid,
        Self::KernelLacksFeature,
        Self::Note,
    ];

    /// The condition's reason; `None`: the node is ready in spite of it.
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

    /// What it makes of the node.
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

    fn verdict(self, message: String) -> Option<Verdict> {
        Some(Verdict {
            state: self.severity(),
            reason: self.reason()?,
            message,
        })
    }

    /// The value of the label `kind` in metrics and logs.
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

    /// Whether the log tells when it begins and ends. Who changes what is ours is told with each repair, and a note by whoever finds it.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Contested | Self::Note)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What sort of problem it is.
    pub kind: ProblemKind,
    /// What it is about: a link, a route, a file, an IPPool, a NetworkMode, a node.
    pub subject: String,
    /// What is wrong and what a user can do, in a sentence.
    pub message: String,
}

impl Problem {
    /// A problem with `subject`.
    #[must_use]
    pub fn new(kind: ProblemKind, subject: impl Display, message: impl Into<String>) -> Self {
        Self {
            kind,
            subject: subject.to_string(),
            message: message.into(),
        }
    }

    /// Something that could not be programmed, for this error.
    #[must_use]
    pub fn failure(subject: impl Display, error: &dyn Error) -> Self {
        Self::new(ProblemKind::ProgrammingFailed, subject, error_chain(error))
    }

    /// A part of the objects that is left out.
    #[must_use]
    pub fn invalid(subject: impl Display, message: impl Into<String>) -> Self {
        Self::new(ProblemKind::Invalid, subject, message)
    }

    /// What keeps no pod from working.
    #[must_use]
    pub fn note(subject: impl Display, message: impl Into<String>) -> Self {
        Self::new(ProblemKind::Note, subject, message)
    }

    /// The content of a condition that tells of this alone; `None` if the node is ready in spite of it.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        self.kind.verdict(self.message.clone())
    }
}

impl From<&Conflict> for Problem {
    fn from(conflict: &Conflict) -> Self {
        let subject = match conflict {
            Conflict::RouteTaken { key, .. } => format!("route {}", key.dst),
            Conflict::NotOurs { what } => what.clone(),
        };
        Self::new(ProblemKind::ForeignObject, subject, conflict.to_string())
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
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// Those of one kind.
    pub fn of(&self, kind: ProblemKind) -> impl Iterator<Item = &Problem> {
        self.iter().filter(move |problem| problem.kind == kind)
    }

    /// Whether there is one of a kind.
    #[must_use]
    pub fn has(&self, kind: ProblemKind) -> bool {
        self.of(kind).next().is_some()
    }

    /// The messages of one kind.
    #[must_use]
    pub fn messages(&self, kind: ProblemKind) -> Vec<&str> {
        let messages = self.of(kind).map(|problem| problem.message.as_str());
        messages.collect()
    }

    /// The messages of one kind in a sentence; `None` if there are none.
    #[must_use]
    pub fn sentence(&self, kind: ProblemKind) -> Option<String> {
        sentence(&self.messages(kind))
    }

    /// What the log tells of when it begins and ends.
    pub fn faults(&self) -> impl Iterator<Item = &Problem> {
        self.iter().filter(|problem| problem.kind.is_fault())
    }

    /// The condition's content; `None` if the node is ready.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        ProblemKind::ALL.into_iter().find_map(|kind| {
            let message = self.sentence(kind)?;
            kind.verdict(message)
        })
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

/// The first messages and how many more there are: a condition is read by people.
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
    fn verdict_lists_problems_of_most_urgent_kind_only() {
        let mut problems = Problems::default();
        problems.push(Problem::note("route a", "n"));
        assert_eq!(problems.verdict(), None);
        problems.push(Problem::invalid("IPPool a", "i"));
        problems.push(Problem::new(ProblemKind::ForeignObject, "route a", "f"));
        problems.push(Problem::new(ProblemKind::ForeignObject, "route b", "g"));
        let verdict = Verdict::stalled(Reason::ForeignObject, "f; g");
        assert_eq!(problems.verdict(), Some(verdict));
        let faults: Vec<&str> = problems.faults().map(|it| it.message.as_str()).collect();
        assert_eq!(faults, ["i", "f", "g"]);
    }
}
