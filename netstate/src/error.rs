//! What can go wrong in this crate.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// A text that is not a link name or an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither a link name of 1 to 15 visible characters nor an Ethernet address such as 02:00:00:00:00:01"
)]
pub struct InvalidName(pub String);

/// Why reading or changing the kernel's network state did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("{what}: {errno:?} ({})", errno.desc())]
    Refused {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The tables changed under every attempt to read them (`NLM_F_DUMP_INTR`).
    #[error("read {what}: changed during each of {attempts} attempts")]
    Interrupted {
        /// What was read.
        what: &'static str,
        /// How often.
        attempts: u32,
    },
    /// The netlink connection is gone, or its socket could not be made.
    #[error("{what}: netlink connection")]
    Connection {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel took a request and gave no answer.
    #[error("{what}: no answer from the kernel within {patience:?}")]
    Slow {
        /// What was tried.
        what: String,
        /// How long an answer may take.
        patience: Duration,
    },
    /// A network namespace could not be entered.
    #[error("enter network namespace to {what}")]
    Namespace {
        /// What was to be done there.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The model can say it, this crate cannot make it.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was tried.
        what: String,
        /// What to do instead.
        why: &'static str,
    },
}

impl Error {
    /// Whether the same request may succeed later without anybody changing the configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { errno, .. } => matches!(
                errno,
                // Short of memory or in the middle of something else.
                Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM
                // What we built on went away, or something took the place since the last read.
                | Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN | Errno::ENETUNREACH | Errno::EHOSTUNREACH
                | Errno::EADDRNOTAVAIL | Errno::ENOENT | Errno::ESRCH | Errno::EEXIST
            ),
            Self::Interrupted { .. } | Self::Connection { .. } | Self::Slow { .. } => true,
            Self::Namespace { .. } | Self::Unsupported { .. } => false,
        }
    }

    /// The kernel's error number, if the kernel answered.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Interrupted { .. }
            | Self::Connection { .. }
            | Self::Slow { .. }
            | Self::Namespace { .. }
            | Self::Unsupported { .. } => None,
        }
    }
}
