//! What the plugin answers when it cannot do what it was asked for.

use std::error::Error as _;
use std::io;

use serde::Serialize;

use crate::conf::SUPPORTED_VERSIONS;
use crate::node::NodeConfigError;

/// A refusal, with what was tried and on what. Codes are those of the CNI specification, ours from 100.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The configuration asks for a version of the specification that this plugin, or this command, does not know.
    #[error("cniVersion {found:?} is not supported for {command}; supported are {}", SUPPORTED_VERSIONS.join(", "))]
    Version {
        /// What was asked for.
        found: String,
        /// The command (CNI_COMMAND).
        command: String,
    },
    /// An environment variable is missing or makes no sense.
    #[error("{name}: {problem}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{what}{}", advice(.source))]
    Io {
        /// What was tried, on what.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something that must be JSON is not.
    #[error("parse {what}")]
    Decode {
        /// What it is.
        what: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration parses but cannot be used.
    #[error("{0}")]
    Config(String),
    /// It may work later.
    #[error("{0}")]
    TryLater(String),
    /// STATUS only: ADD cannot be served.
    #[error("{0}")]
    NotReady(NodeConfigError),
    /// ADD: there is no usable `node.json`.
    #[error("{0}")]
    Node(NodeConfigError),
    /// The kernel refused.
    #[error("{0}")]
    Kernel(#[from] netweft_netstate::error::Error),
    /// CHECK found these differences.
    #[error("{}", .0.join("; "))]
    Check(Vec<String>),
    /// DEL and GC: what could not be cleaned up. The rest was.
    #[error("{}", .0.join("; "))]
    Teardown(Vec<String>),
}

impl PluginError {
    /// The code of the CNI specification.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Environment { .. } => 4,
            Self::Io { .. } | Self::Node(NodeConfigError::Io(_)) => 5,
            Self::Decode { .. } | Self::Node(NodeConfigError::Malformed(_)) => 6,
            Self::Config(_) => 7,
            Self::TryLater(_) | Self::Node(_) => 11,
            Self::NotReady(_) => 50,
            Self::Kernel(error) if error.is_retryable() => 11,
            Self::Kernel(_) => 5,
            Self::Check(_) => 100,
            Self::Teardown(_) => 101,
        }
    }

    /// The answer for standard output.
    #[must_use]
    pub fn to_json(&self, cni_version: &str) -> String {
        let answer = Answer {
            cni_version,
            code: self.code(),
            msg: self.to_string(),
            details: self.causes(),
        };
        serde_json::to_string(&answer).unwrap_or_default()
    }

    /// The causes, outermost first.
    #[must_use]
    pub fn causes(&self) -> String {
        let mut next = match self {
            Self::NotReady(error) | Self::Node(error) => error.source(),
            Self::Kernel(error) => error.source(),
            other => other.source(),
        };
        let mut chain = Vec::new();
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        chain.join(": ")
    }

    /// The refusal and its causes in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        match self.causes() {
            causes if causes.is_empty() => self.to_string(),
            causes => format!("{self}: {causes}"),
        }
    }
}

/// What a user can do.
fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the file system is full: make room on it, of bytes (df) or of names (df -i)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; the file system is read-only: mount it so that it can be written"
        }
        _ => "",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    cni_version: &'a str,
    code: u32,
    msg: String,
    details: String,
}
