//! Errors of requests to the API server, and their meaning for retries.

use std::error::Error as _;

use thiserror::Error;

/// A failed request to the API server.
#[derive(Debug, Error)]
#[error("{verb} {kind} {name}")]
pub struct RequestError {
    /// Verb of the request.
    pub verb: &'static str,
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Cause of the failure.
    #[source]
    pub source: Cause,
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum Cause {
    /// The API server has refused the request, or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The time limit was exceeded.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
}

/// Meaning of a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The plan was based on an outdated state. The watch will show the change, and the next plan considers it.
    Stale,
    /// A retry can succeed.
    Failed,
}

impl RequestError {
    /// Meaning of the failure.
    #[must_use]
    pub fn class(&self) -> Class {
        match &self.source {
            // 404: the object was deleted. 409: the object was changed, created or replaced.
            Cause::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Class::Stale
            }
            Cause::Api(_) | Cause::Timeout(_) => Class::Failed,
        }
    }

    /// Whether an object with this name already existed.
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
        let status = Status::failure("the server's message", reason).with_code(code);
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
        assert!(text.contains("the server's message"), "{text}");
    }
}
