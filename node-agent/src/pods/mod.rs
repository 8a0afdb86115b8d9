//! Repair of objects that the plugin has made, and reclaiming of orphaned objects.
//!
//! ```text
//!   records, kernel ──survey──▶ nothing amiss ─▶ done
//!                           └─▶ amiss: lock ─▶ look at both again ─▶ diff ─▶ apply, release
//! ```
//!
//! Guarantees: nothing is done on a look that was not taken under the plugin's own lock; an ADD under way is left alone; a
//! link is never made, and never deleted while it has a record; an address is never freed while its link is there; of a block
//! that was taken from the node no address is missed.
//! Nothing here waits for the plugin: when it has the lock, the next look comes soon.

mod orphan_timer;
mod reclaim;
mod reservations;
mod state;
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
pub use crate::pods::reclaim::{OrphanCandidate, Records, Survey};
pub use crate::pods::reservations::{Hold, Reservations};
pub use crate::pods::state::{PodLink, PodState};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, ProblemKind, Problems};
use crate::telemetry::metrics::Metrics;
use netweft_common::error_chain;

/// How long the lock is waited for: its holders need below a millisecond each, and this is the agent's only thread.
const LOCK_TIMEOUT: Duration = Duration::from_millis(5);
/// When to look again after the lock was taken or a link went away under our hands.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The node's pods.
pub struct Pods {
    store: Store,
    metrics: Metrics,
    orphans: OrphanTimer,
    reservations: Reservations,
    /// Every block that an ADD may be choosing from; `None`: not known, as of what an agent before this one has offered.
    offered: Option<BTreeSet<IpNet>>,
    /// What has been logged already and still holds.
    noted: BTreeSet<String>,
    counts: Counts,
}

/// What has been done since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changes that put something back.
    pub restored: u64,
    /// Addresses, links, routes and neighbours taken back.
    pub reclaimed: u64,
}

/// How one look went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// What could not be done, what is in a pod's way, and what stays as it is.
    pub problems: Problems,
    /// When to look again although nothing may have happened.
    pub again: Option<Duration>,
}

