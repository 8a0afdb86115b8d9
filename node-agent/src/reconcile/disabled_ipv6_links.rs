//! Links on which somebody has switched IPv6 off: the kernel has dropped their addresses and routes, and takes no others before it is on
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkName, NetworkState};

use crate::apply::sysctl::{DISABLE_IPV6, Parameters, disable_ipv6};
use crate::desired::Desired;
use crate::pods::Records;
use crate::reconcile::Reconciler;
use crate::reconcile::apply::Links;
use crate::status::Outcome;
use crate::status::problem::Problem;

impl<K: Kernel> Reconciler<K> {
    /// Switches IPv6 on where it is carried, before what it takes is put back. New links come later.
    pub(super) fn allow_ipv6(
        &mut self,
        records: &Records,
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        let is_it = |name: &str| Path::new(name).ends_with(DISABLE_IPV6);
        let links = actual.links.keys();
        let there: BTreeSet<String> = links.map(disable_ipv6).collect();
        let on_links = |name: &str| is_it(name) && there.contains(name);
        self.set_wanted(desired, &Links::default(), on_links, outcome);
        let pods: BTreeMap<String, String> = cut_off(records, actual)
            .map(|link| (disable_ipv6(link), "0".to_owned()))
            .collect();
        let none = BTreeSet::new();
        let ensured = Parameters::new(&self.paths).ensure(&none, &none, &pods);
        for error in &ensured.errors {
            outcome.fail(Problem::failure(error.parameter(), error));
        }
    }
}

/// Links of pods that have an IPv6 address to which no route leads.
fn cut_off<'a>(
    records: &'a Records,
    actual: &'a NetworkState,
) -> impl Iterator<Item = &'a LinkName> {
    let there: BTreeSet<_> = actual.routes.keys().map(|key| key.dst.addr()).collect();
    let records = records.iter().filter(|(ip, _)| ip.is_ipv6());
    let missing = records.filter(move |(ip, _)| !there.contains(*ip));
    let links = missing.filter_map(|(_, record)| Some(&record.as_ref().ok()?.host_link));
    links.filter(|link| actual.links.contains_key(*link))
}
