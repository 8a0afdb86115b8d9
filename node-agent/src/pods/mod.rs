//! Repair of objects that the plugin has created, and reclaiming of orphaned objects.
//!
//! ```text
//!   records, kernel ──survey──▶ no difference ─▶ done
//!                           └─▶ difference: lock ─▶ read both again ─▶ diff ─▶ apply, release
//! ```
//!
//! Guarantees: every change is based on a survey under the plugin's lock; an ADD in progress is not disturbed; a link is never
//! created, and never deleted while it has a record; an address is never released while its link exists; no address of a
//! withdrawn block is missed. The agent does not wait for the plugin: while the plugin has the lock, it retries soon.

mod orphan_timer;
mod pod_state;
mod reclaim;
mod reservations;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_cni::attachment::{Attachment, Locked, Store};
use netweft_cni::env;
use netweft_cni::node::NodeConfig;
use netweft_netstate::diff::Diff;
use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::op::Op;
use nix::errno::Errno;
use tracing::{debug, info, warn};

use crate::pods::orphan_timer::OrphanTimer;
pub use crate::pods::pod_state::{PodLink, PodState};
pub use crate::pods::reclaim::{OrphanCandidate, Records, Survey};
pub use crate::pods::reservations::{Reservation, Reservations};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, ProblemKind, Problems};
use crate::telemetry::metrics::Metrics;
use netweft_common::error_chain;

/// How long the agent waits for the lock. Its holders keep it for less than a millisecond, and the wait blocks the main loop.
const LOCK_TIMEOUT: Duration = Duration::from_millis(5);
/// Delay of the next attempt after another process had the lock, or a link disappeared during a repair.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The node's pods.
pub struct Pods {
    store: Store,
    metrics: Metrics,
    orphans: OrphanTimer,
    reservations: Reservations,
    /// The blocks from which an ADD may assign addresses; `None`: unknown, for example those of an earlier agent.
    allocatable: Option<BTreeSet<IpNet>>,
    /// Notes that are logged already and still apply.
    logged_notes: BTreeSet<String>,
    counts: Counts,
}

/// Number of changes since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Restored objects.
    pub restored: u64,
    /// Reclaimed attachments, links, routes and neighbours.
    pub reclaimed: u64,
}

/// The result of a reconcile of pods.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodsOutcome {
    /// Failures, conflicts, and notes about objects that are kept.
    pub problems: Problems,
    /// Delay of the next reconcile, even without an event.
    pub requeue_after: Option<Duration>,
}

