//! Leader election by a Lease: of several operators, one writes.
//!
//! # Guarantees
//! The Lease does not guarantee exclusive writes. A leader that was stopped, or that has lost the API server, can act as
//! leader for a while after another operator has acquired the Lease. Nothing depends on exclusiveness: a block is unique
//! by the name of its NodeSubnet, and updates and deletes carry the resource version that they are based on. The Lease
//! only avoids double work.
//!
//! # Clocks
//! No clocks of different nodes are compared. A Lease expires when a candidate has observed no renewal for the duration
//! of the Lease, by the candidate's own monotonic clock. Wrong or changed wall clocks have no effect. client-go does the
//! same (`tools/leaderelection`).

mod election;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use netweft_crds::names::OPERATOR_FIELD_MANAGER;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::commands::args::Args;
use crate::controller::api_request::request;
use crate::controller::api_request_error::{Class, RequestError};
use crate::leader_election::election::{Election, Step};

/// A candidate of the leader election.
pub struct Candidate {
    /// Whether this operator is the leader.
    pub is_leader: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// Starts the leader election.
pub fn start(client: &Client, args: &Args) -> Candidate {
    let identity = args.identity.clone().unwrap_or_else(random_identity);
    let (leadership, is_leader) = watch::channel(false);
    let lease_client = LeaseClient {
        api: Api::namespaced(client.clone(), &args.namespace),
        name: args.lease_name.clone(),
    };
    let election = Election::new(identity, args.lease_duration);
    let task = tokio::spawn(run(lease_client, election, leadership));
    Candidate { is_leader, task }
}

/// A unique identity for an operator without `--identity`.
fn random_identity() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("operator-{:016x}", RandomState::new().hash_one(()))
}

impl Candidate {
    /// Releases the Lease, so that another operator need not wait until it expires.
    pub async fn release(self) {
        let Self { is_leader, task } = self;
        drop(is_leader);
        if let Err(error) = task.await {
            warn!(%error, "releasing lease failed");
        }
    }
}

/// Acquires and renews the Lease until `leadership` has no receiver, then releases the Lease.
async fn run(lease_client: LeaseClient, mut election: Election, leadership: watch::Sender<bool>) {
    let mut failing = false;
    loop {
        let deadline = election.request_deadline(Instant::now());
        let attempt = lease_client.try_acquire_or_renew(&mut election);
        let result = tokio::select! {
            // Without an answer the leadership ends in time, too.
            result = tokio::time::timeout_at(deadline, attempt) => result,
            () = leadership.closed() => break,
        };
        match result {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                failing = true;
                warn!(error = error.chain(), "renewing lease failed, will retry");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        let now = Instant::now();
        leadership.send_if_modified(|is_leader| {
            std::mem::replace(is_leader, election.is_leader(now)) != *is_leader
        });
        let next = election.next_attempt(now);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = leadership.closed() => break,
        }
    }
    if let Some(lease) = election.release() {
        match lease_client.patch(lease).await {
            Ok(_) => info!("released lease"),
            Err(error) => warn!(error = error.chain(), "releasing lease failed"),
        }
    }
}

/// Requests about the Lease.
struct LeaseClient {
    api: Api<Lease>,
    name: String,
}

impl LeaseClient {
    /// Reads the Lease, and writes it if the election requires it.
    async fn try_acquire_or_renew(&self, election: &mut Election) -> Result<(), RequestError> {
        let get = self.api.get_opt(&self.name);
        let found = request("get", "Lease", &self.name, get).await?;
        let started = Instant::now();
        let written = match election.step(found.as_ref(), started) {
            Step::Wait => return Ok(()),
            Step::Create(spec) => self.create(spec).await,
            Step::Update(lease) => self.patch(*lease).await,
        };
        match written {
            Ok(lease) => election.acquired(&lease, started),
            // Another candidate has written the Lease first.
            Err(error) if error.class() == Class::Stale => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn create(&self, spec: LeaseSpec) -> Result<Lease, RequestError> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let params = PostParams::default();
        let create = self.api.create(&params, &lease);
        request("create", "Lease", &self.name, create).await
    }

    /// Writes the Lease, unless another client has written it since `lease` was read.
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