/// Why pods could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The plugin's lock cannot be had.
    #[error("lock the attachments")]
    Lock(#[source] io::Error),
    /// The records cannot be listed.
    #[error("read the attachments")]
    List(#[source] io::Error),
    /// It is not known whether an ADD is at work on a record.
    #[error("look at the attachment of {ip}")]
    Look {
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
            PodsError::Look { ip, .. } => Self::failure(format!("attachment {ip}"), error),
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
            offered: None,
            noted: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// All records, and what follows from them for the node. `config` is the present `node.json`, read before.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn state(&mut self, config: Option<&NodeConfig>) -> io::Result<(Records, PodState)> {
        let store = &self.store;
        let locked = |patience| store.lock(patience).is_ok();
        self.reservations.observe(config, LOCK_TIMEOUT, locked);
        let records = store.list()?;
        let state = PodState::of(&records, config, |ip| self.reservations.hold(ip));
        Ok((records, state))
    }

    /// The addresses that have a record, once no others than those of the blocks that are `offered` now can come to have one. `None` if
    /// those blocks are not known.
    ///
    /// The plugin learns under its lock what it may choose from, and writes its record before it lets go of it. So when a block is offered
    /// no more and the lock has been had since, whoever chose from that block has a record.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody else keeps the lock; else why it cannot be had, or the directory not be read.
    pub fn taken(
        &mut self,
        offered: Option<BTreeSet<IpNet>>,
    ) -> io::Result<Option<BTreeSet<IpAddr>>> {
        let before = self.offered.take();
        let Some(offered) = offered else {
            return Ok(None);
        };
        if before.is_none_or(|before| !before.is_subset(&offered)) {
            drop(self.store.lock(LOCK_TIMEOUT)?);
        }
        self.offered = Some(offered);
        self.store.allocated().map(Some)
    }

    /// What has been done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Looks after the pods, of which `records` and `actual` are a first impression.
    pub async fn tend(
        &mut self,
        kernel: &impl Kernel,
        records: &Records,
        actual: &NetworkState,
        now: Instant,
    ) -> Tended {
        let mut tended = Tended::default();
        let survey = Survey::new(actual, records);
        if let Err(error) = self.observe(kernel, &survey, now, &mut tended).await {
            tended.problems.push(Problem::from(&error));
        }
        self.note(records, &mut tended);
        let due = self.orphans.due(now).map(|due| due.max(RETRY_INTERVAL));
        tended.again = tended.again.into_iter().chain(due).min();
        tended
    }

    /// Says what stays as it is, and logs it when it is new.
    fn note(&mut self, records: &Records, tended: &mut Tended) {
        let unreadable = records.iter().filter_map(|(ip, record)| {
            let error = record.as_ref().err()?;
            Some(Problem::from(Cause::AttachmentUnreadable {
                address: *ip,
                error: error.to_string(),
            }))
        });
        tended.problems.extend(unreadable);
        let notes = tended.problems.of(ProblemKind::Note);
        let notes: BTreeSet<String> = notes.map(ToString::to_string).collect();
        for note in notes.difference(&self.noted) {
            warn!(problem = note, "pod needs attention");
        }
        self.noted = notes;
    }

    async fn observe(
        &mut self,
        kernel: &impl Kernel,
        survey: &Survey<'_>,
        now: Instant,
        tended: &mut Tended,
    ) -> Result<(), PodsError> {
        // Asking who is under way opens every record, so only when it matters.
        let (nobody, none) = (BTreeSet::new(), BTreeSet::new());
        let calm = survey.suspects(&nobody).is_empty();
        if calm && survey.repairs(&nobody, &none) == Diff::default() {
            self.orphans.observe(now, none);
            return Ok(());
        }
        let add_in_progress = add_in_progress(&self.store, survey.records())?;
        let dead = self.orphans.observe(now, survey.suspects(&add_in_progress));
        let Diff { ops, conflicts } = survey.repairs(&add_in_progress, &dead);
        tended.problems.extend(dead.iter().filter_map(orphan));
        let conflicts = conflicts.iter().map(Problem::from);
        tended.problems.extend(conflicts);
        if ops.is_empty() && survey.attachments(&dead).is_empty() {
            return Ok(());
        }
        self.put_right(kernel, &dead, tended).await
    }

    /// Takes the lock, looks again, and does what then still is to be done.
    ///
    /// The order of the second look matters: the records, then who is under way, then the kernel. An ADD that was not under
    /// way any more when it was asked had made its link before the kernel was read, and none can begin while the lock is held.
    async fn put_right(
        &mut self,
        kernel: &impl Kernel,
        dead: &BTreeSet<OrphanCandidate>,
        tended: &mut Tended,
    ) -> Result<(), PodsError> {
        let store = self.store.clone();
        let mut locked = match store.lock(LOCK_TIMEOUT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tended.again = Some(RETRY_INTERVAL);
                return Ok(());
            }
            locked => locked.map_err(PodsError::Lock)?,
        };
        let records = store.list().map_err(PodsError::List)?;
        let add_in_progress = add_in_progress(&store, &records)?;
        let actual = kernel.read().await?;
        let survey = Survey::new(&actual, &records);
        let suspects = survey.suspects(&add_in_progress);
        let dead = suspects.intersection(dead).cloned().collect();
        self.apply(kernel, &survey.repairs(&add_in_progress, &dead).ops, tended)
            .await;
        for attachment in survey.attachments(&dead) {
            self.release(&mut locked, attachment, tended);
        }
        Ok(())
    }

    /// What hangs on a link that failed is left for the next time.
    async fn apply(&mut self, kernel: &impl Kernel, ops: &[Op], tended: &mut Tended) {
        let mut broken = BTreeSet::new();
        for op in ops {
            if op.link().is_some_and(|link| broken.contains(link)) {
                continue;
            }
            match kernel.apply(op).await {
                Ok(()) => self.count(op),
                Err(error) => {
                    broken.extend(op.link().cloned());
                    failed(op, &error, tended);
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

    fn release(&mut self, locked: &mut Locked<'_>, attachment: &Attachment, tended: &mut Tended) {
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
                tended.problems.push(Problem::from(cause));
            }
        }
    }
}

/// The addresses of these records that an ADD is at work on.
///
/// # Errors
/// A record cannot be looked at.
pub fn add_in_progress(store: &Store, records: &Records) -> Result<BTreeSet<IpAddr>, PodsError> {
    let mut add_in_progress = BTreeSet::new();
    for ip in records.keys() {
        let busy = store.add_in_progress(*ip);
        if busy.map_err(|source| PodsError::Look { ip: *ip, source })? {
            add_in_progress.insert(*ip);
        }
    }
    Ok(add_in_progress)
}

fn orphan(suspect: &OrphanCandidate) -> Option<Problem> {
    match suspect {
        OrphanCandidate::Orphan(link) => {
            let link = link.clone();
            Some(Problem::from(Cause::PodWithoutRecord { link }))
        }
        OrphanCandidate::Attachment(_)
        | OrphanCandidate::Link(_)
        | OrphanCandidate::Route(_)
        | OrphanCandidate::Neighbour(_) => None,
    }
}

/// A DEL takes links away without the lock, and all that is on them. What then cannot be put back needs not be.
fn failed(op: &Op, error: &Error, tended: &mut Tended) {
    match error.errno() {
        Some(Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN) => tended.again = Some(RETRY_INTERVAL),
        _ => {
            debug!(error = %error_chain(error), "repairing pod link failed, will retry");
            let failure = Problem::failure(op.object(), error);
            tended.problems.push(failure);
        }
    }
}
