//! Leadership: of several operators, one writes.
//!
//! # Guarantees
//! None about exclusiveness. A leader that was stopped, or cut off from the API server, may believe in its lease for a
//! while after another has taken it. Nothing depends on it: blocks are unique by the name of their NodeSubnet, and
//! updates and deletes carry the version they are based on. The lease only spares the API server double work.
//!
//! # Clocks
//! None is compared with another's. A lease that nobody has renewed for as long as it lasts, by the monotonic clock of whoever looks
//! at it, may be taken; what time its holder thinks it is does not matter, nor that somebody sets a clock. (What the Kubernetes
//! components do, `client-go/tools/leaderelection`.)

mod election;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use netweft_crds::names::OPERATOR_FIELD_MANAGER;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::commands::args::Args;
use crate::controller::api_request::request;
use crate::controller::api_request_error::RequestError;
use crate::leader_election::election::{Election, Step};

/// A candidate for leadership.
pub struct Candidate {
    /// Whether this operator leads.
    pub leads: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// Becomes a candidate.
pub fn stand(client: &Client, args: &Args) -> Candidate {
    let identity = args.identity.clone().unwrap_or_else(random_name);
    let (told, leads) = watch::channel(false);
    let leases = Leases {
        api: Api::namespaced(client.clone(), &args.namespace),
        name: args.lease_name.clone(),
    };
    let election = Election::new(identity, args.lease_duration);
    let task = tokio::spawn(run(leases, election, told));
    Candidate { leads, task }
}

/// Tells operators apart that have not been given a name.
fn random_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("operator-{:016x}", RandomState::new().hash_one(()))
}

impl Candidate {
    /// Gives the lease back, so that another need not wait for its end.
    pub async fn resign(self) {
        let Self { leads, task } = self;
        drop(leads);
        if let Err(error) = task.await {
            warn!(%error, "releasing lease failed");
        }
    }
}

/// Looks at the lease again and again, until nobody wants to know.
async fn run(leases: Leases, mut election: Election, told: watch::Sender<bool>) {
    let mut failing = false;
    loop {
        let patience = election.patience(Instant::now());
        let turn = leases.turn(&mut election);
        let turn = tokio::select! {
            // A leader steps down in time, whether or not anybody answers.
            turn = tokio::time::timeout_at(patience, turn) => turn,
            () = told.closed() => break,
        };
        match turn {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                failing = true;
                warn!(error = error.chain(), "renewing lease failed, will retry");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        let now = Instant::now();
        told.send_if_modified(|leads| std::mem::replace(leads, election.leads(now)) != *leads);
        let until = election.next(now);
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = told.closed() => break,
        }
    }
    if let Some(lease) = election.resignation() {
        match leases.patch(lease).await {
            Ok(_) => info!("released lease"),
            Err(error) => warn!(error = error.chain(), "releasing lease failed"),
        }
    }
}

/// The lease at the API server.
struct Leases {
    api: Api<Lease>,
    name: String,
}

impl Leases {
    /// One look, and what follows from it.
    async fn turn(&self, election: &mut Election) -> Result<(), RequestError> {
        let asked = request("get", "Lease", &self.name, self.api.get_opt(&self.name));
        let found = asked.await?;
        let begun = Instant::now();
        let written = match election.step(found.as_ref(), begun) {
            Step::Wait => return Ok(()),
            Step::Create(spec) => {
                let lease = Lease {
                    metadata: kube::api::ObjectMeta {
                        name: Some(self.name.clone()),
                        ..kube::api::ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                let params = PostParams::default();
                request(
                    "create",
                    "Lease",
                    &self.name,
                    self.api.create(&params, &lease),
                )
                .await
            }
            Step::Write(lease) => self.patch(*lease).await,
        };
        match written {
            Ok(lease) => election.won(&lease, begun),
            // Another was faster.
            Err(error) if error.class() == crate::controller::api_request_error::Class::Stale => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes the lease, unless another client has written it since `lease` was read.
    async fn patch(&self, lease: Lease) -> Result<Lease, RequestError> {
        let params = PatchParams {
            field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(lease);
        let sent = self.api.patch(&self.name, &params, &patch);
        request("patch", "Lease", &self.name, sent).await
    }
}
