//! Applies the desired state to links, routes, sysctls and nftables, and records which changes repair drift.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use netweft_netstate::error::Error;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkKind, LinkName, NetworkState};
use netweft_netstate::op::Op;
use netweft_netstate::owner::Owner;
use nix::errno::Errno;
use tracing::{debug, info};

use crate::apply::nft::{Change, Nft, NftError, TableFamily};
use crate::apply::sysctl::{Ensured, Parameters};
use crate::desired::{Desired, nft};
use crate::drift::{Classified, Difference, link_of};
use crate::inputs::Inputs;
use crate::reconcile::Reconciler;
use crate::reconcile::link_conflicts::{LinkConflict, listener};
use crate::status::Outcome;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use netweft_common::error_chain;

impl<K: Kernel> Reconciler<K> {
    /// Applies the operations that are not deferred.
    pub(super) async fn apply_difference(
        &mut self,
        ops: &[Op],
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) -> Links {
        let now = Instant::now();
        let Classified { drift, deferred } = self.drift.classify(ops, actual, &desired.kernel, now);
        let indexed = ops.iter().enumerate();
        let due = || {
            indexed
                .clone()
                .filter(|(index, _)| !deferred.contains(index))
        };
        let Applied { done, missing } = self.apply(due(), (actual, desired), outcome).await;
        for index in done {
            if let (Some(op), Some(difference)) = (ops.get(index), drift.get(&index)) {
                self.drift.op_repaired(op, difference, now);
            }
        }
        let changed = due().filter_map(|(_, op)| link_of(op)).cloned().collect();
        Links { missing, changed }
    }

    pub(super) fn set_sysctls(&mut self, desired: &Desired, links: &Links, outcome: &mut Outcome) {
        let Ensured { errors, set } = Parameters::new(&self.paths).ensure(
            &desired.accept_ra_links,
            &desired.loose_rp_filter,
            &BTreeMap::new(),
        );
        self.record_sysctls(links, Ensured { errors, set }, outcome);
        self.set_selected_sysctls(desired, links, |_| true, outcome);
    }

    /// Sets the sysctls that `is_selected` returns true for.
    pub(super) fn set_selected_sysctls(
        &mut self,
        desired: &Desired,
        links: &Links,
        is_selected: impl Fn(&str) -> bool,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let mut selected = desired.sysctls.clone();
        selected.retain(|name, _| {
            is_selected(name)
                && !is_of_link(name, &links.missing)
                && !self.drift.must_wait(&sysctl_object(name), now)
        });
        let none = BTreeSet::new();
        let ensured = Parameters::new(&self.paths).ensure(&none, &none, &selected);
        self.record_sysctls(links, ensured, outcome);
    }

    fn record_sysctls(
        &mut self,
        links: &Links,
        Ensured { errors, set }: Ensured,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        for error in &errors {
            outcome.fail(Problem::failure(error.parameter(), error));
        }
        for (name, found, wanted) in set {
            let has_sysctl = |baseline: &Desired| baseline.sysctl_paths().any(|it| it == name);
            let is_drift = self.drift.baseline().is_some_and(has_sysctl);
            if is_drift && !is_of_link(&name, &links.changed) {
                let difference = Difference { found, wanted };
                let object = sysctl_object(&name);
                self.drift
                    .other_repaired("sysctl", &object, &difference, now);
            }
        }
    }

    /// Whether the tables of the last successful sync are still the desired ones.
    pub(super) fn tables_are_in_baseline(&self, desired: &Desired) -> bool {
        let mut families = TableFamily::ALL.into_iter();
        families.all(|family| self.table_is_in_baseline(family, desired))
    }

    fn table_is_in_baseline(&self, family: TableFamily, desired: &Desired) -> bool {
        let mut baseline = self.drift.baseline().into_iter();
        baseline.any(|baseline| baseline.table(family) == desired.table(family))
    }

    pub(super) async fn load_tables(
        &mut self,
        inputs: &Inputs,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        for family in TableFamily::ALL {
            self.load_table(family, inputs, desired, outcome).await;
        }
    }

    async fn load_table(
        &mut self,
        family: TableFamily,
        inputs: &Inputs,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let table = family.title();
        let was_loaded = self.table_is_in_baseline(family, desired);
        if was_loaded && self.drift.must_wait(table, now) {
            return;
        }
        let nft = Nft::new(&self.paths.run_dir, family);
        match nft.ensure(desired.table(family)).await {
            Ok(Change::None) => {}
            Ok(Change::Loaded { replaced }) => {
                info!(table, "loaded nft table");
                if was_loaded {
                    let found = if replaced { "another" } else { "none" };
                    let difference = Difference {
                        found: found.to_owned(),
                        wanted: "as it was loaded".to_owned(),
                    };
                    self.drift.table_repaired(family, &difference, now);
                }
            }
            Ok(Change::Removed) => info!(table, "removed nft table"),
            // A retry does not help, and pods reach each other without the table.
            Err(NftError::NoFamily) => outcome.problems.extend(nft::unsupported(family, inputs)),
            Err(error) => outcome.fail(Problem::failure(table, &error)),
        }
    }

