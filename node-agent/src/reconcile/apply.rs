//! Making kernel, parameters and nft table as they should be, and knowing what of it was drift.

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
use crate::drift::{Difference, Judgement, link_of};
use crate::inputs::Inputs;
use crate::reconcile::Reconciler;
use crate::reconcile::link_conflicts::{LinkConflict, listener};
use crate::status::Outcome;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use netweft_common::error_chain;

impl<K: Kernel> Reconciler<K> {
    /// Does what is to be done now.
    pub(super) async fn apply_difference(
        &mut self,
        ops: &[Op],
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) -> Links {
        let now = Instant::now();
        let Judgement { drift, held } = self.drifts.judge(ops, actual, &desired.kernel, now);
        let due = || ops.iter().enumerate().filter(|(at, _)| !held.contains(at));
        let Applied { done, missing } = self.apply(due(), (actual, desired), outcome).await;
        for at in done {
            if let (Some(op), Some(difference)) = (ops.get(at), drift.get(&at)) {
                self.drifts.repaired(op, difference, now);
            }
        }
        let touched = due().filter_map(|(_, op)| link_of(op)).cloned().collect();
        Links { missing, touched }
    }

    pub(super) fn set_parameters(
        &mut self,
        desired: &Desired,
        links: &Links,
        outcome: &mut Outcome,
    ) {
        let Ensured { errors, set } = Parameters::new(&self.paths).ensure(
            &desired.accept_ra_links,
            &desired.loose_rp_filter,
            &BTreeMap::new(),
        );
        self.parameters_set(links, Ensured { errors, set }, outcome);
        self.set_wanted(desired, links, |_| true, outcome);
    }

    /// Sets some of the parameters.
    pub(super) fn set_wanted(
        &mut self,
        desired: &Desired,
        links: &Links,
        some: impl Fn(&str) -> bool,
        outcome: &mut Outcome,
    ) {
        let now = Instant::now();
        let mut wanted = desired.sysctls.clone();
        wanted.retain(|name, _| {
            some(name)
                && !is_of(name, &links.missing)
                && !self.drifts.has_to_wait(&parameter(name), now)
        });
        let none = BTreeSet::new();
        let ensured = Parameters::new(&self.paths).ensure(&none, &none, &wanted);
        self.parameters_set(links, ensured, outcome);
    }

