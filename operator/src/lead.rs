//! Leadership: of several operators, one writes.
//!
//! # Guarantees
//! None about exclusiveness. A leader that was stopped, or cut off from the API server, may believe in its lease for a
//! while after another has taken it. Nothing depends on it: blocks are unique by the name of their NodeSubnet, and
//! updates and deletes carry the version they are based on. The lease only spares the API server double work.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::args::Args;

/// A candidate for leadership.
pub struct Candidate {
    /// Whether this operator leads.
    pub leads: Receiver<bool>,
    task: JoinHandle<kube_lease_manager::Result<LeaseManager>>,
}

/// Becomes a candidate, as soon as the API server can be asked.
pub async fn stand(client: &Client, args: &Args) -> Candidate {
    let duration = args.lease_duration.as_secs();
    loop {
        let builder = LeaseManagerBuilder::new(client.clone(), &args.lease_name)
            .with_namespace(&args.namespace)
            .with_duration(duration)
            // The leader renews when a third of it is left.
            .with_grace((duration / 3).max(1));
        let builder = match &args.identity {
            Some(identity) => builder.with_identity(identity),
            None => builder,
        };
        match builder.build().await {
            Ok(manager) => {
                let (leads, task) = manager.watch().await;
                return Candidate { leads, task };
            }
            Err(error) => warn!(%error, lease = args.lease_name, "lease not reached, will retry"),
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
}

impl Candidate {
    /// Gives the lease back, so that another need not wait for its end.
    pub async fn resign(self) {
        let Self { leads, task } = self;
        drop(leads);
        match task.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "lease not released"),
            Err(error) => warn!(%error, "lease not released"),
        }
    }
}