    /// Applies operations, which come with their indexes, in order. After the failure of a link, the operations on it are left to the
    /// next reconcile.
    pub(super) async fn apply<'o>(
        &self,
        ops: impl Iterator<Item = (usize, &'o Op)>,
        (actual, desired): (&NetworkState, &Desired),
        outcome: &mut Outcome,
    ) -> Applied {
        let mut failed_links: BTreeSet<LinkName> = BTreeSet::new();
        let mut applied = Applied::default();
        for (index, op) in ops {
            if !op.is_delete() && op.link().is_some_and(|link| failed_links.contains(link)) {
                continue;
            }
            match self.kernel.apply(op).await {
                Ok(()) => {
                    info!(%op, "applied netlink operation");
                    self.metrics.applied(op.kind());
                    applied.done.push(index);
                    self.set_sysctls_of_new_link(op, desired);
                }
                Err(error) => {
                    if let Op::LinkAdd { name, .. } | Op::LinkRecreate { name, .. } = op {
                        applied.missing.insert(name.clone());
                    }
                    debug!(error = %error_chain(&error), "netlink operation failed, will retry");
                    if matches!(error, Error::Timeout { .. }) {
                        // Each further operation would take as long.
                        outcome.fail(Problem::failure(op.object(), &error));
                        break;
                    }
                    // The failure of a route on a link of the host does not affect other routes on it.
                    let own = op.link().filter(|link| Owner::agent().owns_link(link));
                    failed_links.extend(own.cloned());
                    match unsupported_kind(op, &error, &desired.transmit_only_links) {
                        Some(problem) => outcome.problems.push(problem),
                        None => add_failure(op, &error, (actual, desired), outcome),
                    }
                }
            }
        }
        applied
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Sets the sysctls of a new link before addresses and routes are added. A failure is reported when all sysctls are set.
    fn set_sysctls_of_new_link(&self, op: &Op, desired: &Desired) {
        let (Op::LinkAdd { name, .. } | Op::LinkRecreate { name, .. }) = op else {
            return;
        };
        let (none, link) = (BTreeSet::new(), BTreeSet::from([name.clone()]));
        let sysctls = desired.sysctls.iter();
        let of_link = sysctls.filter(|(name, _)| is_of_link(name, &link));
        let of_link = of_link.map(|(name, value)| (name.clone(), value.clone()));
        Parameters::new(&self.paths).ensure(&none, &none, &of_link.collect());
    }
}

/// Adds the problem of an operation that the kernel has refused.
fn add_failure(
    op: &Op,
    error: &Error,
    (actual, desired): (&NetworkState, &Desired),
    outcome: &mut Outcome,
) {
    let conflict = LinkConflict::find(op, error, (actual, &desired.kernel), listener);
    let failure = match &conflict {
        Some(conflict) => Problem::failure(op.object(), conflict),
        None => Problem::failure(op.object(), error),
    };
    let is_link = matches!(
        op,
        Op::LinkAdd { .. } | Op::LinkRecreate { .. } | Op::LinkChange { .. }
    );
    // The cause of a refused route can be the address of another node.
    if is_link {
        outcome.fail(failure);
    } else {
        outcome.problems.push(failure);
    }
}

/// The result of operations.
#[derive(Default)]
pub(super) struct Applied {
    /// Indexes of the operations that succeeded.
    done: Vec<usize>,
    /// Links that could not be created.
    missing: BTreeSet<LinkName>,
}

/// The links that operations were for.
#[derive(Default)]
pub(super) struct Links {
    /// Links that could not be created, so that they have no sysctls.
    missing: BTreeSet<LinkName>,
    /// Links that were created or changed. A new link has the kernel's default sysctls.
    changed: BTreeSet<LinkName>,
}

/// Whether a sysctl belongs to one of these links.
fn is_of_link(name: &str, links: &BTreeSet<LinkName>) -> bool {
    let mut links = links.iter();
    links.any(|link| name.contains(&format!("/{link}/")))
}

/// The name of a sysctl in messages.
fn sysctl_object(name: &str) -> String {
    format!("parameter net/{name}")
}

/// The problem of a link whose kind the kernel does not support (`rtnl_newlink`). If no address of a pod of this node needs it
/// (`transmit_only`), pods work, but do not reach pods behind the link.
fn unsupported_kind(op: &Op, error: &Error, transmit_only: &BTreeSet<LinkName>) -> Option<Problem> {
    let (Op::LinkAdd { name, link } | Op::LinkRecreate { name, link, .. }) = op else {
        return None;
    };
    let kind = match link.kind {
        LinkKind::Vxlan(_) => "vxlan",
        LinkKind::Ipip { .. } => "ipip",
        LinkKind::Bridge => "bridge",
        LinkKind::Tun | LinkKind::Veth | LinkKind::Other(_) => return None,
    };
    (error.errno() == Some(Errno::EOPNOTSUPP)).then(|| {
        Problem::from(Cause::LinkKindUnsupported {
            link: name.clone(),
            kind,
            transmit_only: transmit_only.contains(name),
        })
    })
}
