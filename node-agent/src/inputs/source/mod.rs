//! The source of the objects: watches of the API server, or a directory of YAML files.
//!
//! Both signal changes, and return a snapshot on demand. There is no snapshot before every kind has been received completely, so
//! that the agent does not remove state of objects that have not arrived yet.

mod api_server;
mod change_filter;
mod directory;

use std::path::Path;

use kube::Client;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

use crate::inputs::Objects;

/// Reports the end of a task when it is dropped, also when the task panics.
struct TaskGuard {
    /// The watched objects.
    watched: String,
    ended: UnboundedSender<String>,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        // While the process ends, the receiver may be closed.
        let _ = self.ended.send(std::mem::take(&mut self.watched));
    }
}

/// A source of objects.
pub enum Source {
    /// The API server.
    Api(api_server::Watches),
    /// A directory.
    Files(directory::Directory),
}

impl Source {
    /// Watches the objects of `node` in a directory; without one, in the API server, for which it returns a client.
    ///
    /// # Errors
    /// The address of the API server is not configured.
    pub async fn open(dir: Option<&Path>, node: &str) -> anyhow::Result<(Self, Option<Client>)> {
        if let Some(dir) = dir {
            return Ok((Self::Files(directory::Directory::start(dir, node)), None));
        }
        let client = netweft_client::connect(None).await?;
        Ok((
            Self::Api(api_server::Watches::start(&client, node)),
            Some(client),
        ))
    }

    /// Reports the objects whose task has ended, which is an error while the source exists. Only the first call returns the reports.
    #[must_use]
    pub fn ended_tasks(&mut self) -> UnboundedReceiver<String> {
        match self {
            Self::Api(watches) => watches.ended_tasks(),
            Self::Files(dir) => dir.ended_tasks(),
        }
    }

    /// Signals that the snapshot may differ from the previous one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        match self {
            Self::Api(watches) => watches.changes(),
            Self::Files(dir) => dir.changes(),
        }
    }

    /// The last received objects; `None` until every kind is complete.
    #[must_use]
    pub fn snapshot(&self) -> Option<Objects> {
        match self {
            Self::Api(watches) => watches.snapshot(),
            Self::Files(dir) => dir.snapshot(),
        }
    }
}
