//! The errors of the plugin, with the codes of the CNI specification.

use std::error::Error as _;
use std::io;

use netweft_netstate::error as netstate;
use nix::errno::Errno;
use serde::Serialize;

use crate::node::NodeConfigError;

/// Why a command failed. The message has the object, the cause and the remedy. Codes below 100 are those of the CNI
/// specification, codes from 100 are of this plugin.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The network configuration has a version of the specification that does not support the command.
    #[error(
        "cniVersion {found:?} of the network configuration does not support {command}: set it to {}",
        supported.join(" or ")
    )]
    Version {
        /// The version in the configuration.
        found: String,
        /// The command (CNI_COMMAND).
        command: String,
        /// The versions that support the command.
        supported: &'static [&'static str],
    },
    /// An environment variable is missing or invalid.
    #[error("{name}: {problem}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// The fault, and its remedy.
        problem: String,
    },
    /// A file operation failed.
    #[error("{what}{}", io_remedy(.source))]
    Io {
        /// The operation and the file.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Standard input is not a network configuration.
    #[error(
        "parse the network configuration on standard input: the container runtime must pass the JSON object of a \
         plugin (CNI specification, section 2)"
    )]
    Decode(#[source] serde_json::Error),
    /// A field of the network configuration is missing or contradicts another field.
    #[error("{0}")]
    Config(String),
    /// The command can succeed later.
    #[error("{0}")]
    TryLater(String),
    /// STATUS: ADD cannot succeed.
    #[error("{0}")]
    NotReady(NodeConfigError),
    /// `node.json` cannot be used.
    #[error("{0}")]
    Node(NodeConfigError),
    /// A netlink request failed.
    #[error("{}{}", .0, kernel_remedy(.0))]
    Kernel(#[from] netstate::Error),
    /// CHECK: differences between the attachment record, the kernel and the result of ADD.
    #[error(
        "{}; netweft-agent restores the node's side of a pod's network: delete the pod if the problem persists",
        .0.join("; ")
    )]
    Check(Vec<String>),
    /// DEL and GC: what could not be removed. Everything else is removed.
    #[error(
        "{}; links and addresses that were not removed stay until the container runtime repeats DEL or GC",
        .0.join("; ")
    )]
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
            Self::Decode(_) | Self::Node(NodeConfigError::Malformed(_)) => 6,
            Self::Config(_) => 7,
            Self::TryLater(_) | Self::Node(_) => 11,
            Self::NotReady(_) => 50,
            Self::Kernel(error) if error.is_retryable() => 11,
            Self::Kernel(_) => 5,
            Self::Check(_) => 100,
            Self::Teardown(_) => 101,
        }
    }

    /// The error result of the CNI specification, for standard output.
    #[must_use]
    pub fn to_json(&self, cni_version: &str) -> String {
        let result = ErrorResult {
            cni_version,
            code: self.code(),
            msg: self.to_string(),
            details: self.causes(),
        };
        serde_json::to_string(&result).unwrap_or_default()
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

    /// The message and its causes in one line.
    #[must_use]
    pub fn with_causes(&self) -> String {
        match self.causes() {
            causes if causes.is_empty() => self.to_string(),
            causes => format!("{self}: {causes}"),
        }
    }
}

/// The remedy of a failed file operation, to append to the message; empty where the cause in `details` is all there is.
pub(crate) fn io_remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the file system is full: free blocks (df) or inodes (df -i)"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: mount it read-write",
        io::ErrorKind::PermissionDenied => {
            "; the plugin must run as root: check the container runtime and its security profile"
        }
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            "; a file of another type has this name: remove it"
        }
        _ => "",
    }
}

/// The remedy of a failed netlink request, to append to the message; empty where the error code is all there is.
fn kernel_remedy(cause: &netstate::Error) -> &'static str {
    match cause.errno() {
        Some(Errno::EEXIST) => "; delete the existing object if it belongs to another program",
        Some(Errno::EPERM) => {
            "; the plugin needs CAP_NET_ADMIN: check the container runtime and its security profile"
        }
        _ => "",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorResult<'a> {
    cni_version: &'a str,
    code: u32,
    msg: String,
    details: String,
}
