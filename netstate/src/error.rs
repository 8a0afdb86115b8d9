//! The errors of this crate.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// A text that is not a link name or an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither a link name of 1 to 15 visible characters nor an Ethernet address such as 02:00:00:00:00:01"
)]
pub struct InvalidName(pub String);

/// Why the kernel's network state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("{what}: {errno:?} ({})", errno.desc())]
    Refused {
        /// The operation and its object.
        what: String,
        /// The kernel's error number.
        errno: Errno,
    },
    /// The tables changed during every attempt to read them (`NLM_F_DUMP_INTR`).
    #[error("read {what}: changed during each of {attempts} attempts")]
    Interrupted {
        /// The table.
        what: &'static str,
        /// Number of attempts.
        attempts: u32,
    },
    /// The netlink connection has ended, or no socket could be created.
    #[error("{what}: netlink connection")]
    Connection {
        /// The operation and its object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel did not reply to a request.
    #[error("{what}: no reply from the kernel within {timeout:?}")]
    Timeout {
        /// The operation and its object.
        what: String,
        /// The time limit of a reply.
        timeout: Duration,
    },
    /// A network namespace could not be created or entered.
    #[error("network namespace, to {what}")]
    Namespace {
        /// The operation that needs the namespace.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The operation is possible in the model, but not in this crate.
    #[error("{what}: {why}")]
    Unsupported {
        /// The operation and its object.
        what: String,
        /// The reason.
        why: &'static str,
    },
}

impl Error {
    /// Whether the same request can succeed later without a change of the configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { errno, .. } => matches!(
                errno,
                // Lack of memory, or another operation in progress.
                Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM
                // A required object was deleted, or the object was created, after the state was read.
                | Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN | Errno::ENETUNREACH | Errno::EHOSTUNREACH
                | Errno::EADDRNOTAVAIL | Errno::ENOENT | Errno::ESRCH | Errno::EEXIST
            ),
            Self::Interrupted { .. } | Self::Connection { .. } | Self::Timeout { .. } => true,
            Self::Namespace { .. } | Self::Unsupported { .. } => false,
        }
    }

    /// The kernel's error number, if the kernel replied.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Interrupted { .. }
            | Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Namespace { .. }
            | Self::Unsupported { .. } => None,
        }
    }
}