    fn parameters_set(
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
            let was = |settled: &Desired| settled.parameters().any(|it| it == name);
            if self.drifts.settled().is_some_and(was) && !is_of(&name, &links.touched) {
                let difference = Difference { found, wanted };
                let what = parameter(&name);
                self.drifts
                    .thing_repaired("sysctl", &what, &difference, now);
            }
        }
    }

    /// Whether the tables of the last settled sync are still the desired ones.
    pub(super) fn tables_are_settled(&self, desired: &Desired) -> bool {
        let families = TableFamily::ALL.into_iter();
        let mut changed = families.filter(|family| !self.table_is_settled(*family, desired));
        changed.next().is_none()
    }

    fn table_is_settled(&self, family: TableFamily, desired: &Desired) -> bool {
        let mut settled = self.drifts.settled().into_iter();
        settled.any(|settled| settled.table(family) == desired.table(family))
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
        let was = self.table_is_settled(family, desired);
        if was && self.drifts.has_to_wait(table, now) {
            return;
        }
        let nft = Nft::new(&self.paths.run_dir, family);
        match nft.ensure(desired.table(family)).await {
            Ok(Change::None) => {}
            Ok(Change::Loaded { replaced }) => {
                info!(table, "loaded nft table");
                if was {
                    let found = if replaced { "another" } else { "none" };
                    let difference = Difference {
                        found: found.to_owned(),
                        wanted: "as it was loaded".to_owned(),
                    };
                    self.drifts.table_repaired(family, &difference, now);
                }
            }
            Ok(Change::Removed) => info!(table, "removed nft table"),
            // A retry would not help, and pods reach each other without the table.
            Err(NftError::NoFamily) => outcome.problems.extend(nft::unsupported(family, inputs)),
            Err(error) => outcome.fail(Problem::failure(table, &error)),
        }
    }

    /// Apply operations, which come with their places, in order; what hangs on a link that failed is left for the next time.
    pub(super) async fn apply<'o>(
        &self,
        ops: impl Iterator<Item = (usize, &'o Op)>,
        (actual, desired): (&NetworkState, &Desired),
        outcome: &mut Outcome,
    ) -> Applied {
        let mut broken: BTreeSet<LinkName> = BTreeSet::new();
        let mut applied = Applied::default();
        for (at, op) in ops {
            if !op.is_delete() && op.link().is_some_and(|link| broken.contains(link)) {
                continue;
            }
            match self.kernel.apply(op).await {
                Ok(()) => {
                    info!(%op, "applied netlink operation");
                    self.metrics.applied(op.kind());
                    applied.done.push(at);
                    self.prepare(op, desired);
                }
                Err(error) => {
                    if let Op::LinkAdd { name, .. } | Op::LinkRecreate { name, .. } = op {
                        applied.missing.insert(name.clone());
                    }
                    debug!(error = %error_chain(&error), "netlink operation failed, will retry");
                    if matches!(error, Error::Timeout { .. }) {
                        // The rest would take as long each.
                        outcome.fail(Problem::failure(op.object(), &error));
                        break;
                    }
                    // On another's link one route does not hang on the next.
                    let ours = op.link().filter(|link| Owner::agent().owns_link(link));
                    broken.extend(ours.cloned());
                    match lacking(op, &error, &desired.spare) {
                        Some(problem) => outcome.problems.push(problem),
                        None => self.refused(op, &error, (actual, desired), outcome),
                    }
                }
            }
        }
        applied
    }
}

impl<K: Kernel> Reconciler<K> {
    /// The parameters of a link that has just been made, before anything is put on it. What goes wrong is met again with all parameters.
    fn prepare(&self, op: &Op, desired: &Desired) {
        let (Op::LinkAdd { name, .. } | Op::LinkRecreate { name, .. }) = op else {
            return;
        };
        let (none, own) = (BTreeSet::new(), BTreeSet::from([name.clone()]));
        let wanted = desired.sysctls.iter().filter(|(name, _)| is_of(name, &own));
        let wanted = wanted.map(|(name, value)| (name.clone(), value.clone()));
        Parameters::new(&self.paths).ensure(&none, &none, &wanted.collect());
    }

    /// Says why the kernel has refused an operation.
    fn refused(
        &self,
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
        let of_a_link = matches!(
            op,
            Op::LinkAdd { .. } | Op::LinkRecreate { .. } | Op::LinkChange { .. }
        );
        // A route can be refused for what another node says of itself.
        if of_a_link {
            outcome.fail(failure);
        } else {
            outcome.problems.push(failure);
        }
    }
}

/// What came of operations.
#[derive(Default)]
pub(super) struct Applied {
    /// Those that were done, by their places.
    done: Vec<usize>,
    /// Links that could not be made.
    missing: BTreeSet<LinkName>,
}

/// What has become of links.
#[derive(Default)]
pub(super) struct Links {
    /// Those that could not be made, so that they have no parameters.
    missing: BTreeSet<LinkName>,
    /// Those with which something was done; a new one has the kernel's own parameters.
    touched: BTreeSet<LinkName>,
}

/// Whether a kernel parameter is one of these links'.
fn is_of(name: &str, links: &BTreeSet<LinkName>) -> bool {
    let mut links = links.iter();
    links.any(|link| name.contains(&format!("/{link}/")))
}

/// A kernel parameter in words.
fn parameter(name: &str) -> String {
    format!("parameter net/{name}")
}

/// A link of a kind that this kernel does not know (`rtnl_newlink`). Where no pod has an address that needs it (`spare`), pods go on: they
/// only do not reach those that have.
fn lacking(op: &Op, error: &Error, spare: &BTreeSet<LinkName>) -> Option<Problem> {
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
            spare: spare.contains(name),
        })
    })
}
