//! The errors of a sync that has changed nothing.

use std::io;
use std::path::PathBuf;

use netweft_netstate::error::Error;

use crate::reconcile::comparison::ComparisonError;
use crate::status::problem::Problem;

/// The state of the node could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The plugin's records cannot be read.
    #[error(transparent)]
    Attachments(#[from] AttachmentsUnread),
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The desired state could not be computed.
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
}

/// The plugin's records cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read the attachments in {}", dir.display())]
pub struct AttachmentsUnread {
    /// The agent's directory.
    pub dir: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl From<&SyncError> for Problem {
    fn from(error: &SyncError) -> Self {
        let subject = match error {
            SyncError::Attachments(_) => "attachments",
            SyncError::Kernel(_) | SyncError::Comparison(ComparisonError::Kernel(_)) => "kernel",
            SyncError::Comparison(ComparisonError::Address(_)) => "node address",
        };
        Self::failure(subject, error)
    }
}