/// Why pods could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The plugin's lock cannot be acquired.
    #[error("lock the attachments")]
    Lock(#[source] io::Error),
    /// The records cannot be listed.
    #[error("read the attachments")]
    List(#[source] io::Error),
    /// It is unknown whether an ADD holds a record.
    #[error("read the lock of the attachment of {ip}")]
    RecordLock {
        /// The record's address.
        ip: IpAddr,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl From<&PodsError> for Problem {
    fn from(error: &PodsError) -> Self {
        match error {
            PodsError::Lock(_) | PodsError::List(_) => Self::failure("attachments", error),
            PodsError::RecordLock { ip, .. } => Self::failure(format!("attachment {ip}"), error),
            PodsError::Kernel(_) => Self::failure("kernel", error),
        }
    }
}

impl Pods {
    /// The pods whose records are in `store`.
    #[must_use]
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self {
            store,
            metrics,
            orphans: OrphanTimer::default(),
            reservations: Reservations::default(),
            allocatable: None,
            logged_notes: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// All records, and the state that follows from them. `config` is the present `node.json`; the caller reads it first.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub fn state(&mut self, config: Option<&NodeConfig>) -> io::Result<(Records, PodState)> {
        let store = &self.store;
        let try_lock = |timeout| store.lock(timeout).is_ok();
        self.reservations.update(config, LOCK_TIMEOUT, try_lock);
        let records = store.list()?;
        let state = PodState::of(&records, config, |ip| self.reservations.of(ip));
        Ok((records, state))
    }

    /// The addresses with a record, after it is certain that only addresses of the `allocatable` blocks can get another one. `None`
    /// if these blocks are unknown.
    ///
    /// The plugin reads the blocks under its lock, and writes its record before it releases the lock. After a block has been removed
    /// and the lock has been acquired, every ADD that has selected an address of the block has its record.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process holds the lock; otherwise the lock cannot be acquired, or the records
    /// cannot be listed.
    pub fn assigned_addresses(
        &mut self,
        allocatable: Option<BTreeSet<IpNet>>,
    ) -> io::Result<Option<BTreeSet<IpAddr>>> {
        let previous = self.allocatable.take();
        let Some(allocatable) = allocatable else {
            return Ok(None);
        };
        if previous.is_none_or(|previous| !previous.is_subset(&allocatable)) {
            drop(self.store.lock(LOCK_TIMEOUT)?);
        }
        self.allocatable = Some(allocatable);
        self.store.allocated().map(Some)
    }

    /// The number of changes so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Repairs and reclaims. `records` and `actual` were read without the lock; a difference is confirmed under the lock.
    pub async fn reconcile(
        &mut self,
        kernel: &impl Kernel,
        records: &Records,
        actual: &NetworkState,
        now: Instant,
    ) -> PodsOutcome {
        let mut outcome = PodsOutcome::default();
        let survey = Survey::new(actual, records);
        if let Err(error) = self.handle_survey(kernel, &survey, now, &mut outcome).await {
            outcome.problems.push(Problem::from(&error));
        }
        self.add_notes(records, &mut outcome);
        let due = self.orphans.next_due(now);
        let due = due.map(|due| due.max(RETRY_INTERVAL));
        outcome.requeue_after = outcome.requeue_after.into_iter().chain(due).min();
        outcome
    }

    /// Adds notes about unreadable records, and logs all new notes.
    fn add_notes(&mut self, records: &Records, outcome: &mut PodsOutcome) {
        let unreadable = records.iter().filter_map(|(ip, record)| {
            let error = record.as_ref().err()?;
            Some(Problem::from(Cause::AttachmentUnreadable {
                address: *ip,
                error: error.to_string(),
            }))
        });
        outcome.problems.extend(unreadable);
        let notes = outcome.problems.of(ProblemKind::Note);
        let notes: BTreeSet<String> = notes.map(ToString::to_string).collect();
        for note in notes.difference(&self.logged_notes) {
            warn!(problem = note, "pod needs attention");
        }
        self.logged_notes = notes;
    }

    async fn handle_survey(
        &mut self,
        kernel: &impl Kernel,
        survey: &Survey<'_>,
        now: Instant,
        outcome: &mut PodsOutcome,
    ) -> Result<(), PodsError> {
        // The check for ADDs in progress opens every record, so it is skipped when there is no difference.
        let (no_adds, none) = (BTreeSet::new(), BTreeSet::new());
        let no_candidates = survey.orphan_candidates(&no_adds).is_empty();
        if no_candidates && survey.repairs(&no_adds, &none) == Diff::default() {
            self.orphans.update(now, none);
            return Ok(());
        }
        let adds = add_in_progress(&self.store, survey.records())?;
        let orphans = self.orphans.update(now, survey.orphan_candidates(&adds));
        let Diff { ops, conflicts } = survey.repairs(&adds, &orphans);
        let notes = orphans.iter().filter_map(pod_without_record);
        outcome.problems.extend(notes);
        let conflicts = conflicts.iter().map(Problem::from);
        outcome.problems.extend(conflicts);
        if ops.is_empty() && survey.attachments(&orphans).is_empty() {
            return Ok(());
        }
        self.repair_locked(kernel, &orphans, outcome).await
    }

    /// Acquires the lock, reads everything again, and makes the changes that are still necessary.
    ///
    /// The order matters: the records, then the ADDs in progress, then the kernel. An ADD that is no longer in progress had created
    /// its link before the kernel is read, and no ADD can start while the lock is held.
    async fn repair_locked(
        &mut self,
        kernel: &impl Kernel,
        orphans: &BTreeSet<OrphanCandidate>,
        outcome: &mut PodsOutcome,
    ) -> Result<(), PodsError> {
        let store = self.store.clone();
        let mut locked = match store.lock(LOCK_TIMEOUT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                outcome.requeue_after = Some(RETRY_INTERVAL);
                return Ok(());
            }
            locked => locked.map_err(PodsError::Lock)?,
        };
        let records = store.list().map_err(PodsError::List)?;
        let adds = add_in_progress(&store, &records)?;
        let actual = kernel.read().await?;
        let survey = Survey::new(&actual, &records);
        let candidates = survey.orphan_candidates(&adds);
        let orphans = candidates.intersection(orphans).cloned().collect();
        let repairs = survey.repairs(&adds, &orphans);
        self.apply(kernel, &repairs.ops, outcome).await;
        for attachment in survey.attachments(&orphans) {
            self.release(&mut locked, attachment, outcome);
        }
        Ok(())
    }

    /// Applies operations. After a failure, further operations on the same link are left to the next reconcile.
    async fn apply(&mut self, kernel: &impl Kernel, ops: &[Op], outcome: &mut PodsOutcome) {
        let mut failed_links = BTreeSet::new();
        for op in ops {
            if op.link().is_some_and(|link| failed_links.contains(link)) {
                continue;
            }
            match kernel.apply(op).await {
                Ok(()) => self.count(op),
                Err(error) => {
                    failed_links.extend(op.link().cloned());
                    add_failure(op, &error, outcome);
                }
            }
        }
    }

    fn count(&mut self, op: &Op) {
        let reclaimed = matches!(
            op,
            Op::LinkDelete { .. } | Op::RouteDelete { .. } | Op::NeighbourDelete { .. }
        );
        if reclaimed {
            info!(%op, "removed orphaned object");
            self.counts.reclaimed += 1;
            self.metrics.reclaimed(op.kind());
        } else {
            info!(%op, "restored object of pod");
            self.counts.restored += 1;
            self.metrics.restored(op.kind());
        }
    }

    fn release(
        &mut self,
        locked: &mut Locked<'_>,
        attachment: &Attachment,
        outcome: &mut PodsOutcome,
    ) {
        let env::AttachmentId {
            container_id,
            if_name,
        } = &attachment.owner;
        let addresses = attachment.addresses.iter().map(|address| address.ip);
        match locked.release(&attachment.owner, addresses.clone()) {
            Ok(()) => {
                let addresses: Vec<String> = addresses.map(|ip| ip.to_string()).collect();
                info!(addresses = addresses.join(","), container_id, %if_name, "released attachment without link");
                self.counts.reclaimed += 1;
                self.metrics.reclaimed("attachment");
            }
            Err(error) => {
                let cause = Cause::AttachmentNotRemoved {
                    container_id: container_id.clone(),
                    error: error.to_string(),
                };
                outcome.problems.push(Problem::from(cause));
            }
        }
    }
}

/// The addresses of records that an ADD in progress holds.
///
/// # Errors
/// The lock of a record cannot be read.
pub fn add_in_progress(store: &Store, records: &Records) -> Result<BTreeSet<IpAddr>, PodsError> {
    let mut adds = BTreeSet::new();
    for ip in records.keys() {
        let in_progress = store.add_in_progress(*ip);
        if in_progress.map_err(|source| PodsError::RecordLock { ip: *ip, source })? {
            adds.insert(*ip);
        }
    }
    Ok(adds)
}

fn pod_without_record(candidate: &OrphanCandidate) -> Option<Problem> {
    match candidate {
        OrphanCandidate::LinkInUse(link) => {
            let link = link.clone();
            Some(Problem::from(Cause::PodWithoutRecord { link }))
        }
        OrphanCandidate::Attachment(_)
        | OrphanCandidate::Link(_)
        | OrphanCandidate::Route(_)
        | OrphanCandidate::Neighbour(_) => None,
    }
}

/// A DEL deletes links, with everything on them, without the lock. A repair that fails for that reason is no failure.
fn add_failure(op: &Op, error: &Error, outcome: &mut PodsOutcome) {
    match error.errno() {
        Some(Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN) => {
            outcome.requeue_after = Some(RETRY_INTERVAL);
        }
        _ => {
            debug!(error = %error_chain(error), "repairing pod link failed, will retry");
            let failure = Problem::failure(op.object(), error);
            outcome.problems.push(failure);
        }
    }
}
