//! What can go wrong in the shell, and what that means for trying again.

use std::error::Error as _;

use thiserror::Error;

/// A request to the API server that did not do what it should.
#[derive(Debug, Error)]
#[error("{verb} {kind} {name}")]
pub struct RequestError {
    /// What was tried.
    pub verb: &'static str,
    /// On which kind.
    pub kind: &'static str,
    /// On which object.
    pub name: String,
    /// What came of it.
    #[source]
    pub source: Cause,
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum Cause {
    /// The API server or the way to it.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
}

/// What a failed write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It rested on an old picture: somebody else was faster. The watch will say so, and the next plan is right.
    Stale,
    /// It may succeed if it is tried again.
    Failed,
}

impl RequestError {
    /// What the failure means.
    #[must_use]
    pub fn class(&self) -> Class {
        match &self.source {
            // 404: the object went; 409: it changed, or was there already, or was replaced by another of its name.
            Cause::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Class::Stale
            }
            Cause::Api(_) | Cause::Timeout(_) => Class::Failed,
        }
    }

    /// Whether an object of that name was there already.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        matches!(&self.source, Cause::Api(kube::Error::Api(status)) if status.reason == "AlreadyExists")
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn failed(code: u16, reason: &str) -> RequestError {
        let status = Status::failure("the server's words", reason).with_code(code);
        let source = Cause::Api(kube::Error::Api(Box::new(status)));
        RequestError {
            verb: "create",
            kind: "NodeSubnet",
            name: "10-0-0-0-26".to_owned(),
            source,
        }
    }

    #[test]
    fn write_conflict_or_not_found_is_stale_and_not_failed() {
        assert_eq!(failed(409, "AlreadyExists").class(), Class::Stale);
        assert_eq!(failed(404, "NotFound").class(), Class::Stale);
        assert_eq!(failed(500, "InternalError").class(), Class::Failed);
        assert_eq!(failed(403, "Forbidden").class(), Class::Failed);
    }

    #[test]
    fn conflict_error_differs_from_already_exists() {
        assert!(failed(409, "AlreadyExists").already_exists());
        assert!(!failed(409, "Conflict").already_exists());
    }

    #[test]
    fn request_error_names_verb_object_and_cause() {
        let text = failed(500, "InternalError").chain();
        assert!(
            text.starts_with("create NodeSubnet 10-0-0-0-26: "),
            "{text}"
        );
        assert!(text.contains("the server's words"), "{text}");
    }
}
