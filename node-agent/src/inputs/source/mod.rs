//! Where the agent's objects come from: the API server's watches, or a folder of YAML files.
//!
//! Both give the same: a signal when something may have changed, and a snapshot on demand. There is no snapshot before
//! every kind has been heard of completely, so that nothing is swept which has merely not arrived yet.

mod api_server;
mod changes;
mod directory;

use std::path::Path;

use kube::Client;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

use crate::inputs::Objects;

/// Tells of the end of a task, also of one that panics.
struct Ending {
    what: String,
    ends: UnboundedSender<String>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Nobody listens while the process ends.
        let _ = self.ends.send(std::mem::take(&mut self.what));
    }
}

/// A source of objects.
pub enum Source {
    /// The API server.
    Api(api_server::Watches),
    /// A folder.
    Files(directory::Folder),
}

impl Source {
    /// Watch a folder for `node`, or, without one, the API server, of which a client is returned.
    ///
    /// # Errors
    /// The address of the API server is not configured.
    pub async fn open(folder: Option<&Path>, node: &str) -> anyhow::Result<(Self, Option<Client>)> {
        if let Some(folder) = folder {
            return Ok((Self::Files(directory::Folder::start(folder, node)), None));
        }
        let client = netweft_client::connect(None).await?;
        Ok((
            Self::Api(api_server::Watches::start(&client, node)),
            Some(client),
        ))
    }

    /// Tells what is no longer watched, since the task has ended. None should, for as long as the source is there. To be taken once.
    #[must_use]
    pub fn ends(&mut self) -> UnboundedReceiver<String> {
        match self {
            Self::Api(watches) => watches.ends(),
            Self::Files(folder) => folder.ends(),
        }
    }

    /// Signals that the snapshot may differ from the one before.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        match self {
            Self::Api(watches) => watches.changes(),
            Self::Files(folder) => folder.changes(),
        }
    }

    /// The objects as last heard; `None` until every kind is complete.
    #[must_use]
    pub fn snapshot(&self) -> Option<Objects> {
        match self {
            Self::Api(watches) => watches.snapshot(),
            Self::Files(folder) => folder.snapshot(),
        }
    }
}
